"""Metrics to a list of sinks."""

import torch

from megatron.common.console import warn
from megatron.registry import lookup, names


class Metrics:
    """Sends scalars to every tracker that the config asks for; most of them have a sink on global rank 0 only."""

    def __init__(self, neox_args):
        self.sinks = []
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        for name in names("log sink"):
            sink = lookup("log sink", name)
            if sink.wanted(neox_args, rank):
                self._open(sink, neox_args)

    def log(self, values: dict[str, float | None], step: int) -> None:
        """Log scalars under their tags at an iteration; None is skipped. A failing sink is dropped with a warning."""
        present = {name: float(value) for name, value in values.items() if value is not None}
        for sink in list(self.sinks):
            self._guarded(sink, lambda sink=sink: sink.log(present, step))

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind, value, trace) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Let no value be lost. Args: failed: the run ends with an error."""
        for sink in list(self.sinks):
            self._guarded(sink, lambda sink=sink: sink.close(failed))

    # A tracker's fault, whatever it is, must not end the run.

    def _open(self, sink_class, neox_args) -> None:
        try:
            self.sinks.append(sink_class(neox_args))
        except Exception as error:
            _switched_off(sink_class, error)

    def _guarded(self, sink, action) -> None:
        try:
            action()
        except Exception as error:
            _switched_off(type(sink), error)
            self.sinks.remove(sink)


def _switched_off(sink_class: type, error: Exception) -> None:
    """Say so in one line; some packages raise several."""
    reason = " ".join(str(error).split()) or type(error).__name__
    warn(f"{sink_class.__name__} failed and is switched off: {reason}")


def tb_wandb_log(
    key: str,
    value,
    iteration_no: int,
    use_wandb: bool,
    tensorboard_writer=None,
    comet_experiment=None,
    all_ranks: bool = False,
) -> None:
    """Log one scalar to the trackers handed in, from rank 0 unless `all_ranks`; None is skipped."""
    if value is None:
        return
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0 and not all_ranks:
        return
    if tensorboard_writer is not None:
        tensorboard_writer.add_scalar(key, value, iteration_no)
    if comet_experiment is not None:
        comet_experiment.log_metric(key, value, step=iteration_no)
    if use_wandb:
        import wandb

        wandb.log({key: value}, step=iteration_no)
