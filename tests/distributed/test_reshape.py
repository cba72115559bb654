"""A checkpoint of any layout is gone on from in any other, optimizer included, as if nothing had happened."""

from dataclasses import dataclass, field

import pytest

from megatron.checkpointing.reshape import Task, reshape
from megatron.checkpointing.target_tree import Layout
from tests.distributed.reshaping import resume, run_all, save_again, save_and_go_on

SINGLE: dict = {}
ZERO1 = {"processes": 2, "zero_optimization": {"stage": 1}}
ZERO2 = {"processes": 2, "zero_optimization": {"stage": 2}}
ZERO3 = {"processes": 2, "zero_optimization": {"stage": 3}}
TP2 = {"processes": 2, "model_parallel_size": 2}
PP2 = {"processes": 2, "pipe_parallel_size": 2}
PP2_ZERO1 = {**PP2, "zero_optimization": {"stage": 1}}
TP2_PP2 = {"processes": 4, "model_parallel_size": 2, "pipe_parallel_size": 2}
TP2_DP2_ZERO1 = {"processes": 4, "model_parallel_size": 2, "zero_optimization": {"stage": 1}}
BF16 = {"precision": "bfloat16"}

TIED = {"no_weight_tying": False, "pos_emb": "learned"}
SEQUENTIAL = {"gpt_j_residual": False, "norm": "rmsnorm"}
GATED = {"activation": "swiglu", "intermediate_size": 48, **SEQUENTIAL}
ODD = {"vocabulary": 131, "divisor": 1}
COMPARED = {"checkpoint_validation_with_forward_pass": True}


def optimizer(kind: str, **params) -> dict:
    return {"optimizer": {"type": kind, "params": {"lr": 1e-3, **params}}}


@dataclass(frozen=True)
class Pair:
    """A run that saves, and one that goes on from what it saved."""

    source: dict
    target: dict
    model: dict = field(default_factory=dict)


PAIRS = {
    "dp1 -> tp2": Pair(SINGLE, TP2),
    "tp2 -> pp2": Pair(TP2, PP2),
    "tp2 x pp2 -> dp2 ZeRO-1": Pair(TP2_PP2, ZERO1),
    "dp2 ZeRO-1 -> tp2 x pp2": Pair(ZERO1, TP2_PP2),
    "dp2 ZeRO-1 -> dp1": Pair(ZERO1, SINGLE),
    "dp1 -> dp2 ZeRO-1": Pair(SINGLE, ZERO1),
    "dp2 ZeRO-3 -> tp2": Pair(ZERO3, TP2),
    "dp2 x tp2 ZeRO-1 -> dp2 ZeRO-3": Pair(TP2_DP2_ZERO1, ZERO3),
    "odd vocabulary, logits compared, dp1 -> tp2": Pair(SINGLE, TP2, {**ODD, **COMPARED}),
    "odd vocabulary, tied, tp2 -> dp2 ZeRO-1": Pair(TP2, ZERO1, {**ODD, **TIED}),
    "grouped heads, dp1 -> tp2": Pair(SINGLE, TP2, {"num_kv_heads": 2, **SEQUENTIAL}),
    "one head of keys for two ranks, tp2 -> pp2": Pair(TP2, PP2, {"num_kv_heads": 1}),
    "gated MLP, tp2 -> dp2 ZeRO-2": Pair(TP2, ZERO2, GATED),
    "tied, pp2 ZeRO-1 -> tp2": Pair(PP2_ZERO1, TP2, TIED),
    "tied, dp2 ZeRO-2 -> pp2": Pair(ZERO2, PP2, TIED),
    "shared layers, pp2 -> dp1": Pair(PP2, SINGLE, {"num_unique_layers": 1}),
    "experts, dp1 -> tp2": Pair(SINGLE, TP2, {"moe_num_experts": 4, **SEQUENTIAL}),
    "lion, tp2 -> dp2 ZeRO-1": Pair(TP2, ZERO1, optimizer("lion")),
    "madgrad, dp2 ZeRO-1 -> tp2": Pair(ZERO1, TP2, optimizer("madgrad_wd")),
    "sm3, dp2 ZeRO-1 -> tp2": Pair(ZERO1, TP2, optimizer("sm3", momentum=0.9)),
    "sm3, tp2 -> dp2 ZeRO-1": Pair(TP2, ZERO1, optimizer("sm3", momentum=0.9)),
    "muon, dp2 ZeRO-1 -> tp2": Pair(ZERO1, TP2, optimizer("muon")),
    "muon, tp2 -> pp2 ZeRO-1": Pair(TP2, PP2_ZERO1, optimizer("muon")),
    # The same processes draw the same random numbers.
    "dropout, dp2 ZeRO-1 -> dp2 ZeRO-3": Pair(
        ZERO1, ZERO3, {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    ),
    "1-bit Adam, pp2 -> dp1": Pair(PP2, SINGLE, optimizer("onebitadam", freeze_step=2)),
}


def job(function, layout: dict, model: dict, *arguments) -> tuple[int, tuple]:
    settings = {**model, **layout}
    return settings.pop("processes", 1), (function, settings, *arguments)


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory) -> dict[str, tuple[list[float], list[float]]]:
    """{pair: (losses of the run that went on, of the one that resumed)} of the pairs that this session tests."""
    root = tmp_path_factory.mktemp("reshape")
    tests = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {params["pair"]: PAIRS[params["pair"]] for params in tests if "pair" in params}
    sources = {repr((pair.source, pair.model)): pair for pair in wanted.values()}
    folders = {key: str(root / str(number)) for number, key in enumerate(sources)}
    saving = [job(save_and_go_on, pair.source, pair.model, folders[key]) for key, pair in sources.items()]
    straight = dict(zip(sources, run_all(saving), strict=True))
    resuming = [
        job(resume, pair.target, pair.model, folders[repr((pair.source, pair.model))])
        for pair in wanted.values()
    ]
    resumed = run_all(resuming)
    return {
        name: (straight[repr((pair.source, pair.model))], losses)
        for (name, pair), losses in zip(wanted.items(), resumed, strict=True)
    }


@pytest.mark.parametrize("pair", PAIRS)
def test_the_next_ten_losses_are_those_of_the_uninterrupted_run(pair, outcomes):
    straight, resumed = outcomes[pair]
    assert resumed == pytest.approx(straight, rel=1e-5)


def test_precision_may_change_and_fp32_survives_a_stay_in_16_bit(tmp_path):
    folder, through, back = (str(tmp_path / name) for name in ("fp32", "bf16", "back"))
    (straight,) = run_all([job(save_and_go_on, SINGLE, {}, folder)])
    bf16, _ = run_all([job(resume, ZERO1, BF16, folder), job(save_again, ZERO1, BF16, folder, through)])
    assert bf16 == pytest.approx(straight, rel=2e-2) and bf16 != straight
    (fp32,) = run_all([job(resume, TP2, {}, through)])
    assert fp32 == pytest.approx(straight, rel=1e-5)
    fp16, _ = run_all(
        [job(resume, SINGLE, {"precision": "fp16"}, through), job(save_again, SINGLE, {}, through, back)]
    )
    assert fp16[-1] == pytest.approx(straight[-1], rel=2e-2)
    # The masters, and so the weights, of the run in fp32 to the last bit.
    assert run_all([job(resume, SINGLE, {}, back)]) == [straight]


AHEAD = {
    "odd vocabulary, tied, dp1 -> tp2": (
        SINGLE,
        Layout(1, 2, 0, 0, "fp32"),
        TP2,
        {**ODD, **TIED, **COMPARED},
    ),
    "gated MLP, tp2 -> dp2 ZeRO-3": (TP2, Layout(2, 1, 0, 3, "fp32"), ZERO3, GATED),
    "muon, dp2 ZeRO-1 -> pp2 ZeRO-1": (ZERO1, Layout(1, 1, 2, 1, "fp32"), PP2_ZERO1, optimizer("muon")),
    "sm3, dp2 ZeRO-1 -> tp2": (ZERO1, Layout(1, 2, 0, 0, "fp32"), TP2, optimizer("sm3", momentum=0.9)),
    "shared layers, dp2 ZeRO-2 -> pp2": (ZERO2, Layout(1, 1, 2, 0, "fp32"), PP2, {"num_unique_layers": 1}),
    "dp1 -> dp2 bf16": (SINGLE, Layout(2, 1, 0, 1, "bfloat16"), {**ZERO1, **BF16}, {}),
}


def test_what_the_tool_writes_ahead_of_time_is_gone_on_from(tmp_path):
    saving = [
        job(save_and_go_on, source, model, str(tmp_path / str(number)))
        for number, (source, _, _, model) in enumerate(AHEAD.values())
    ]
    straight = run_all(saving)
    resuming = []
    for number, (_, layout, target, model) in enumerate(AHEAD.values()):
        folder = tmp_path / f"{number}, reshaped"
        reshape(Task(tmp_path / str(number) / "global_step3", layout), folder, jobs=1)
        resuming.append(job(resume, target, model, str(folder)))
    for name, before, after in zip(AHEAD, straight, run_all(resuming), strict=True):
        assert after == pytest.approx(before, rel=2e-2 if "bf16" in name else 1e-5), name
