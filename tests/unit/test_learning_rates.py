"""The schedules are closed-form, clamped and resumable; reference values were computed independently."""

import pytest
import torch

from megatron.common.errors import CheckpointError, ConfigError
from megatron.learning_rates import AnnealingLR, learning_rate
from megatron.neox_arguments import NeoXArgs
from tests.unit.neox_arguments.basic import minimal

STEPS = [0, 1, 5, 10, 11, 25, 50, 75, 99, 100, 110, 150]
GOLDEN = {
    "constant": [1e-4, 1e-4, 5e-4, 1e-3] + [1e-3] * 8,
    "linear": [1e-4, 1e-4, 5e-4, 1e-3, 9.8888888889e-4, 8.3333333333e-4, 5.5555555556e-4, 2.7777777778e-4]
    + [1e-4] * 4,
    "cosine": [1e-4, 1e-4, 5e-4, 1e-3, 9.9972587216e-4, 9.3971143170e-4, 6.2814167995e-4, 2.6074557564e-4]
    + [1.0027412784e-4, 1e-4, 1e-4, 1e-4],
    "exponential": [
        1e-4,
        1e-4,
        5e-4,
        1e-3,
        9.9232956906e-4,
        8.9092057224e-4,
        7.3491531801e-4,
        6.0622747019e-4,
    ]
    + [5.0393902519e-4, 5.0007359570e-4, 4.6301306831e-4, 3.4027539634e-4],
}
WSD = {"wsd_decay_fraction": 0.5, "wsd_decay_style": "linear"}
# Decaying from 1e-3 at step 55 to 1e-4 at step 100: at 60, 77.5, 99 and 100.
WSD_GOLDEN = {
    "linear": [9.0000000000e-04, 5.5000000000e-04, 1.2000000000e-04, 1.0000000000e-04],
    "cosine": [9.7286167935e-04, 5.5000000000e-04, 1.0109617738e-04, 1.0000000000e-04],
    "exponential": [5.1617113140e-04, 1.2727272727e-04, 1.0014650649e-04, 1.0000000000e-04],
    "sqrt": [7.0000000000e-04, 3.6360389693e-04, 1.1005618155e-04, 1.0000000000e-04],
}


def schedule(style="cosine", **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    settings = {
        "start_lr": 1e-3,
        "warmup_iter": 10,
        "total_iters": 100,
        "last_iter": 0,
        "min_lr": 1e-4,
    } | options
    return AnnealingLR(optimizer, decay_style=style, **settings)


@pytest.mark.parametrize("style", GOLDEN)
def test_schedule_has_the_golden_values(style):
    rates = [learning_rate(step, 1e-3, 10, 100, style, 1e-4) for step in STEPS]
    assert rates == pytest.approx(GOLDEN[style], rel=1e-9)


@pytest.mark.parametrize("decay", WSD_GOLDEN)
def test_warmup_stable_decay_has_the_golden_values(decay):
    options = {**WSD, "wsd_decay_style": decay}
    at = [1, 10, 11, 54, 55, 60, 77.5, 99, 100, 101, 1000]
    rates = [learning_rate(step, 1e-3, 10, 100, "wsd", 1e-4, options) for step in at]
    expected = [1e-4, 1e-3, 1e-3, 1e-3, 1e-3, *WSD_GOLDEN[decay], 1e-4, 1e-4]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_a_decay_as_long_as_the_schedule_starts_at_once():
    options = {**WSD, "wsd_decay_fraction": 1.0}
    found = [learning_rate(step, 1e-3, 10, 100, "wsd", 0.0, options) for step in STEPS]
    assert found == pytest.approx([learning_rate(step, 1e-3, 10, 100, "linear", 0.0) for step in STEPS])


@pytest.mark.parametrize("style", GOLDEN)
@pytest.mark.parametrize("warmup", [0, 0.2, 1, 50, 100])
def test_rate_stays_between_zero_and_the_maximum_for_any_warm_up(style, warmup):
    rates = [learning_rate(step, 1e-3, warmup, 100, style, 1e-5) for step in range(200)]
    assert max(rates) <= 1e-3
    assert min(rates) >= 1e-5


def test_warm_up_shorter_than_a_step_does_not_exceed_the_maximum():
    rates = [learning_rate(step, 1e-3, 0.2, 20, "cosine", 1e-4) for step in (0, 1, 2, 10, 20)]
    assert rates == pytest.approx([1e-3, 9.9637966577e-4, 9.8177183813e-4, 5.5713968373e-4, 1e-4], rel=1e-9)


def test_resumed_schedule_continues_the_curve():
    straight, interrupted = schedule(), schedule()
    for _ in range(30):
        straight.step()
        interrupted.step()
    resumed = schedule()
    resumed.load_state_dict(interrupted.state_dict())
    for _ in range(30):
        straight.step()
        resumed.step()
        assert resumed.get_last_lr() == straight.get_last_lr()


def test_differing_schedule_is_refused_overridden_or_taken_as_asked():
    state = schedule(start_lr=5e-4, total_iters=60).state_dict()
    with pytest.raises(
        CheckpointError, match=r"a maximum of 0.0005 \(now 0.001\), lr_decay_iters 60 \(now 100\): set"
    ):
        schedule(use_checkpoint_lr_scheduler=False).load_state_dict(state)
    taken = schedule(use_checkpoint_lr_scheduler=True)
    taken.load_state_dict(state)
    assert taken.start_lr == 5e-4
    kept = schedule(use_checkpoint_lr_scheduler=False, override_lr_scheduler=True)
    kept.load_state_dict(state)
    assert kept.start_lr == 1e-3


def test_unknown_style_lists_the_choices():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        schedule("cosinus")


def test_options_of_the_style_belong_to_the_saved_schedule():
    state = schedule("wsd", options=WSD).state_dict()
    other = schedule("wsd", options={**WSD, "wsd_decay_fraction": 0.25}, use_checkpoint_lr_scheduler=False)
    with pytest.raises(CheckpointError, match="the options .*0.5.* .now .*0.25"):
        other.load_state_dict(state)
    resumed = schedule("wsd", options=WSD, use_checkpoint_lr_scheduler=False)
    resumed.load_state_dict({**state, "num_iters": 75})
    assert resumed.get_lr() == learning_rate(75, 1e-3, 10, 100, "wsd", 1e-4, WSD)


def test_a_state_of_gpt_neox_has_no_options():
    state = schedule().state_dict()
    del state["options"]
    resumed = schedule(use_checkpoint_lr_scheduler=False)
    resumed.load_state_dict({**state, "num_iters": 75})
    assert resumed.num_iters == 75


@pytest.mark.parametrize(
    ("keys", "length"),
    [
        ({}, 2.0),
        ({"warmup": 0.1}, 20.0),
        ({"warmup_iters": 7}, 7),
        # 4 samples of 16 tokens a step
        ({"warmup_tokens": 96}, 1.5),
    ],
)
def test_the_warm_up_is_given_as_a_fraction_in_iterations_or_in_tokens(keys, length):
    args = NeoXArgs.from_dict(minimal(train_batch_size=4, seq_length=16, lr_decay_iters=200, **keys))
    built = AnnealingLR.from_config(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), args)
    assert built.warmup_iter == pytest.approx(length)
    assert built.end_iter == 200


def test_the_schedule_is_as_long_as_a_fraction_of_the_training_if_asked():
    args = NeoXArgs.from_dict(minimal(train_iters=301, lr_decay_fraction=0.5, lr_decay_style="wsd"))
    built = AnnealingLR.from_config(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), args)
    assert built.end_iter == 150
    assert built.options == {"wsd_decay_fraction": 0.1, "wsd_decay_style": "linear"}
