"""The results of a column, run when its first cell is asked for."""

import functools
import tempfile
from pathlib import Path

import torch

from tests.common.distributed import DistributedTestError, run_distributed
from tests.grid.rows import Row, processes
from tests.grid.worker import run_cells

SECONDS_PER_CELL = 30.0


@functools.cache
def column_results(column: str, wanted: tuple[Row, ...]) -> dict[str, list[dict]]:
    """Row name -> the results of the ranks, for the wanted rows.

    A cell that fails ends its job, so the next job goes on behind it.
    """
    numbered = list(enumerate((row, column) for row in wanted))
    results: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory(prefix="grid-") as folder:
        while remaining := [cell for cell in numbered if str(cell[1][0]) not in results]:
            limit = 60 + SECONDS_PER_CELL * len(remaining)
            message = ""
            try:
                run_distributed(run_cells, processes(column), remaining, folder, timeout=limit)
            except DistributedTestError as failure:
                message = str(failure)
            done = _collect(remaining, folder, processes(column))
            if message and len(done) < len(remaining):
                failed = remaining[len(done)][1][0]
                done[str(failed)] = [{"error": message}]
            results |= done
    return results


def _collect(cells: list, folder: str, ranks: int) -> dict[str, list[dict]]:
    """The results of the cells that all ranks have finished, up to the first that one has not."""
    done: dict[str, list[dict]] = {}
    for number, (row, _) in cells:
        files = [Path(folder, f"{number}.{rank}") for rank in range(ranks)]
        if not all(file.exists() for file in files):
            break
        found = [torch.load(file, weights_only=False) for file in files]
        if any("error" in result for result in found):
            break
        done[str(row)] = found
    return done
