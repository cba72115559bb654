"""setup.py's ranges and the pins of requirements/ speak of the same packages."""

import importlib.util

import pytest
from packaging.requirements import Requirement

from tests.common.paths import ROOT

FOLDER = ROOT / "requirements"


def _setup():
    spec = importlib.util.spec_from_file_location("project_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pins(name: str) -> list[Requirement]:
    """All requirements of a file, files included by -r too."""
    found = []
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r"):
            found += _pins(line[2:].strip())
        elif line:
            found.append(Requirement(line))
    return found


def _file_of(extra: str) -> str:
    return f"requirements-{extra}.txt" if extra else "requirements.txt"


SETUP = _setup()
RANGES = {"": SETUP.INSTALL_REQUIRES, **SETUP.EXTRAS}


def test_every_extra_has_its_file_and_every_file_its_extra():
    assert {path.name for path in FOLDER.iterdir()} == {_file_of(extra) for extra in RANGES}


@pytest.mark.parametrize("extra", RANGES)
def test_pins_name_the_packages_of_setup_and_lie_in_their_ranges(extra):
    ranges = {item.name.lower(): item for item in map(Requirement, RANGES[extra])}
    pins = _pins(_file_of(extra))
    assert {pin.name.lower() for pin in pins} == set(ranges)
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert ranges[pin.name.lower()].specifier.contains(specifier.version), pin


def test_nothing_is_installed_from_a_repository_or_an_address():
    assert [str(pin) for extra in RANGES for pin in _pins(_file_of(extra)) if pin.url] == []
