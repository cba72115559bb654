"""The charts as PNG files."""

import re
from pathlib import Path

from megatron.common.files import atomic_path, make_folder
from megatron.common.optional import require
from megatron.run_report.charts import Chart, Points, all_points, main_charts
from megatron.run_report.records import Run

COLOURS = ("#2867c9", "#d0601d", "#1b8a68", "#a93b94", "#8a6a10", "#5f55c4", "#c2353c", "#2d8799")


def draw_pictures(runs: list[Run], folder: str | Path) -> list[Path]:
    """Write a PNG of each main chart, over iterations; returns their paths.

    Raises: MissingPackageError without matplotlib; NeoXError if the folder cannot be made.
    """
    matplotlib = require("matplotlib", "plot", "--png")
    matplotlib.use("Agg")
    folder = make_folder(folder, "--png")
    charts = main_charts(runs)
    points = all_points(charts, runs)
    written = []
    for chart in charts:
        path = folder / (re.sub(r"[^\w.-]+", "_", chart.key) + ".png")
        with atomic_path(path) as temporary:
            _draw(
                chart, runs, {n: found for (key, n), found in points.items() if key == chart.key}, temporary
            )
        written.append(path)
    return written


def _draw(chart: Chart, runs: list[Run], points: dict[int, Points], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, found in points.items():
        colour = COLOURS[number % len(COLOURS)]
        name = re.sub(r"([$\\])", r"\\\1", runs[number].name)  # matplotlib reads some characters as formulas
        if chart.events:
            axes.vlines(found.x, 0, found.y, colors=colour, linewidth=2, label=name)
        else:
            line = "--" if number // len(COLOURS) % 2 else "-"
            marker = "." if len(found.x) <= 40 else ""
            axes.plot(
                found.x, found.y, color=colour, label=name, marker=marker, linestyle=line, linewidth=1.4
            )
        if found.low is not None and found.high is not None:
            axes.fill_between(found.x, found.low, found.high, color=colour, alpha=0.16, linewidth=0)
        for start in runs[number].starts[1:]:
            axes.axvline(start.iteration, color=colour, linewidth=0.8, linestyle=(0, (3, 4)))
    axes.set_title(chart.title, loc="left", fontsize=11)
    axes.set_xlabel("iteration")
    axes.set_ylabel(chart.unit)
    if chart.zero:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png")
