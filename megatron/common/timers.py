"""Named stopwatches that never make the host wait for the device before somebody asks for the time."""

import time

from megatron.common import activity, device
from megatron.common.console import print_rank_0


class Timer:
    """A stopwatch: device events on an accelerator, the monotonic clock on CPU."""

    def __init__(self, name: str):
        self.name = name
        self._spans: list[tuple] = []
        self._elapsed = 0.0
        self._started = None
        # Looked up once: it takes longer than a start and a stop.
        self._new_event = device.event_maker()

    @property
    def running(self) -> bool:
        return self._started is not None

    def start(self) -> None:
        """Start the watch; it must not be running."""
        assert self._started is None, f"timer {self.name!r} is already running"
        self._started = self._now()
        activity.enter(self.name)

    def stop(self) -> None:
        """Stop the watch; it must be running."""
        assert self._started is not None, f"timer {self.name!r} is not running"
        self._spans.append((self._started, self._now()))
        self._started = None
        activity.leave(self.name)

    def reset(self) -> None:
        """Forget all time."""
        self._spans, self._elapsed, self._started = [], 0.0, None

    def elapsed(self, reset: bool = True) -> float:
        """Seconds measured so far, the running span included; a running watch goes on."""
        running = self._started is not None
        if running:
            self.stop()
        self._elapsed += sum(_seconds(start, end) for start, end in self._spans)
        self._spans = []
        total = self._elapsed
        if reset:
            self.reset()
        if running:
            self.start()
        return total

    def _now(self):
        if self._new_event is None:
            return time.perf_counter()
        event = self._new_event()
        event.record()
        return event


def _seconds(start, end) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000.0


class Timers:
    """A group of timers, made on first use: `timers("forward").start()`.

    Args: use_wandb, tensorboard_writer, comet_experiment: where `write` sends the times to.
    """

    def __init__(self, use_wandb: bool = False, tensorboard_writer=None, comet_experiment=None):
        self.timers: dict[str, Timer] = {}
        self.use_wandb = use_wandb
        self.tensorboard_writer = tensorboard_writer
        self.comet_experiment = comet_experiment

    def __call__(self, name: str) -> Timer:
        return self.timers.setdefault(name, Timer(name))

    def __contains__(self, name: str) -> bool:
        return name in self.timers

    def seconds(self, names: list[str], normalizer: float = 1.0, reset: bool = False) -> dict[str, float]:
        """Elapsed seconds of the existing timers among `names`, divided by `normalizer`."""
        assert normalizer > 0.0
        return {
            name: self.timers[name].elapsed(reset=reset) / normalizer for name in names if name in self.timers
        }

    def write(self, names: list[str], iteration: int, normalizer: float = 1.0, reset: bool = False) -> None:
        """Send `timers/<name>` in seconds to the trackers."""
        for name, value in self.seconds(names, normalizer, reset).items():
            if self.tensorboard_writer is not None:
                self.tensorboard_writer.add_scalar(f"timers/{name}", value, iteration)
            if self.comet_experiment is not None:
                self.comet_experiment.log_metric(f"timers/{name}", value, step=iteration)
            if self.use_wandb:
                import wandb

                wandb.log({f"timers/{name}": value}, step=iteration)

    def log(self, names: list[str], normalizer: float = 1.0, reset: bool = True) -> None:
        """Print the times in milliseconds on rank 0, if there are any."""
        times = self.seconds(names, normalizer, reset)
        if times:
            print_rank_0(
                "time (ms)" + "".join(f" | {name}: {1000 * value:.2f}" for name, value in times.items())
            )
