"""What users of GPT-NeoX import is here, under the same names, with the same parameters."""

import importlib
import inspect
import re

import pytest

from tests.common.paths import ROOT

NAME = re.compile(r"([\w.]+)(\(([\w, ]*)\))?")


def surface() -> list[tuple[str, str, list[str] | None]]:
    """(module, dotted name, parameters or None) of every entry of public_surface.txt."""
    entries, module = [], ""
    text = (ROOT / "tests/architecture/public_surface.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith(" "):
            module, line = line.split(":", 1)
        for name, call, parameters in NAME.findall(line):
            entries.append(
                (module, name, [p.strip() for p in parameters.split(",") if p.strip()] if call else None)
            )
    return entries


SURFACE = surface()


def problem_of(module: str, name: str, parameters: list[str] | None) -> str | None:
    """What is wrong with a public name, if anything."""
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        return f"{module}.{name}: {error}"
    if parameters is None:
        return None
    own = [p for p in inspect.signature(found).parameters if p != "self"]
    return None if own[: len(parameters)] == parameters else f"{module}.{name} takes {own}, not {parameters}"


@pytest.mark.parametrize("module", sorted({module for module, _, _ in SURFACE}))
def test_public_names_are_importable_with_their_parameters(module):
    problems = [problem_of(*entry) for entry in SURFACE if entry[0] == module]
    assert [problem for problem in problems if problem] == []


def test_the_list_is_read_whole():
    assert len(SURFACE) > 240
    assert ("megatron.mpu", "set_model_parallel_rank", ["rank"]) in SURFACE
    assert ("megatron.mpu", "divide", None) in SURFACE
