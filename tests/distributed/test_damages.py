"""Whatever befalls a tree of checkpoints, what is loaded from it is whole, or nothing is (P29)."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tests.common.distributed import run_distributed

SAVED = (1, 2, 3)
NUMBER = 500


def files_of(tree: Path, choice: random.Random) -> list[Path]:
    """The files of one of the checkpoints, sorted."""
    directory = tree / f"global_step{choice.choice(SAVED)}"
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flip_a_byte(tree: Path, choice: random.Random) -> None:
    path = choice.choice([path for path in files_of(tree, choice) if path.stat().st_size])
    content = bytearray(path.read_bytes())
    content[choice.randrange(len(content))] ^= choice.randint(1, 255)
    path.write_bytes(content)


def cut_short(tree: Path, choice: random.Random) -> None:
    path = choice.choice(files_of(tree, choice))
    path.write_bytes(path.read_bytes()[: choice.randrange(path.stat().st_size)])


def lose_a_file(tree: Path, choice: random.Random) -> None:
    choice.choice(files_of(tree, choice)).unlink()


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def swap_within(tree: Path, choice: random.Random) -> None:
    swap(*choice.sample(files_of(tree, choice), 2))


def swap_between(tree: Path, choice: random.Random) -> None:
    """The same file of two checkpoints, often of the same size; or the checkpoints as a whole."""
    one, other = (tree / f"global_step{number}" for number in choice.sample(SAVED, 2))
    names = [path.relative_to(one) for path in sorted(one.rglob("*.*")) if path.is_file()]
    name = choice.choice([*names, Path()])
    swap(one / name, other / name)


def spoil_latest(tree: Path, choice: random.Random) -> None:
    """Names an older one, one that is not there, or nothing."""
    latest = tree / "latest"
    content = choice.choice([*(f"global_step{number}" for number in (1, 2, 4)), "", "\x00", None])
    if content is None:
        latest.unlink()
    else:
        latest.write_text(content)


DAMAGES: tuple[Callable, ...] = (flip_a_byte, cut_short, lose_a_file, swap_within, swap_between, spoil_latest)


def state_of(engine) -> list[torch.Tensor]:
    """Weights and both moments of all parameters."""
    optimizer = engine.optimizer
    parameters = list(engine.module.parameters())
    moments = [optimizer.state[p][kind] for p in parameters for kind in ("exp_avg", "exp_avg_sq")]
    return [value.detach().clone() for value in (*parameters, *moments)]


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def damage_and_load(pristine: str, tree: str) -> dict[str, int]:
    """Save, then damage and load again and again. Returns: how often what came out of it."""
    from megatron.checkpointing import load_checkpoint
    from megatron.common.errors import CheckpointError
    from tests.distributed.test_async_save import Run

    settings = {"pipe_parallel_size": 1, "num_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    run = Run({**settings, "save": pristine, "checkpoint_factor": 1}, 1)
    states, outcomes = {}, dict.fromkeys((*SAVED, "error"), 0)
    for iteration in SAVED:
        run.step()
        assert run.save(iteration)
        states[iteration] = state_of(run.engine)
    whole = {
        f"global_step{iteration}": contents(Path(pristine, f"global_step{iteration}")) for iteration in SAVED
    }
    run.args.load, run.args.save = tree, None
    choice = random.Random(29)
    for number in range(NUMBER):
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(pristine, tree)
        damage = choice.choice(DAMAGES)
        damage(Path(tree), choice)
        undamaged = [
            iteration
            for iteration in SAVED
            if contents(Path(tree, f"global_step{iteration}")) == whole[f"global_step{iteration}"]
        ]
        where = f"damage {number}, {damage.__name__}, undamaged are {undamaged}"
        try:
            iteration = load_checkpoint(run.args, run.engine)
        except CheckpointError as error:
            assert "\n" not in str(error) and damage is spoil_latest, (where, str(error))
            outcomes["error"] += 1
            continue
        expected = states[iteration]
        assert all(torch.equal(*pair) for pair in zip(state_of(run.engine), expected, strict=True)), where
        if damage is not spoil_latest:
            assert iteration == undamaged[-1], (where, iteration)
        outcomes[iteration] += 1
    return outcomes


def test_five_hundred_random_damages_never_lead_to_a_wrong_load(tmp_path):
    (outcomes,) = run_distributed(
        damage_and_load, 1, str(tmp_path / "pristine"), str(tmp_path / "tree"), timeout=300
    )
    assert sum(outcomes.values()) == NUMBER
    # All ways out have been taken.
    assert outcomes[3] > 100 and outcomes[2] > 50 and outcomes[1] > 10
