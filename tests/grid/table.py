"""Writes docs/choices.md from the registry: `make docs`. test_grid.py runs every cell."""

from megatron.common.console import info
from megatron.common.files import atomic_write_text
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.features import refusals
from tests.common.paths import ROOT
from tests.grid.rows import COLUMNS, Row, rows

PAGE = ROOT / "docs" / "choices.md"
INTRODUCTION = """# Every choice in every layout

Written by `make docs` from the registry; `tests/grid` runs every cell. A cell names what a run of that choice does
in that layout, compared with a single process (losses, first gradients, evaluation, logits) or, for resuming, bit
for bit with the run that was not interrupted:

- **T** train, **E** evaluate, **G** generate with a cache, **R** save and resume;
- **g** generate by recomputing the whole sequence (`recompute: true`), for the reason under the number;
- **-** refused, for the reason under the number.

Layouts: `tp` tensor parallel (`model_parallel_size`), `sp` `sequence_parallel`, `pp` pipeline
(`pipe_parallel_size`), `dp` data parallel, `zero1` `zero_optimization.stage: 1`.
"""


class Notes:
    """Reasons, numbered in the order in which they come up."""

    def __init__(self):
        self.numbers: dict[str, int] = {}

    def number(self, lines: list[str]) -> str:
        found = [self.numbers.setdefault(line, len(self.numbers) + 1) for line in lines]
        return ", ".join(str(number) for number in found)


def cell(row: Row, column: str, notes: Notes) -> str:
    neox_args = NeoXArgs.from_dict(row.config(column))
    if refused := list(refusals(neox_args)):
        return f"- ({notes.number(refused)})"
    if uncached := list(refusals(neox_args, cached=True)):
        return f"TEgR ({notes.number(uncached)})"
    return "TEGR"


def page() -> str:
    notes, lines, kind = Notes(), [INTRODUCTION], None
    for row in rows():
        if row.kind != kind:
            kind = row.kind
            lines += [f"\n## {kind.capitalize()}\n", f"| {kind} | {' | '.join(COLUMNS)} |"]
            lines += ["|---" * (len(COLUMNS) + 1) + "|"]
        cells = (cell(row, column, notes) for column in COLUMNS)
        lines += [f"| {row.name} | {' | '.join(cells)} |"]
    if notes.numbers:
        lines += ["\n## Reasons\n", *(f"{number}. {line}" for line, number in notes.numbers.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    atomic_write_text(PAGE, page())
    info(f"wrote {PAGE}")
