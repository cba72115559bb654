"""What an engine holds of each parameter."""

import pytest

from megatron.engine.parts import EngineParts


class Engine:
    def __init__(self, stage: int):
        self.stage = stage

    def zero_optimization_stage(self) -> int:
        return self.stage


@pytest.mark.parametrize("stage", [0, 1])
def test_a_pipeline_stage_where_nothing_trains_has_no_sums(stage):
    """Those behind a soft prompt, for one."""
    assert EngineParts(Engine(stage)).logical_sums([]).shape == (0, 3)
