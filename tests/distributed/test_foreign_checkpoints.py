"""A checkpoint tree that GPT-NeoX wrote is gone on from: same weights, same optimizer, same data, same losses."""

import copy
import random
from dataclasses import dataclass

import numpy
import pytest
import torch

from tests.common.distributed import DistributedTestError, run_distributed
from tests.common.neox.data import (
    packed_samples,
    random_documents,
    split_bounds,
    write_mmap,
    write_stale_maps,
)
from tests.common.neox.training import Run, Tensors, new_run, train_step
from tests.common.neox.trees import SCALE, Form, random_states, write_tree

SAVED_AT, STEPS, TRAIN_ITERS, BATCH, SEED = 5, 4, 100, 8, 1234
EVAL_INTERVAL, EVAL_ITERS = 2, 2
SPLIT = (90.0, 8.0, 2.0)


@dataclass
class Reference:
    """GPT-NeoX's run: its state when it saved, what it read and the losses it saw afterwards."""

    saved: Run
    losses: list[float]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(prefix, documents) of data files with another data set's index maps beside them."""
    documents = random_documents(150, 512)
    prefix = write_mmap(tmp_path_factory.mktemp("data") / "text_document", documents)
    write_stale_maps(prefix, "train", TRAIN_ITERS * BATCH, 16, SEED)
    write_stale_maps(prefix, "valid", (TRAIN_ITERS // EVAL_INTERVAL + 1) * EVAL_ITERS * BATCH, 16, SEED)
    return prefix, documents


def expected_samples(documents, part: int, count: int) -> torch.Tensor:
    """The first samples of split `part`, int64 [count, s+1]."""
    bounds = split_bounds(list(SPLIT), len(documents))
    totals = (TRAIN_ITERS, (TRAIN_ITERS // EVAL_INTERVAL + 1) * EVAL_ITERS, EVAL_ITERS)
    samples = packed_samples(documents[bounds[part] : bounds[part + 1]], totals[part] * BATCH, 16, SEED)
    return torch.from_numpy(samples[:count])


@pytest.fixture(scope="module")
def references(data):
    """{parallel residual: Reference}."""
    samples = expected_samples(data[1], 0, (SAVED_AT + STEPS) * BATCH)
    runs = {}
    for parallel_residual in (True, False):
        run = new_run(parallel_residual)
        for batch in samples[: SAVED_AT * BATCH].split(BATCH):
            train_step(run, batch)
        saved = copy.deepcopy(run)
        runs[parallel_residual] = Reference(
            saved, [train_step(run, batch) for batch in samples[SAVED_AT * BATCH :].split(BATCH)]
        )
    return runs


def settings(folder, prefix, **changes) -> dict:
    values = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "seq_length": 16,
        "max_position_embeddings": 16,
        "pos_emb": "rotary",
        "rotary_pct": 0.5,
        "no_weight_tying": True,
        "gpt_j_residual": True,
        "optimizer": {"type": "Adam", "params": {"lr": 5e-3, "betas": [0.9, 0.95], "eps": 1e-8}},
        "min_lr": 5e-4,
        "weight_decay": 0.1,
        "gradient_clipping": 1.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "train_batch_size": BATCH,
        "gradient_accumulation_steps": 2,
        "train_iters": TRAIN_ITERS,
        "lr_decay_iters": 100,
        "lr_decay_style": "cosine",
        "warmup": 0.05,
        "tokenizer_type": "CharLevelTokenizer",
        "data_path": prefix,
        "split": ",".join(map(str, SPLIT)),
        "eval_interval": EVAL_INTERVAL,
        "eval_iters": EVAL_ITERS,
        "seed": SEED,
        "num_workers": 0,
        "log_interval": 1000,
        "load": str(folder),
    }
    return {**values, **changes}


def start(config: dict, world_size: int):
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer

    neox_args = NeoXArgs.from_dict({"global_num_gpus": world_size, **config})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    initialize_megatron(neox_args)
    engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args, iteration=neox_args.iteration)
    return neox_args, engine


def resume(config: dict, world_size: int, saved: Run, steps: int) -> dict:
    """Load, compare every state with the saved run's, then train `steps` steps on the data the config names."""
    from megatron import mpu
    from megatron.common.timers import Timers
    from megatron.data.data_utils import build_train_valid_test_data_loaders, shift_and_wrap_data_loaders
    from megatron.training import train_step as step

    neox_args, engine = start(config, world_size)
    report = {
        "iteration": engine.loaded_iteration,
        "differences": differences(engine, saved),
        "scale": getattr(getattr(engine.optimizer, "loss_scaler", None), "cur_scale", None),
        "random": (random.random(), numpy.random.rand(), torch.rand(1).item()),
        "data_rank": mpu.get_data_parallel_rank(),
        "counters": (engine.global_steps, engine.global_samples, engine.skipped_steps),
    }
    loaders = build_train_valid_test_data_loaders(neox_args)
    train, valid, _ = shift_and_wrap_data_loaders(neox_args, loaders, iteration=engine.loaded_iteration)
    fed, losses = [], []
    engine.train()
    for _ in range(steps):
        metrics, _ = step(neox_args, Timers(), spy(train, fed), engine, None, None)
        losses.append(float(metrics["lm_loss"]))
    return report | {"losses": losses, "fed": fed, "valid": next(valid)["text"]}


def spy(iterator, seen: list):
    for batch in iterator:
        seen.append(batch["text"].clone())
        yield batch


def differences(engine, saved: Run) -> dict[str, float]:
    """Largest absolute differences of this rank's weights, fp32 copies and Adam's moments, and of Adam's step."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    from megatron import mpu
    from megatron.checkpointing.weights import whole

    found: dict[str, float] = {}
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for name, parameter in engine.module.logical_named_parameters():

        def part(values, name=name, spec=parameter.spec):
            return mpu.local_slice(
                values[name], spec, mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
            )

        with whole([parameter]):
            own = {"weights": parameter.detach().float().clone()}
        expected = {"weights": part(saved.weights).to(parameter.dtype).float(), "copies": part(saved.weights)}
        expected |= {"exp_avg": part(saved.exp_avg), "exp_avg_sq": part(saved.exp_avg_sq)}
        if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
            own["copies"] = safe_get_full_fp32_param(parameter)
            own |= {
                kind: safe_get_full_optimizer_state(parameter, kind) for kind in ("exp_avg", "exp_avg_sq")
            }
        else:
            own["copies"] = own["weights"]
            own |= {kind: inner.state[parameter][kind] for kind in ("exp_avg", "exp_avg_sq")}
        for kind, value in own.items():
            found[kind] = max(found.get(kind, 0.0), float((value - expected[kind]).abs().max()))
    steps = {int(state["step"]) for state in inner.state.values()}
    return found | {"step": max(abs(step - saved.steps) for step in steps)}


def all_fed(reports: list[dict]) -> torch.Tensor:
    """Samples in the order of the run, from what each data-parallel rank was fed."""
    by_rank = {report["data_rank"]: report["fed"] for report in reports if report["fed"]}
    micro_batches = zip(*(by_rank[rank] for rank in sorted(by_rank)), strict=True)
    return torch.cat([part for micro_batch in micro_batches for part in micro_batch])


@dataclass(frozen=True)
class Case:
    """A tree and a run that goes on from it.

    Attributes: tolerance: relative, of the losses; where rounding to 16 bit separates the run from the reference its
    states are compared all the same; same_model_ranks: whether pipeline and tensor ranks are those of the tree.
    """

    form: Form
    changes: dict
    tolerance: float = 1e-5
    processes: int = 1
    same_model_ranks: bool = True


ZERO1 = {"zero_optimization": {"stage": 1}}
CASES = {
    "fp32": Case(Form(), {}),
    "fp16": Case(Form("fp16"), {"precision": "fp16"}, 5e-3),
    "dp2 fp32 into dp2 ZeRO-1": Case(Form(dp=2), ZERO1, processes=2),
    "pipeline of one stage, names of the published models": Case(
        Form("fp16", legacy=True, pp=1, fused=True), {"precision": "fp16", "pipe_parallel_size": 1}, 5e-3
    ),
    "dp2 ZeRO-1 fp16": Case(Form("fp16", zero=1, dp=2), {"precision": "fp16", **ZERO1}, 5e-3, processes=2),
    "dp2 ZeRO-1 bf16": Case(
        Form("bf16", zero=1, dp=2, fused=True), {"precision": "bfloat16", **ZERO1}, 2e-2, processes=2
    ),
    "pp2 ZeRO-1, elastic": Case(
        Form(zero=1, pp=2, elastic=True, fused=True), {"pipe_parallel_size": 2, **ZERO1}, processes=2
    ),
    "tp2": Case(Form(tp=2), {"model_parallel_size": 2}, processes=2),
    "tp2 ZeRO-1, residuals in sequence": Case(
        Form(zero=1, tp=2), {"model_parallel_size": 2, "gpt_j_residual": False, **ZERO1}, processes=2
    ),
    "dp2 pp2 tp2 ZeRO-1 fp16 into one process in fp32": Case(
        Form("fp16", 1, 2, 2, 2), {}, same_model_ranks=False
    ),
    "dp3 ZeRO-1 bf16 into dp2 ZeRO-3": Case(
        Form("bf16", zero=1, dp=3), {"zero_optimization": {"stage": 3}}, processes=2
    ),
}


@dataclass
class Resumed:
    case: Case
    reference: Reference
    reports: list[dict]


@pytest.fixture(scope="module", params=CASES)
def resumed(request, tmp_path_factory, data, references) -> Resumed:
    case = CASES[request.param]
    reference = references[case.changes.get("gpt_j_residual", True)]
    folder = tmp_path_factory.mktemp("tree")
    write_tree(folder, reference.saved, case.form)
    config = settings(folder, data[0], **case.changes)
    reports = run_distributed(resume, case.processes, config, case.processes, reference.saved, STEPS)
    return Resumed(case, reference, reports)


def test_every_state_is_what_gpt_neox_had(resumed):
    for report in resumed.reports:
        assert report["iteration"] == SAVED_AT
        assert report["counters"] == (SAVED_AT, SAVED_AT * BATCH, 0)
        # The sum of two ranks' biases is rounded, nothing else.
        bound = 1e-8 if resumed.case.form.tp > 1 else 0.0
        assert {kind: value for kind, value in report["differences"].items() if value > bound} == {}
    if resumed.case.changes.get("precision") == "fp16":
        assert resumed.reports[0]["scale"] == SCALE


def test_the_losses_that_follow_are_those_of_gpt_neox(resumed):
    for report in resumed.reports:
        assert report["losses"] == pytest.approx(resumed.reference.losses, rel=resumed.case.tolerance)


def test_the_samples_that_follow_are_those_of_gpt_neox(resumed, data):
    wanted = expected_samples(data[1], 0, (SAVED_AT + STEPS) * BATCH)[SAVED_AT * BATCH :]
    assert torch.equal(all_fed(resumed.reports), wanted)
    # Two evaluations of EVAL_ITERS global batches each are over.
    start_at = SAVED_AT // EVAL_INTERVAL * EVAL_ITERS * BATCH
    first = resumed.reports[0]["valid"]
    assert torch.equal(first, expected_samples(data[1], 1, start_at + len(first))[start_at:])


def test_random_states_go_on_in_the_layout_that_wrote_them(resumed):
    if not resumed.case.same_model_ranks:
        assert resumed.reports[0]["random"][0] != random.Random(0).random()
        return
    for rank, report in enumerate(resumed.reports):
        # Data-parallel replicas share the states of their model rank.
        number = rank if resumed.case.form.dp == 1 else 0
        states = random_states(number)
        generator = torch.Generator()
        generator.set_state(states["torch_rng_state"])
        expected = (random.Random(number).random(), numpy.random.RandomState(number).rand())
        assert report["random"] == (*expected, torch.rand(1, generator=generator).item())


def train_and_save(config: dict, world_size: int, steps: int) -> list[float]:
    """This program's own run: losses of all steps; a checkpoint half-way."""
    from megatron.checkpointing import save_checkpoint
    from megatron.common.timers import Timers
    from megatron.data.data_utils import build_train_valid_test_data_loaders, shift_and_wrap_data_loaders
    from megatron.training import train_step as step

    neox_args, engine = start(config, world_size)
    loaders = build_train_valid_test_data_loaders(neox_args)
    train, *_ = shift_and_wrap_data_loaders(neox_args, loaders, iteration=engine.loaded_iteration)
    engine.train()
    losses = []
    for iteration in range(engine.loaded_iteration + 1, steps + 1):
        metrics, _ = step(neox_args, Timers(), train, engine, None, None)
        losses.append(float(metrics["lm_loss"]))
        if neox_args.save and iteration == steps // 2:
            assert save_checkpoint(neox_args, iteration, engine)
    return losses


OURS = ("manifest.json", "neox_args.json", "rng_rank_*.pt")
OWN = {
    "dp2 ZeRO-3": {"zero_optimization": {"stage": 3}},
    "pp2 ZeRO-1 bf16, tied": {
        "pipe_parallel_size": 2, "precision": "bfloat16", "no_weight_tying": False, "pos_emb": "learned", **ZERO1,
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", OWN)
def test_the_files_of_deepspeed_itself_are_read_to_the_last_bit(layout, tmp_path, data):
    """What this program's DeepSpeed writes, without what marks it as this program's own."""
    config = settings(tmp_path, data[0], save=str(tmp_path), checkpoint_factor=1000, **OWN[layout])
    straight = run_distributed(train_and_save, 2, config, 2, 6)
    for path in (path for name in OURS for path in tmp_path.glob(f"*/{name}")):
        path.unlink()
    resumed = run_distributed(train_and_save, 2, {**config, "save": None}, 2, 6)
    assert [losses[3:] for losses in straight] == resumed


def load_weights_only(config: dict, world_size: int) -> tuple[int, Tensors]:
    _, engine = start(config, world_size)
    return engine.loaded_iteration, {
        name: p.detach().clone() for name, p in engine.module.logical_named_parameters()
    }


def test_weights_alone_are_taken_from_a_tree_without_an_optimizer(tmp_path, data, references):
    """As converters write it: an empty optimizer, tag and `latest` of their own, no random states."""
    saved = references[True].saved
    directory = write_tree(tmp_path, saved, Form(rng=False)).rename(tmp_path / "0")
    (tmp_path / "latest").write_text("0")
    state = torch.load(directory / "mp_rank_00_model_states.pt")
    state |= {"optimizer": {}, "global_steps": 1, "skipped_steps": 1, "iteration": 7}
    torch.save(state, directory / "mp_rank_00_model_states.pt")
    config = settings(tmp_path, data[0], no_load_optim=True)
    ((iteration, weights),) = run_distributed(load_weights_only, 1, config, 1)
    assert iteration == 7
    assert all(torch.equal(value, saved.weights[name]) for name, value in weights.items())
    with pytest.raises(DistributedTestError) as caught:
        run_distributed(load_weights_only, 1, {**config, "no_load_optim": False}, 1)
    message = caught.value.exceptions[0]
    assert "CheckpointError" in message and "has no optimizer state" in message and "no_load_optim" in message
    assert "\n" not in message
