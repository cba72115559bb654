"""A resumed run is bit-identical to one that was never interrupted; foreign and damaged checkpoints are refused."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from tests.common.distributed import DistributedTestError, run_distributed
from tests.distributed.layouts import BASE, VOCABULARY, batches

STEPS, SAVED_AT = 6, 3

LAYOUTS = {
    "single": {},
    "dp2+zero1": {"processes": 2, "zero_optimization": {"stage": 1}},
    "dp2+zero2": {"processes": 2, "zero_optimization": {"stage": 2}},
    "dp2+zero3": {"processes": 2, "zero_optimization": {"stage": 3}},
    "tp2+sp": {"processes": 2, "model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"processes": 2, "pipe_parallel_size": 2},
    "pp2+zero1 bf16": {
        "processes": 2, "pipe_parallel_size": 2, "zero_optimization": {"stage": 1}, "precision": "bfloat16",
    },
    "dp2+zero1 fp16": {"processes": 2, "zero_optimization": {"stage": 1}, "precision": "fp16"},
    "bf16, ZeRO off": {"precision": "bfloat16"},
}  # fmt: skip


def start(settings: dict, world_size: int):
    """Build and load on this rank: (neox_args, engine, iteration)."""
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer

    dropout = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    neox_args = NeoXArgs.from_dict({**BASE, **dropout, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    engine, *_ = setup_model_and_optimizer(neox_args)
    return neox_args, engine, engine.loaded_iteration


def train_part(settings: dict, world_size: int, until: int, save: bool) -> dict:
    """Go on from what `load` offers up to iteration `until`; maybe save. Returns this rank's losses and weights."""
    from megatron.checkpointing import save_checkpoint
    from megatron.common.timers import Timers
    from megatron.training import train_step

    neox_args, engine, iteration = start(settings, world_size)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "_states.pt" in line]
    engine.train()
    skip = iteration * neox_args.gradient_accumulation_steps
    iterator, timers, losses = itertools.islice(batches(neox_args), skip, None), Timers(), []
    for _ in range(iteration, until):
        metrics, _ = train_step(neox_args, timers, iterator, engine, None, None)
        losses.append(float(metrics["lm_loss"]))
    if save:
        assert save_checkpoint(neox_args, until, engine)
    weights = {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}
    return {"losses": losses, "weights": weights, "lr": engine.get_lr()[0], "mapped": mapped}


def train_until(settings: dict, until: int, save: bool = False) -> list[dict]:
    settings = dict(settings)
    world_size = settings.pop("processes", 1)
    return run_distributed(train_part, world_size, settings, world_size, until, save, timeout=180)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resume_in_the_same_layout_is_bit_exact(layout, tmp_path):
    settings = {**LAYOUTS[layout], "save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 1000}
    straight = train_until(LAYOUTS[layout], STEPS)
    first = train_until(settings, SAVED_AT, save=True)
    second = train_until(settings, STEPS)
    for whole, begun, resumed in zip(straight, first, second, strict=True):
        assert whole["losses"] == begun["losses"] + resumed["losses"]
        assert whole["lr"] == resumed["lr"]
        # Else deleting the checkpoint would not make room on the disk.
        assert resumed["mapped"] == []
        assert whole["weights"].keys() == resumed["weights"].keys()
        for name, value in whole["weights"].items():
            assert torch.equal(value, resumed["weights"][name]), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run saved at iterations 3 and 5: (settings, folder, losses of all six steps without interruption)."""
    folder = tmp_path_factory.mktemp("saved")
    settings = {"save": str(folder), "load": str(folder), "checkpoint_factor": 1000}
    train_until(settings, SAVED_AT, save=True)
    train_until(settings, 5, save=True)
    return settings, folder


def test_tree_has_deepspeeds_names_the_configs_and_a_manifest(saved):
    _, folder = saved
    tag = folder / "global_step5"
    assert (folder / "latest").read_text() == "global_step5"
    assert (tag / "mp_rank_00_model_states.pt").is_file()
    manifest = json.loads((tag / "manifest.json").read_text())
    assert manifest["iteration"] == 5
    assert set(manifest["files"]) >= {"mp_rank_00_model_states.pt", "rng_rank_00000.pt", "neox_args.json"}
    assert not list(folder.glob(".*partial"))


def test_finetune_starts_at_zero_from_exactly_the_loaded_weights(saved):
    settings, folder = saved
    tuned = train_until({**settings, "finetune": True, "save": None}, 0)[0]
    loaded = train_until(settings, 5)[0]
    assert all(torch.equal(tuned["weights"][name], value) for name, value in loaded["weights"].items())


def first_loss_after_finetune(settings: dict, world_size: int) -> tuple[float, float]:
    """Losses of the first two steps of a fine-tuning run on a fixed batch."""
    from megatron.common.timers import Timers
    from megatron.training import train_step

    neox_args, engine, iteration = start(settings, world_size)
    assert iteration == 0
    engine.train()
    batch = next(batches(neox_args))
    losses = []
    for _ in range(2):
        metrics, _ = train_step(neox_args, Timers(), iter([batch]), engine, None, None)
        losses.append(float(metrics["lm_loss"]))
    return tuple(losses)


@pytest.mark.parametrize("stage", [1, 3])
def test_finetune_rebuilds_the_fp32_masters(stage, tmp_path):
    """With stale masters the first step would throw the weights back to their initial values."""
    layout = {"zero_optimization": {"stage": stage}, "precision": "bfloat16"}
    settings = {**layout, "save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 1000}
    before = train_until(settings, 40, save=True)[0]["losses"][-1]
    tuned = {**settings, "finetune": True, "save": None, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    first, second = run_distributed(first_loss_after_finetune, 1, tuned, 1)[0]
    assert first < before * 1.1
    assert second < first * 1.05


def load_only(settings: dict, world_size: int) -> int:
    return start(settings, world_size)[2]


def refusal(settings: dict) -> str:
    world_size = settings.pop("processes", 1)
    with pytest.raises(DistributedTestError) as caught:
        run_distributed(load_only, world_size, settings, world_size)
    return next(iter(caught.value.exceptions.values()))


def test_checkpoint_of_another_model_is_refused_with_the_settings_named(saved):
    message = refusal({**saved[0], "num_layers": 2})
    assert "CheckpointError" in message
    assert "num_layers is 4 in the checkpoint and 2 in the config" in message


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(saved):
    settings, folder = saved
    path = folder / "global_step5" / "mp_rank_00_model_states.pt"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-200])
        assert run_distributed(load_only, 1, settings, 1) == [3]
    finally:
        path.write_bytes(content)


def test_missing_checkpoint_with_load_set_is_an_error(tmp_path):
    message = refusal({"load": str(tmp_path / "nothing")})
    assert "there is no checkpoint in" in message
