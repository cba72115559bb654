"""What the processes of a column do: every row in turn, in one process group."""

import shutil
import traceback
from pathlib import Path

import torch

from tests.distributed.layouts import VOCABULARY, batches, capture_first_gradients
from tests.grid.rows import Row

STEPS, STEPS_AFTER_RESUME = 4, 2
PROMPT, NEW_TOKENS = 6, 3


def run_cells(cells: list[tuple[Row, str]], folder: str) -> None:
    """Run the cells (row, column) and leave each result in folder/<number of the cell>.<rank>.

    A cell that fails is the last one: the other ranks may wait for this one, so the job ends.
    """
    share_process_groups()
    rank = torch.distributed.get_rank()
    for number, (row, column) in cells:
        result = Path(folder, f"{number}.{rank}")
        scratch = Path(folder, f"checkpoints{number}")
        try:
            outcome = run_cell(row, column, scratch)
        except BaseException:
            torch.save({"error": traceback.format_exc()}, result)
            raise
        torch.save(outcome, result)
        torch.distributed.barrier()
        if rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)


def share_process_groups() -> None:
    """Every pipeline engine makes the same process groups anew; hundreds of them would exhaust the sockets."""
    made, make = {}, torch.distributed.new_group

    def new_group(ranks=None, *args, **kwargs):
        key = tuple(ranks) if ranks is not None else None
        if key not in made:
            made[key] = make(ranks, *args, **kwargs)
        return made[key]

    torch.distributed.new_group = new_group


def run_cell(row: Row, column: str, scratch: Path) -> dict:
    """{"refused": lines} of a row that this column cannot have, else what was measured."""
    from megatron.neox_arguments.features import refusals

    neox_args = build_args(row, column, save=str(scratch), checkpoint_factor=1000)
    if refused := list(refusals(neox_args)):
        return {"refused": refused}
    engine, result = train(neox_args)
    result["eval"] = evaluate(neox_args, engine)
    result |= train_on_and_resume(row, column, neox_args, engine, scratch)
    result["uncached"] = list(refusals(neox_args, cached=True))
    result |= generate(neox_args, engine, cached=not result["uncached"])
    return result


def build_args(row: Row, column: str, **more):
    from megatron.neox_arguments import NeoXArgs

    neox_args = NeoXArgs.from_dict({**row.config(column), **more})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    return neox_args


def start(neox_args):
    from megatron.initialize import initialize_megatron
    from megatron.training import setup_model_and_optimizer

    initialize_megatron(neox_args)
    engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
    engine.train()
    return engine, optimizer, scheduler


def steps(neox_args, iterator, engine, optimizer, scheduler, count: int) -> list[float]:
    from megatron.common.timers import Timers
    from megatron.training import train_step

    timers = Timers()
    taken = (train_step(neox_args, timers, iterator, engine, optimizer, scheduler) for _ in range(count))
    return [float(losses["lm_loss"]) for losses, _ in taken]


def train(neox_args) -> tuple:
    """A new engine, trained a few steps: losses, and the first step's gradients, as slices of this rank."""
    from megatron import mpu

    engine, optimizer, scheduler = start(neox_args)
    gradients = {}
    capture_first_gradients(engine, gradients)
    losses = steps(neox_args, batches(neox_args), engine, optimizer, scheduler, STEPS)
    return engine, {
        "losses": losses,
        "gradients": gradients,
        "tensor_rank": mpu.get_model_parallel_rank(),
    }


def evaluate(neox_args, engine) -> float:
    from megatron.training import evaluate, forward_step

    return evaluate(neox_args, forward_step, batches(neox_args), engine)["lm_loss"]


def train_on_and_resume(row: Row, column: str, neox_args, engine, scratch: Path) -> dict:
    """Losses after a save: of the run that goes on, and of one that starts from the checkpoint."""
    from megatron.checkpointing import save_checkpoint

    assert save_checkpoint(neox_args, STEPS, engine)
    position = (engine, engine.optimizer, engine.lr_scheduler)
    uninterrupted = steps(neox_args, batches(neox_args), *position, STEPS_AFTER_RESUME)
    again = build_args(row, column, load=str(scratch))
    engine, optimizer, scheduler = start(again)
    resumed = steps(again, batches(again), engine, optimizer, scheduler, STEPS_AFTER_RESUME)
    return {"uninterrupted": uninterrupted, "resumed": resumed, "resumed_at": engine.loaded_iteration}


@torch.no_grad()
def generate(neox_args, engine, cached: bool) -> dict:
    """Logits of a sequence in one pass, and, with a cache, of the same sequence token by token after a prompt."""
    from megatron.engine.inference import InferenceModel

    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(VOCABULARY, (2, PROMPT + NEW_TOKENS), generator=generator)
    positions = torch.arange(tokens.shape[1]).expand(2, -1)
    model = InferenceModel(engine, neox_args)
    model.inference_mode(use_cache=False)
    result = {"logits": _cpu(model(tokens, positions))}
    if cached:
        model.inference_mode(use_cache=True)
        ends = [0, *range(PROMPT, tokens.shape[1] + 1)]
        pieces = [
            _cpu(model(tokens[:, first:end], positions[:, first:end]))
            for first, end in zip(ends, ends[1:], strict=False)
        ]
        result["cached"] = torch.cat(pieces, 1) if pieces[0] is not None else None
    model.train_mode()
    return result


def _cpu(logits: torch.Tensor | None) -> torch.Tensor | None:
    return None if logits is None else logits.float().cpu()
