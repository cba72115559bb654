"""Imports point down the floors, and nothing imports in a circle."""

import ast
import re

from tests.architecture.sources import PACKAGE, find_cycle, import_graph, library, sources
from tests.common.paths import ROOT

# The floors of the house, lowest first. A unit (module or package below the package root) may import units of lower
# floors, and units of its own floor as long as no cycle arises.
FLOORS = (
    ("registry", "common"),
    ("neox_arguments", "launcher"),
    ("mpu", "fused_kernels", "tokenizer", "serving"),
    ("model", "data", "optimizers", "learning_rates"),
    ("objectives", "families"),
    (
        "initialize",
        "engine",
        "checkpointing",
        "conversion",
        "logging",
        "generation",
        "evaluation",
        "run_report",
    ),
    ("gradient_noise_scale",),
    ("training", "mup_substitute", "text_generation_utils", "planning", "utils", "devutil"),
)
# Methods that the public config object has had from the beginning, although they speak of what stands above it.
DOORS = {("megatron.neox_arguments.arguments", "megatron.tokenizer")}
FLOOR_OF = {unit: number for number, units in enumerate(FLOORS) for unit in units}


def unit_of(module: str) -> str:
    """`megatron.model.norms` -> `model`; the package root itself -> "" """
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_unit_of_the_package_has_a_floor():
    units = {unit_of(source.module) for source in library()} - {""}
    assert units - set(FLOOR_OF) == set()


def test_the_page_about_the_architecture_names_every_unit():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [unit for unit in FLOOR_OF if not re.search(rf"\b{unit}\b", page)] == []


def points_up(found) -> bool:
    """The package root may offer names of upper floors (lazily), but nobody inside may use them through it."""
    importer, imported = unit_of(found.importer), unit_of(found.imported)
    if importer == "":
        return False
    if (found.importer, found.imported) in DOORS:
        return False
    return imported == "" or FLOOR_OF[imported] > FLOOR_OF[importer]


def test_imports_point_down():
    assert [found for found in import_graph() if points_up(found)] == []


def test_units_never_import_in_a_circle():
    edges = {(unit_of(found.importer), unit_of(found.imported)) for found in import_graph()}
    assert find_cycle({(a, b) for a, b in edges if a != b and a and b}) == []


def test_modules_never_import_in_a_circle():
    assert (
        find_cycle(
            {(found.importer, found.imported) for found in import_graph() if found.importer != PACKAGE}
        )
        == []
    )


def test_nothing_inside_imports_the_public_helper_module():
    users = {found.importer for found in import_graph() if found.imported == f"{PACKAGE}.utils"}
    assert users == set()


def test_imports_are_absolute():
    relative = [
        f"{source.path}:{node.lineno}"
        for source in sources(f"{PACKAGE}/**/*.py", "tests/**/*.py", "tools/**/*.py", "*.py")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []
