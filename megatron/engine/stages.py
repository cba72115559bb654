"""How long the stages of a pipeline take for the parts of an iteration."""

from collections.abc import Callable
from functools import wraps

# DeepSpeed's instructions -> the timers that a run without a pipeline has, and two more. What a stage waits for its
# neighbours is part of its exchange with them.
_TIMERS = {
    "LoadMicroBatch": "batch generator",
    "ForwardPass": "forward",
    "BackwardPass": "backward",
    "ReduceTiedGrads": "gradient reduction",
    "ReduceGrads": "gradient reduction",
    "OptimizerStep": "optimizer",
    "SendActivation": "stage exchange",
    "RecvActivation": "stage exchange",
    "SendGrad": "stage exchange",
    "RecvGrad": "stage exchange",
}


def time_instructions(engine, timers) -> None:
    """Run the timers around the instructions of a pipeline engine while it trains, but not while it evaluates."""
    engine._INSTRUCTION_MAP = {
        instruction: _timed(function, timers, _TIMERS[instruction.__name__])
        if instruction.__name__ in _TIMERS
        else function
        for instruction, function in type(engine)._INSTRUCTION_MAP.items()
    }


def _timed(function: Callable, timers, name: str) -> Callable:
    # DeepSpeed binds the function to the engine, as it does with its own.
    @wraps(function)
    def timed(self, *args, **kwargs):
        if not self.module.training:
            return function(self, *args, **kwargs)
        timers(name).start()
        try:
            return function(self, *args, **kwargs)
        finally:
            timers(name).stop()

    return timed
