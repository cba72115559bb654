"""Prompt tuning on top of a trained model: it starts from its checkpoint, and changes nothing but the prompt."""

import pytest
import torch

from tests.common.distributed import run_distributed
from tests.distributed.test_resume import start, train_part

PROMPT = {"soft_prompt_tuning": {"enabled": True, "n_tokens": 3, "init_string": "ab"}, "finetune": True}
NAME = "0.soft_prompt.soft_embedding_weight"
LAYOUTS = {
    "single": {},
    "dp2+zero3": {"processes": 2, "zero_optimization": {"stage": 3}},
    "pp2 bf16": {"processes": 2, "pipe_parallel_size": 2, "precision": "bfloat16"},
    "pp2, tied": {"processes": 2, "pipe_parallel_size": 2, "no_weight_tying": False},
    "tp2": {"processes": 2, "model_parallel_size": 2},
}


def tuned(settings: dict, world_size: int) -> tuple[dict, dict, int]:
    """Weights at the start and after two steps, and how many numbers the optimizer keeps."""
    from megatron.checkpointing import save_checkpoint
    from megatron.checkpointing.weights import whole
    from megatron.common.timers import Timers
    from megatron.training import train_step
    from tests.distributed.layouts import batches

    def weights():
        found = dict(engine.module.logical_named_parameters())
        with whole(found.values()):
            return {name: parameter.detach().float().clone() for name, parameter in found.items()}

    neox_args, engine, _ = start(settings, world_size)
    engine.train()
    before, iterator = weights(), batches(neox_args)
    for _ in range(2):
        train_step(neox_args, Timers(), iterator, engine, None, None)
    assert save_checkpoint(neox_args, 2, engine)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return (
        before,
        weights(),
        sum(state["exp_avg"].numel() for state in inner.state.values() if "exp_avg" in state),
    )


def loaded(settings: dict, world_size: int) -> dict[str, torch.Tensor]:
    _, engine, _ = start(settings, world_size)
    return {name: parameter.detach().clone() for name, parameter in engine.module.logical_named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_for_a_trained_model(layout, tmp_path):
    """In every layout; and a single process then reads the whole, prompt included."""
    settings = dict(LAYOUTS[layout])
    processes = settings.pop("processes", 1)
    tied = {"no_weight_tying": settings.get("no_weight_tying", True)}
    base = {"save": str(tmp_path / "base"), "checkpoint_factor": 1000}
    run_distributed(train_part, 1, {**tied, **base}, 1, 2, True)
    trained = run_distributed(loaded, 1, {**tied, "load": base["save"], "no_load_optim": True}, 1)[0]
    tuning = {
        **settings,
        **PROMPT,
        "load": base["save"],
        "save": str(tmp_path / "tuned"),
        "checkpoint_factor": 1000,
    }
    ranks = run_distributed(tuned, processes, tuning, processes)
    before, after, states = ranks[0]
    words = trained["0.word_embeddings.weight"][[97, 98, 97]]
    tolerance = {"rtol": 1e-2, "atol": 1e-4} if "bf16" in layout else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(before[NAME], words, **tolerance)
    assert not torch.equal(after[NAME], before[NAME])
    for first, last, _ in ranks:
        assert all(torch.equal(last[name], first[name]) for name in first if name != NAME)
    # a cut of ZeRO is padded a little
    assert 0 < states <= words.numel() + 2
    whole = run_distributed(loaded, 1, {**tied, **PROMPT, "load": tuning["save"]}, 1)[0]
    torch.testing.assert_close(whole[NAME], after[NAME], **tolerance)
    for name, value in trained.items():
        torch.testing.assert_close(whole[name], value, **tolerance)
