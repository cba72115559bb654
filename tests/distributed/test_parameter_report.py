"""What is logged about single parameters is the same in every layout, and true."""

import functools

import pytest
import torch

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, VOCABULARY, batches, capture_first_gradients

LAYOUTS = {
    "tp2xpp2+sp": {
        "processes": 4, "model_parallel_size": 2, "pipe_parallel_size": 2, "sequence_parallel": True,
    },
    "dp2+zero2": {"processes": 2, "zero_optimization": {"stage": 2}},
    "dp2+zero3": {"processes": 2, "zero_optimization": {"stage": 3}},
    "pp2+zero1+dp2": {"processes": 4, "pipe_parallel_size": 2, "zero_optimization": {"stage": 1}},
}  # fmt: skip
HALVES = {
    "bf16 pp2": {"processes": 2, "pipe_parallel_size": 2, "precision": "bfloat16"},
    "fp16 dp2": {"processes": 2, "precision": "fp16", "fp16": {"enabled": True, "initial_scale_power": 10}},
}
WANTED = {
    "log_grad_norm": True,
    "log_grad_pct_zeros": True,
    "log_param_norm": True,
    "log_optimizer_states": True,
    "log_interval": 2,
    # the output has the embedding's weights, which stages share
    "no_weight_tying": False,
    # and half of the positions are never used
    "pos_emb": "learned",
    "max_position_embeddings": 64,
    "data_path": "none",
}


def build(settings: dict, world_size: int):
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer

    neox_args = NeoXArgs.from_dict({**BASE, **WANTED, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    return neox_args, setup_model_and_optimizer(neox_args)[0]


def tags_after_two_steps(settings: dict, world_size: int) -> tuple[dict, dict]:
    """What the report says of the second step; and the norms by the plain way, for a single process."""
    from megatron.common.timers import Timers
    from megatron.training import train_step

    neox_args, engine = build(settings, world_size)
    data, gradients = batches(neox_args), {}
    for step in range(2):
        if step == 1 and world_size == 1:
            capture_first_gradients(engine, gradients)
        train_step(neox_args, Timers(), data, engine, None, None)
    plain = {}
    if world_size == 1:
        plain |= {f"gradient_norms/{name}": float(found[0].norm()) for name, found in gradients.items()}
        plain |= {
            f"pct_grad_zeros/{name}": 100 * float((found[0] == 0).float().mean())
            for name, found in gradients.items()
        }
        for name, parameter in engine.module.logical_named_parameters():
            plain[f"parameter_norms/{name}"] = float(parameter.norm())
            for kind in ("exp_avg", "exp_avg_sq"):
                state = engine.optimizer.state[parameter][kind]
                plain[f"optimizer_state_norms/{kind}_{name}"] = float(state.norm())
        norms = torch.tensor([norm for tag, norm in plain.items() if tag.startswith("gradient_norms/")])
        plain["train/grad_norm"] = float(norms.norm())
    return engine.parameter_report.tags(), plain


@functools.cache
def single_process() -> tuple[dict, dict]:
    return run_distributed(tags_after_two_steps, 1, {}, 1)[0]


def in_layout(layout: dict) -> list[dict]:
    settings = dict(layout)
    world_size = settings.pop("processes")
    return [tags for tags, _ in run_distributed(tags_after_two_steps, world_size, settings, world_size)]


def test_a_single_process_reports_what_torch_computes():
    tags, plain = single_process()
    assert tags == pytest.approx(plain, rel=1e-5)
    assert tags["pct_grad_zeros/0.position_embeddings.weight"] == 50.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_of_every_layout_reports_the_single_process_values(layout):
    expected, _ = single_process()
    for tags in in_layout(LAYOUTS[layout]):
        assert tags.keys() == expected.keys()
        for tag, value in expected.items():
            # Where a gradient vanishes but for rounding, as that of a key's bias, the zeros are a matter of chance.
            assert tags[tag] == pytest.approx(value, rel=1e-4, abs=3.0 if "zeros" in tag else 1e-6), tag
        assert tags["pct_grad_zeros/0.position_embeddings.weight"] == 50.0


@pytest.mark.parametrize("layout", HALVES)
def test_half_precision_reports_unscaled_gradients(layout):
    expected, _ = single_process()
    for tags in in_layout(HALVES[layout]):
        assert tags.keys() == expected.keys()
        assert tags["train/grad_norm"] == pytest.approx(expected["train/grad_norm"], rel=0.05)
        for name in ("parameter_norms/2.mlp.linear1.weight", "gradient_norms/2.mlp.linear1.weight"):
            assert tags[name] == pytest.approx(expected[name], rel=0.05)


def gradient_looks(settings: dict, world_size: int) -> list[int]:
    """Steps at which gradients were looked at, in six steps."""
    from megatron.common.timers import Timers
    from megatron.training import train_step

    neox_args, engine = build(settings, world_size)
    parts, seen = engine.parameter_report._parts, set()
    gradient = parts.gradient

    def noted(parameter):
        seen.add(engine.global_steps + 1)
        return gradient(parameter)

    parts.gradient = noted
    data = batches(neox_args)
    for _ in range(6):
        train_step(neox_args, Timers(), data, engine, None, None)
    return sorted(seen)


def test_only_logged_steps_are_looked_at():
    assert run_distributed(gradient_looks, 1, {"log_interval": 3}, 1) == [[3, 6]]


def unwatched(settings: dict, world_size: int) -> bool:
    off = dict.fromkeys([key for key in WANTED if key.startswith("log_") and key != "log_interval"], False)
    _, engine = build({**off, **settings}, world_size)
    return engine.parameter_report is None and "_take_model_step" not in vars(engine)


def test_nothing_is_watched_unless_asked_for():
    assert run_distributed(unwatched, 1, {}, 1) == [True]
