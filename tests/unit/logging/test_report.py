"""The interval line and the trackers say what happened since the last one."""

import json
from types import SimpleNamespace

import pytest
import torch

from megatron import mpu
from megatron.common.timers import Timers
from megatron.logging import Metrics, training_log
from megatron.logging.flops import model_flops_per_iteration
from megatron.neox_arguments import NeoXArgs


@pytest.fixture
def config(tmp_path):
    settings = {
        "log_interval": 4, "train_batch_size": 8, "max_position_embeddings": 16, "train_iters": 40, "hidden_size": 32,
        "num_layers": 2, "num_attention_heads": 4, "log_dir": str(tmp_path), "global_num_gpus": 1,
    }  # fmt: skip
    args = NeoXArgs.from_dict(settings)
    args.padded_vocab_size, args.world_size = 64, 1
    return args


SPAN = 0.25


def report(config, losses, skipped=(), metrics=None, loss_scale=None, model=None, timed=()):
    """Run training_log over steps with these losses, each SPAN seconds in the timers named `timed`."""
    timers, totals, memory_due = Timers(), {}, False
    timers("interval time").start()
    for iteration, loss in enumerate(losses, start=1):
        for name in timed:
            timers(name)._spans.append((0.0, SPAN))
        memory_due = training_log(
            config, timers, {"lm_loss": torch.tensor(loss)}, totals, 1e-3, iteration, loss_scale, memory_due,
            int(iteration in skipped), model, None, metrics=metrics,
        )  # fmt: skip


def test_line_has_the_fields_of_gpt_neox_in_order_and_the_new_ones_after_them(config, capsys):
    report(config, [4.0, 3.0, 2.0, 1.0])
    line = capsys.readouterr().out.strip()
    labels = [
        "samples/sec:", "iteration        4/      40", "elapsed time per iteration (ms):", "learning rate: 1.000E-03",
        "approx flops per GPU:", "lm_loss: 2.500000E+00", "number of skipped iterations:   0",
        "number of nan iterations:   0", "tokens/sec:", "data wait (ms):", "time left:",
    ]  # fmt: skip
    positions = [line.index(label) for label in labels]
    assert positions == sorted(positions)


def test_skipped_steps_are_counted_and_left_out_of_the_mean(config, capsys):
    report(config, [4.0, 100.0, 2.0, 3.0], skipped={2})
    line = capsys.readouterr().out
    assert "lm_loss: 3.000000E+00" in line
    assert "number of skipped iterations:   1" in line


def test_nan_losses_are_counted_even_in_applied_steps(config, capsys):
    report(config, [float("nan"), 1.0, 1.0, 1.0])
    output = capsys.readouterr()
    assert "number of nan iterations:   1" in output.out and output.err == ""


def test_an_interval_of_nan_losses_is_warned_of(config, capsys):
    report(config, [1.0] * 4 + [float("nan")] * 4)
    assert capsys.readouterr().err.startswith("warning: since iteration 5 or before the loss is not a number")


def test_every_interval_starts_anew(config, capsys):
    report(config, [8.0] * 4 + [2.0] * 4)
    first, second = capsys.readouterr().out.strip().splitlines()
    assert "lm_loss: 8.000000E+00" in first and "lm_loss: 2.000000E+00" in second


def test_utilisation_and_loss_scale_are_shown_where_they_mean_something(config, capsys):
    config.peak_theoretical_tflops, config.precision = 1.0, "fp16"
    report(config, [1.0] * 4, loss_scale=512.0)
    line = capsys.readouterr().out
    assert "MFU:" in line and "HFU:" in line and "loss scale: 512.0" in line


def test_metrics_reach_the_json_lines_file(config, tmp_path):
    metrics = Metrics(config)
    report(config, [4.0, 3.0, 2.0, 1.0], metrics=metrics)
    metrics.log({"validation/lm_loss": 2.25}, 4)
    metrics.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["iteration"] == 4
    assert first["train/lm_loss"] == pytest.approx(2.5)
    assert first["runtime/tokens_per_sec"] > 0
    assert 0 <= second.pop("time") - first["time"] < 60 and first["time"] > 1.7e9
    assert second == {"iteration": 4, "validation/lm_loss": 2.25}
    assert json.loads((tmp_path / "neox_args.json").read_text())["hidden_size"] == 32


def test_the_config_of_a_training_stays_when_its_model_is_evaluated(config, tmp_path):
    for script, seed in (("train.py", 1), ("/path/eval.py", 2), ("/path/train.py", 3)):
        config.user_script, config.seed = script, seed
        Metrics(config).close()
        assert json.loads((tmp_path / "neox_args.json").read_text())["seed"] == (3 if seed == 3 else 1)


def test_metrics_lie_with_the_checkpoints_where_there_is_no_log_dir(config, tmp_path):
    config.log_dir, config.save, config.tensorboard_dir = (
        None,
        str(tmp_path / "saved"),
        str(tmp_path / "events"),
    )
    metrics = Metrics(config)
    metrics.log({"validation/lm_loss": 2.25}, 4)
    metrics.close()
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["metrics.jsonl", "neox_args.json"]


def test_a_line_that_a_killed_run_left_unfinished_spoils_no_other(config, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 2, "train/lm_l')
    metrics = Metrics(config)
    metrics.log({"train/lm_loss": 2.25}, 4)
    metrics.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["train/lm_loss"] == 2.25


def test_memory_times_and_the_norm_of_the_gradients_are_logged_for_the_interval(config, tmp_path):
    metrics, model = Metrics(config), SimpleNamespace(get_global_grad_norm=lambda: torch.tensor(0.5))
    report(config, [4.0] * 8, metrics=metrics, model=model, timed=("forward",))
    metrics.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["train/grad_norm"] == 0.5
    assert second["runtime/consumed_tokens"] == 2 * first["runtime/consumed_tokens"] == 8 * 8 * 16
    assert second["memory/max_allocated"] >= second["memory/allocated"] > 1e6
    # Of these four iterations, not of all eight.
    assert second["timers/forward"] == pytest.approx(SPAN)


def test_a_curriculum_is_logged_and_counted_as_what_it_is(config, tmp_path):
    stairs = {"difficulty": [4, 8, 16], "max_step": [2, 3]}
    config.curriculum_learning = {"schedule_type": "fixed_discrete", "schedule_config": stairs}
    metrics = Metrics(config)
    report(config, [4.0, 3.0, 2.0, 1.0], metrics=metrics)
    metrics.close()
    values = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert values["curriculum_seqlen"] == 16
    mean_length = (4 + 4 + 8 + 16) / 4
    assert values["runtime/tokens_per_sec"] == pytest.approx(values["runtime/samples_per_sec"] * mean_length)
    flops = sum(model_flops_per_iteration(config, length) for length in (4, 4, 8, 16)) / 4
    assert values["runtime/flops_per_sec_per_gpu"] == pytest.approx(flops * values["runtime/steps_per_sec"])


def test_tokens_of_before_a_resumption_are_those_of_its_batch_size(config, tmp_path):
    metrics = Metrics(config)
    # Two iterations of four samples, before six of eight.
    model = SimpleNamespace(loaded_iteration=2, samples_before=8)
    report(config, [4.0] * 8, metrics=metrics, model=model)
    metrics.close()
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["runtime/consumed_tokens"] == 16 * (2 * 4 + 6 * 8)


def test_the_time_of_recomputed_blocks_is_shown(config, capsys, monkeypatch):
    monkeypatch.setattr(mpu, "backward_seconds", lambda: {"block 0": 0.008, "blocks 1 to 2": 0.4})
    report(config, [4.0, 3.0, 2.0, 1.0])
    expected = "recomputation and backward pass (ms per iteration) | block 0: 2.00 | blocks 1 to 2: 100.00"
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_metrics_and_config_reach_tensorboard(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    config.tensorboard_writer = SummaryWriter(log_dir=str(tmp_path / "events"))
    metrics = Metrics(config)
    report(config, [4.0, 3.0, 2.0, 1.0], metrics=metrics)
    metrics.close()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/lm_loss")] == [(4, 2.5)]
    assert "hidden_size/text_summary" in events.Tags()["tensors"]


def test_a_failing_tracker_is_switched_off_and_training_goes_on(config, capsys):
    metrics = Metrics(config)

    class Broken:
        def log(self, values, step):
            raise OSError("no space left")

    metrics.sinks = [Broken(), *metrics.sinks]
    report(config, [1.0] * 8, metrics=metrics)
    assert "Broken failed and is switched off: no space left" in capsys.readouterr().err
    assert len(metrics.sinks) == 1
