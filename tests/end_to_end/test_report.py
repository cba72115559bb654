"""The report of a real run, looked at in a real browser."""

import re

import pytest

from tests.common.browser import browser
from tests.common.components import find_program, needs_package, needs_program
from tests.common.runs import prepare_corpus, run_command, write_config
from tests.unit.run_report.logs import NAN, step, steps, write_log

SHOWN = "document.querySelectorAll('#chart-{} {}').length"
READ = "document.querySelector('#chart-{} .read').innerText"


@pytest.fixture(scope="module")
def tab():
    needs_program("chromium")
    with browser(find_program("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was stopped and went on from an earlier checkpoint, and two others that never were."""
    directory = tmp_path_factory.mktemp("report")
    settings = {
        "data_path": prepare_corpus(directory, documents=20), "save": "saved", "load": "saved", "checkpoint_factor": 4,
        "train_iters": 12, "lr_decay_iters": 12, "log_interval": 2, "eval_interval": 4, "eval_iters": 1,
        "peak_theoretical_tflops": 0.1,
    }  # fmt: skip
    for name, more in (("first.yml", {"exit_interval": 6}), ("second.yml", {"iteration": 4})):
        run_command(["deepy.py", "train.py", write_config(directory, name, **settings, **more)], directory)
    config = {"train_iters": 6000, "optimizer": {"type": "Lion"}, "seed": 1234}
    broken = [*steps(3000), *(step(n, 1000.0 + n, NAN) for n in range(3001, 3500))]
    write_log(directory / "<i>long & odd", broken, config, tail='{"iter')
    write_log(directory / "empty", [])
    return directory


def test_a_run_and_its_resumption_are_one_page(folder, tab, tmp_path):
    needs_package("matplotlib")
    command = ["tools/report.py", "saved", "-o", tmp_path / "report.html", "--png", tmp_path / "png"]
    run_command(command, folder)
    tab.open(tmp_path / "report.html")
    title = "document.querySelector('h1').innerText"
    assert tab.evaluate(title) == "saved"
    summary = tab.evaluate("document.querySelector('#summary').innerText")
    assert "12\ncomplete" in summary and re.search(r"Restarts\s+1\s+2 iterations repeated", summary)
    assert "MFU" in summary and "3 saves" in summary
    for chart in ("loss", "learning_rate", "gradient_norm", "throughput", "mfu", "memory", "data_wait"):
        assert tab.evaluate(SHOWN.format(chart, "path.curve")) == 1, chart
        assert tab.evaluate(SHOWN.format(chart, "circle.point")) == 6, chart
    assert tab.evaluate(SHOWN.format("validation", "circle.point")) == 3
    assert tab.evaluate(SHOWN.format("save_stall", "line.stem")) == 3
    assert tab.evaluate(SHOWN.format("loss", "line.resumed")) == 1
    assert tab.complaints == [] and tab.requests == [(tmp_path / "report.html").as_uri()]
    assert (tmp_path / "png" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_reader_can_point_switch_axes_and_hide_runs(folder, tab, tmp_path):
    runs = ["saved", "<i>long & odd", "empty"]
    run_command(["tools/report.py", *runs, "-o", tmp_path / "report.html"], folder)
    tab.open(tmp_path / "report.html")
    names = "[...document.querySelectorAll('.run')].map(button => button.innerText)"
    assert tab.evaluate(names) == runs
    assert tab.evaluate(SHOWN.format("loss", "path.curve")) == 2
    assert (
        tab.evaluate(SHOWN.format("loss", "path.range")) == 1 < tab.evaluate(SHOWN.format("loss", "path.bad"))
    )
    assert "not finite" in tab.evaluate(READ.format("loss"))

    tab.hover("#chart-throughput svg", across=0.5)
    # All charts show the same place; one of the runs ended long before it.
    place = tab.evaluate(READ.format("loss"))
    assert re.fullmatch(r"iteration 1,\d{3}\s+ended\s+[\d.]+ \([\d.]+ to [\d.]+\)", place), place
    assert tab.evaluate(SHOWN.format("memory", "line.cross")) == 1

    tab.click("[data-axis=tokens]")
    tab.hover("#chart-throughput svg", across=0.5)
    assert re.match(r"1\d\d\.?\d* k tokens", tab.evaluate(READ.format("loss")))
    before = tab.evaluate("document.querySelector('#chart-loss path.curve').getAttribute('d')")
    tab.click("#chart-loss .log")
    assert tab.evaluate("document.querySelector('#chart-loss path.curve').getAttribute('d')") != before
    tab.click("[data-run='1']")
    assert tab.evaluate(SHOWN.format("loss", "path.curve")) == 1

    differing = "[...document.querySelectorAll('tr.differs > th')].map(cell => cell.innerText)"
    assert {"optimizer", "train_iters"} <= set(tab.evaluate(differing))
    assert "seed" not in tab.evaluate(differing)
    tab.click("#others summary")
    assert tab.evaluate("document.querySelectorAll('#others figure').length") > 3
    assert tab.complaints == []


def test_dark_and_light_readers_see_the_page_in_their_colours(folder, tab, tmp_path):
    run_command(["tools/report.py", "saved", "-o", tmp_path / "report.html"], folder)
    pictures = {}
    for dark in (False, True):
        tab.open(tmp_path / "report.html", dark=dark, width=500)
        paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        assert (tab.evaluate(paper) < 60) is dark
        # Nothing is cut off on a narrow screen.
        assert tab.evaluate("document.documentElement.scrollWidth") <= 500
        tab.screenshot(tmp_path / "page.png")
        pictures[dark] = (tmp_path / "page.png").read_bytes()
    assert pictures[False] != pictures[True] and all(len(picture) > 20_000 for picture in pictures.values())
    assert tab.complaints == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist: name the folder"),
        (["saved", "-o", "saved"], "--output: saved is there and is no file"),
    ],
)
def test_a_mistake_gets_one_line(folder, arguments, message):
    done = run_command(["tools/report.py", *arguments], folder, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
