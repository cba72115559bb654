"""The rows and columns of the grid, and what a cell is expected to do."""

from dataclasses import dataclass, field
from typing import Any

from megatron import registry
from megatron.neox_arguments.features import FEATURES, SELECTED_BY, settings_of
from tests.distributed.layouts import BASE

COLUMNS = {
    "single": {},
    "tp2": {"model_parallel_size": 2},
    "pp2": {"pipe_parallel_size": 2},
    "tp2+sp": {"model_parallel_size": 2, "sequence_parallel": True},
    "dp2+zero1": {"zero_optimization": {"stage": 1}},
}
# What is seen besides with parallel attention and MLP branches.
ALSO_PARALLEL = ("attention", "router", "norm")
SMALL = {**BASE, "num_layers": 2, "gpt_j_residual": False, "weight_decay": 0.01}


@dataclass(frozen=True)
class Row:
    """A choice of the registry, or a feature, with the config that uses it."""

    kind: str
    name: str
    settings: dict[str, Any] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"

    def config(self, column: str) -> dict[str, Any]:
        """The config of the cell in a column."""
        return {**SMALL, **self.settings, **COLUMNS[column], "global_num_gpus": processes(column)}

    def reference(self, column: str) -> bool:
        """Whether the cell's training must equal the single process's.

        A router that looks at all tokens of a rank at once sees others when the batch is cut over replicas.
        """
        return column != "single" and not (self.kind == "router" and column == "dp2+zero1")


def processes(column: str) -> int:
    return 1 if column == "single" else 2


def rows() -> list[Row]:
    """All rows, in the order of the table; none for choices of optional packages."""
    found = []
    for kind in SELECTED_BY:
        for name in registry.names(kind):
            if registry.entry(kind, name).needs:
                continue
            settings = settings_of(kind, name)
            found.append(Row(kind, name, settings))
            if kind in ALSO_PARALLEL:
                found.append(Row(kind, f"{name}, gpt_j_residual", {**settings, "gpt_j_residual": True}))
    for name, feature in FEATURES.items():
        if feature.example:
            found.append(Row("option", name, dict(feature.example)))
    return found
