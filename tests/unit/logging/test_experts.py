import torch

from megatron.common.timers import Timers
from megatron.logging import training_log
from megatron.logging.experts import balance_metrics
from megatron.model import build_sequential
from tests.common.models import inputs_and_targets, model_args


class Sink:
    def __init__(self):
        self.logged = []

    def log(self, values, step):
        self.logged.append((step, values))


def test_the_balance_since_the_last_line_reaches_console_and_trackers(capsys):
    args = model_args(
        moe_num_experts=4, moe_router_type="topk", moe_top_k=2, log_interval=2, ffn_hidden_size=8
    )
    args.world_size = 1
    model, timers, totals, sink = build_sequential(args), Timers(), {}, Sink()
    timers("interval time").start()
    for iteration in (1, 2, 3, 4):
        if iteration < 3:
            model(inputs_and_targets(seed=iteration)[0])
        training_log(
            args, timers, {"lm_loss": torch.tensor(1.0)}, totals, 1e-3, iteration, None, False, 0, model, None,
            metrics=sink,
        )  # fmt: skip
    (first, values), (second, later) = sink.logged
    assert (first, second) == (2, 4)
    assert 1.0 <= values["train/moe_balance_loss"] < 1.5
    assert values["train/moe_z_loss"] > 1.0
    assert 1.0 <= values["train/moe_max_load"] <= 2.0
    assert later["train/moe_max_load"] == 0.0  # nothing was trained in between
    assert f" moe max load: {values['train/moe_max_load']:.6E}" in capsys.readouterr().out


def test_a_model_without_experts_has_no_balance():
    assert balance_metrics(model_args(), None) == {}
