"""The page holds everything it needs, and nothing that a run could have put into it is code."""

import json
import re
from html.parser import HTMLParser

import pytest

from megatron.run_report.page import page
from megatron.run_report.pictures import draw_pictures
from megatron.run_report.records import read_runs
from tests.common.components import needs_package
from tests.unit.run_report.logs import NAN, start, step, steps, write_log

EVIL = '</script><img src=x onerror="alert(1)">&<b>'


class Reader(HTMLParser):
    """The elements of a page, and the text in its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def made(*folders) -> str:
    return page(read_runs([str(folder) for folder in folders]), "title")


def data_of(text: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1)
    )


def test_names_values_and_tags_are_shown_as_they_are_and_never_as_html(tmp_path):
    # A name of a folder cannot have a slash.
    folder = tmp_path / EVIL.replace("/", "")
    write_log(folder, [step(1, 1.0, 2.0, **{EVIL: 1.0})], {"vocab_file": EVIL, EVIL: 1, "seed": 1})
    text = page(read_runs([str(folder)]), EVIL)
    reader = Reader(text)
    assert "img" not in reader.tags and "b" not in reader.tags and reader.tags.count("script") == 2
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    assert EVIL in reader.cells
    assert [chart["title"] for chart in data_of(text)["others"] if "onerror" in chart["title"]] == [EVIL]


def test_the_page_refers_to_nothing_outside(tmp_path):
    text = made(write_log(tmp_path / "run", steps(20), {"seed": 1}))
    addresses = [value for name, value in Reader(text).attributes if name in ("src", "href")]
    assert addresses == ["data:,"]
    assert not re.search(r"url\(|@import|import\(", text)
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text


def test_configurations_differ_where_they_differ(tmp_path):
    same = {"hidden_size": 64, "seed": 1234, "num_layers": 2, "config_files": {"a.yml": "long"}}
    folders = [
        write_log(tmp_path / "one", steps(5), {**same, "lr": 0.1}),
        write_log(tmp_path / "two", steps(5), {**same, "lr": 0.2, "optimizer": {"type": "Lion"}}),
        write_log(tmp_path / "unknown", steps(5)),
    ]
    text = made(*folders)
    rows = re.findall(r'<tr class="differs"><th scope="row">(.*?)</th>(.*?)</tr>', text)
    assert [key for key, _ in rows] == ["lr", "optimizer"]
    assert re.findall("<td>(.*?)</td>", rows[0][1]) == ["0.1", "0.2", ""]
    assert '<tr><th scope="row">hidden_size</th><td>64</td></tr>' in text
    assert "config_files" not in text
    assert "unknown: no neox_args.json lies beside its metrics" in text


def test_starts_and_faults_of_the_files_are_told(tmp_path):
    records = [*steps(20), start(10, 2000.0), *steps(30, first=11, time=2000.0)]
    text = made(write_log(tmp_path / "run", records, {"train_iters": 40}, tail='{"iteration": 31, "tr'))
    cells = Reader(text).cells
    row = cells.index("resumed")
    assert cells[row + 1 : row + 4] == ["10", "1970-01-01 00:33 UTC", "10"]
    assert "run: 1 line was no record" in text
    assert data_of(text)["runs"][0]["resumed"] == [10]


@pytest.mark.parametrize(
    "records",
    [[], [start(0, 1.0)], [step(1, 1.0, 2.0)], [step(n, n, NAN) for n in range(1, 9)],
     [{"iteration": 5, "validation/lm_loss": float("inf")}], [{"iteration": 10**15, "train/lm_loss": -1e300}]],
    ids=["nothing", "only begun", "one point", "all NaN", "infinite, without times", "large"],
)  # fmt: skip
def test_a_run_with_next_to_nothing_has_a_page(tmp_path, records):
    text = made(write_log(tmp_path / "run", records))
    data = data_of(text)
    assert len(data["runs"]) == 1 and "<h2>" not in text  # no headings of what is not there
    assert bool(data["charts"]) == any("loss" in tag for record in records for tag in record)


def test_eight_long_runs_fit_into_a_megabyte(tmp_path):
    folder = write_log(tmp_path / "run", [start(0, 0.0), *steps(12_500)], {"seed": 1})
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    folders = [tmp_path / f"run{number}" for number in range(8)]
    for number, path in enumerate(folders):
        write_log(path, [], {"seed": number}).joinpath("metrics.jsonl").write_text("".join(lines))
    text = made(*folders)
    assert len(text) < 1_000_000
    losses = [run["series"]["loss"] for run in data_of(text)["runs"]]
    assert len(losses) == 8 and all(len(loss["y"]) == 600 for loss in losses)


def test_every_chart_is_a_picture_too(tmp_path):
    needs_package("matplotlib")
    folders = [write_log(tmp_path / name, steps(2000)) for name in ("one $x_1$ \\", "two")]
    paths = draw_pictures(read_runs([str(folder) for folder in folders]), tmp_path / "pictures")
    assert {"loss.png", "learning_rate.png", "mfu.png", "memory.png"} <= {path.name for path in paths}
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
