"""Every command of the README runs, in its order, on a machine without GPU (P25), with shorter training."""

import json
import re
from pathlib import Path

import pytest

from tests.common.paths import ROOT
from tests.common.runs import meeting
from tests.common.terminal import CTRL_C, CTRL_D, Terminal
from tests.end_to_end.sandbox import make_sandbox, run_script, shorten

BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
LOSS = re.compile(r"lm_loss: (\S+)")


def blocks() -> list[str]:
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """(directory, outputs of the README's blocks); run one after another, as a reader would."""
    directory = make_sandbox(tmp_path_factory.mktemp("readme") / "project")
    config = directory / "configs/quickstart.yml"
    shorten(config, train_iters=40, lr_decay_iters=40, eval_interval=10, eval_iters=1)
    outputs, activate = [], ""
    for block in blocks():
        outputs.append(run_script(activate + block, directory))
        if "activate" in block:
            activate = block
    return directory, outputs


def output_of(tour, text: str) -> str:
    """What the block that has `text` in it has shown."""
    return next(output for block, output in zip(blocks(), tour[1], strict=True) if text in block)


def test_the_quickstart_trains_saves_and_samples(tour):
    directory, _ = tour
    output = output_of(tour, "make quickstart")
    losses = [float(value) for value in LOSS.findall(output)]
    assert losses[-1] < losses[0] - 1.0
    assert "validation results" in output and "test results" in output
    assert (directory / "checkpoints/quickstart/latest").read_text().strip() == "global_step40"
    assert list((directory / "tensorboard/quickstart").rglob("events.*"))
    assert len((directory / "samples/quickstart.jsonl").read_text().splitlines()) == 5
    assert "--- sample 5" in output


def test_the_quickstart_shows_every_command_that_it_runs(tour):
    shown = [line for line in output_of(tour, "make quickstart").splitlines() if line.startswith("$ ")]
    for command in (
        "prepare_data.py stdlib",
        "deepy.py train.py",
        "deepy.py generate.py",
        "tools/show_samples.py",
    ):
        assert any(command in line for line in shown)


def test_running_the_quickstart_again_resumes_and_loses_nothing(tour):
    directory, _ = tour
    shorten(directory / "configs/quickstart.yml", train_iters=50)
    output = run_script("make quickstart", directory)
    iterations = re.findall(r"iteration +(\d+)/ +50", output)
    assert iterations == ["50"]
    assert (directory / "checkpoints/quickstart/latest").read_text().strip() == "global_step50"


def test_prompts_are_continued_in_their_order_in_either_layout(tour):
    directory, _ = tour
    one, two = (
        [json.loads(line) for line in (directory / name).read_text().splitlines()]
        for name in ("continued.jsonl", "continued_by_two.jsonl")
    )
    assert [record["context"] for record in one] == ["def main():", "import os", "class Queue:"]
    assert [record["text"] for record in one] == [record["text"] for record in two]


@pytest.mark.parametrize("layout", [[], ["configs/tensor2.yml"]], ids=["one process", "two"])
def test_the_conversation_is_held_on_a_terminal(tour, layout):
    directory, _ = tour
    command = [
        ".venv/bin/python",
        "deepy.py",
        "generate.py",
        "configs/quickstart.yml",
        "configs/interactive.yml",
    ]
    with Terminal([*command, *layout], cwd=directory, env=meeting()) as terminal:
        terminal.expect("Context prompt >>> ", timeout=120)
        terminal.type("def main(\n")
        terminal.expect("\r\ndef main(")
        terminal.expect("Context prompt >>> ")
        terminal.type("import \n")
        terminal.expect("\r\nimport ")
        # Twice, as an impatient person does: the first may come too late for the sample, none may end the job.
        terminal.type(CTRL_C)
        terminal.type(CTRL_C)
        terminal.expect("Context prompt >>> ")
        terminal.type("class \n")
        terminal.expect("\r\nclass ")
        terminal.expect("Context prompt >>> ")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0, terminal.output


def test_own_text_is_trained_on(tour):
    directory, _ = tour
    assert (directory / "checkpoints/mine/latest").read_text().strip() == "global_step40"
    assert "lm_loss" in output_of(tour, "configs/mine.yml")


def test_the_plan_of_a_large_model_is_shown(tour):
    assert "20,554,567,680" in output_of(tour, "20B.yml")


def anchors(page: Path) -> set[str]:
    """What a link may point at within a page: its headings in small letters, with hyphens for spaces."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_all_links_of_the_documentation_lead_somewhere():
    missing = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link, anchor in LINK.findall(page.read_text(encoding="utf-8")):
            target = page.parent / link if link else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                missing.append(f"{page.name}: {link}#{anchor}")
    assert missing == []
