"""A tracker that fails is switched off; training goes on."""

from types import SimpleNamespace

from megatron.logging import Metrics


def metrics(**settings) -> Metrics:
    return Metrics(SimpleNamespace(**{"log_dir": None, "tensorboard_writer": None, **settings}))


def test_values_go_to_a_line_per_step(tmp_path):
    sinks = metrics(log_dir=str(tmp_path))
    sinks.log({"loss": 2.0, "absent": None}, 3)
    sinks.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 3, "loss": 2.0}\n'


def test_a_tracker_that_cannot_be_opened_is_switched_off(tmp_path, capfd):
    (tmp_path / "taken").write_text("")
    sinks = metrics(log_dir=str(tmp_path / "taken"))
    assert sinks.sinks == []
    assert "JsonLinesSink failed and is switched off" in capfd.readouterr().err
    sinks.log({"loss": 2.0}, 3)


def test_a_tracker_that_fails_later_is_switched_off(tmp_path, capfd):
    sinks = metrics(log_dir=str(tmp_path))
    sinks.sinks[0].close()
    sinks.log({"loss": 2.0}, 3)
    assert sinks.sinks == []
    assert "switched off" in capfd.readouterr().err
