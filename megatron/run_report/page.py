"""One HTML file that needs nothing else: no server, no network, no other file."""

import base64
import hashlib
import json
import math
import time
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from megatron.run_report.charts import Chart, Points, all_points, axes, main_charts, other_charts
from megatron.run_report.records import Run
from megatron.run_report.settings import Setting, settings
from megatron.run_report.summary import Fact, facts, moment, worth_showing

DIGITS = 6  # of values: more than a chart can show
PALETTE = 8  # colours of page.css; more runs have dashed lines


def page(runs: list[Run], title: str) -> str:
    """The report as HTML."""
    style, script = _asset("page.css"), _asset("page.js")
    charts = main_charts(runs)
    others, left_out = other_charts(runs)
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        # Whatever a name or a value of a run may contain: nothing else is run, and nothing is fetched.
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:",
        style=style,
        script=script,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        legend=_legend(runs),
        summary=_summary(runs) + _notes(runs),
        starts=_starts(runs),
        settings=_settings(runs),
        others_hint=_others_hint(len(others), left_out),
        data=_embedded(_data(runs, charts, others)),
    )


def _asset(name: str) -> str:
    return files("megatron.run_report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# What the charts are drawn from


def _data(runs: list[Run], charts: list[Chart], others: list[Chart]) -> dict[str, Any]:
    described = [_curve(number, run) for number, run in enumerate(runs)]
    for (key, number), points in all_points([*charts, *others], runs).items():
        described[number]["series"][key] = _numbers(points, described[number]["grids"])
    return {
        "charts": [_described(chart) for chart in charts],
        "others": [_described(chart) for chart in others],
        "runs": described,
    }


def _described(chart: Chart) -> dict[str, Any]:
    names = ("key", "title", "unit", "log", "zero", "events")
    return {name: getattr(chart, name) for name in names}


def _curve(number: int, run: Run) -> dict[str, Any]:
    iterations, tokens, seconds = axes(run)
    return {
        "name": run.name,
        "colour": number % PALETTE,
        "dashed": number // PALETTE % 2,
        "axes": {"iteration": iterations, "tokens": _short(tokens), "time": _short(seconds)},
        "resumed": [start.iteration for start in run.starts[1:]],
        "grids": [],
        "series": {},
    }


def _numbers(points: Points, grids: list[list[int]]) -> dict[str, Any]:
    """The points, with their iterations among the grids of the run, which most series share."""
    x = points.x.tolist()
    if x not in grids:
        grids.append(x)
    found: dict[str, Any] = {"x": grids.index(x), "y": _short(points.y)}
    if points.low is not None:
        found |= {"low": _short(points.low), "high": _short(points.high)}
    if points.last is not None:
        found["last"] = _rounded(points.last)
    if len(points.bad):
        found["bad"] = points.bad[:: max(1, len(points.bad) // 200)].tolist()
    return found


def _short(values: Iterable[float] | None) -> list[float | None] | None:
    if values is None:
        return None
    return [_rounded(float(value)) for value in values]


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


# What is plain HTML


def _legend(runs: list[Run]) -> str:
    if len(runs) == 1:
        return ""
    return "".join(
        f'<button type="button" class="run c{number % PALETTE}" data-run="{number}" aria-pressed="true">'
        f'<i class="{"dashed" if number // PALETTE % 2 else "solid"}"></i>{escape(run.name)}</button>'
        for number, run in enumerate(runs)
    )


def _summary(runs: list[Run]) -> str:
    all_facts = [facts(run) for run in runs]
    shown = worth_showing(all_facts)
    if len(runs) == 1:
        tiles = "".join(_tile(all_facts[0][number]) for number in shown)
        return f'<dl class="tiles">{tiles}</dl>'
    rows = []
    for number in shown:
        cells = "".join(_cell(own[number]) for own in all_facts)
        rows.append(f'<tr><th scope="row">{escape(all_facts[0][number].label)}</th>{cells}</tr>')
    return f'<div class="wide"><table class="summary">{_head("", runs)}{"".join(rows)}</table></div>'


def _tile(fact: Fact) -> str:
    detail = f"<small>{escape(fact.detail)}</small>" if fact.detail else ""
    return f"<div><dt>{escape(fact.label)}</dt><dd>{escape(fact.value)}{detail}</dd></div>"


def _cell(fact: Fact) -> str:
    detail = f"<small>{escape(fact.detail)}</small>" if fact.detail else ""
    return f"<td><span>{escape(fact.value)}</span>{detail}</td>"


def _head(corner: str, runs: list[Run]) -> str:
    """The first row of a table that has a column for each run."""
    names = (f'<i class="dot c{n % PALETTE}"></i>{escape(run.name)}' for n, run in enumerate(runs))
    return f"<tr><th>{corner}</th>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"


def _starts(runs: list[Run]) -> str:
    """The table of resumptions."""
    rows = []
    for run in runs:
        for number, start in enumerate(run.starts):
            if len(run.starts) == 1 and not start.iteration:
                continue  # the plain case
            cells = [
                run.name,
                "resumed" if number or start.iteration else "began",
                f"{start.iteration:,}",
                moment(start.time),
                f"{start.lost:,}" if start.lost else "",
                "" if start.devices is None else f"{start.devices:,}",
                "" if start.startup is None else f"{start.startup:.1f} s",
            ]
            rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    if not rows:
        return ""
    labels = ("Run", "", "After iteration", "When", "Iterations repeated", "Devices", "Preparation")
    head = "".join(f"<th>{label}</th>" for label in labels)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<div class="wide"><table class="starts"><tr>{head}</tr>{body}</table></div>'
    return f'<section id="starts"><h2>Starts</h2>{table}</section>'


def _notes(runs: list[Run]) -> str:
    """What was wrong with the files, where the reader begins."""
    return "".join(f'<p class="note">{escape(remark)}</p>' for run in runs for remark in _remarks(run))


def _remarks(run: Run) -> Iterable[str]:
    if run.unread:
        lines = "1 line was" if run.unread == 1 else f"{run.unread:,} lines were"
        yield f"{run.name}: {lines} no record and left out, as happens where a run is killed while it writes."
    if run.replaced:
        yield (
            f"{run.name}: {run.replaced:,} records of before the last start from iteration 0 were left out; give runs "
            "log_dirs of their own to keep them apart."
        )
    if not run.config:
        yield f"{run.name}: no neox_args.json lies beside its metrics, so its configuration is not known."


def _settings(runs: list[Run]) -> str:
    found = settings(runs)
    if not found:
        return ""
    differing = [setting for setting in found if setting.differs]
    changed = [setting for setting in found if setting.changed and not setting.differs]
    rest = [setting for setting in found if not setting.changed and not setting.differs]
    parts = []
    if differing:
        parts.append(f"<h3>Different in these runs</h3>{_table(differing, runs)}")
    elif len(runs) > 1:
        parts.append("<p>The configurations are the same.</p>")
    shared = "The same in all, and not the default" if len(runs) > 1 else "Other than the default"
    for label, group, is_open in ((shared, changed, len(runs) == 1), ("Defaults", rest, False)):
        if group:
            opened = " open" if is_open else ""
            heading = f"<summary>{label} <small>{len(group)}</small></summary>"
            parts.append(f"<details{opened}>{heading}{_table(group, runs)}</details>")
    return f'<section id="configuration"><h2>Configuration</h2>{"".join(parts)}</section>'


def _table(group: list[Setting], runs: list[Run]) -> str:
    # What is the same everywhere needs one column.
    side_by_side = any(setting.differs for setting in group)
    head = _head("Key", runs) if side_by_side else ""
    rows = []
    for setting in group:
        values = setting.values if side_by_side else [_known(setting, runs)]
        kind = ' class="differs"' if setting.differs else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f'<tr{kind}><th scope="row">{escape(setting.key)}</th>{cells}</tr>')
    return f'<div class="wide"><table class="settings">{head}{"".join(rows)}</table></div>'


def _others_hint(shown: int, left_out: int) -> str:
    if not shown:
        return ""
    more = f", {left_out:,} more are in metrics.jsonl" if left_out else ""
    return f"{shown:,} tags{more}; values of single parameters are left out"


def _known(setting: Setting, runs: list[Run]) -> str:
    """The value in the first run that has a configuration."""
    return next(value for value, run in zip(setting.values, runs, strict=True) if run.config)
