"""Rules that a linter does not know."""

import ast
import subprocess
import sys

import pytest

from tests.architecture.sources import PACKAGE, library, scripts, sources
from tests.common.paths import ROOT

CONSOLE = f"{PACKAGE}/common/console.py"
EXIT_DOOR = f"{PACKAGE}/common/errors.py"  # run_main, by which the entry scripts leave
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def calls(source):
    """(line, dotted name of the called thing) of every call in a file."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def offenders(files, is_offence):
    return [
        f"{source.path}:{line} {name}" for source in files for line, name in calls(source) if is_offence(name)
    ]


def test_only_the_console_prints():
    files = [source for source in library() if source.path != CONSOLE]
    assert offenders(files, lambda name: name in ("print", "pprint", "pprint.pprint")) == []


def test_the_library_never_exits():
    # os._exit is how a forked worker ends; it is no way out for a program.
    files = [source for source in library() if source.path != EXIT_DOOR]
    assert offenders(files, lambda name: name in ("exit", "quit", "sys.exit")) == []


def test_devices_are_asked_for_at_the_device_door():
    assert (
        offenders([*library(), *scripts()], lambda name: name.endswith(".cuda") and name != "torch.cuda")
        == []
    )


def test_pickles_are_never_loaded_with_code():
    files = [*library(), *scripts()]
    assert (
        offenders(files, lambda name: name in ("pickle.load", "pickle.loads", "yaml.load", "yaml.full_load"))
        == []
    )


def test_torch_load_takes_tensors_only():
    loads = [
        (source.path, node)
        for source in [*library(), *scripts()]
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert [path for path, call in loads if "weights_only=True" not in ast.unparse(call)] == []


def test_files_stay_readable_in_one_sitting():
    files = [*library(), *scripts(), *sources("tests/**/*.py")]
    assert {s.path: lines for s in files if (lines := s.text.count("\n")) >= MAX_FILE_LINES} == {}


def test_functions_stay_readable_on_one_screen():
    def body_lines(node):
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        return node.end_lineno - first.lineno + 1

    long = [
        f"{source.path}:{node.lineno} {node.name} has {body_lines(node)} lines"
        for source in [*library(), *scripts()]
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and body_lines(node) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_no_work_is_left_for_later():
    marks = ("TODO", "FIXME", "XXX", "HACK")
    files = [*library(), *scripts(), *sources("tests/[!a]*/**/*.py")]
    left = [
        f"{s.path}:{n}"
        for s in files
        for n, line in enumerate(s.text.splitlines(), 1)
        if any(m in line for m in marks)
    ]
    assert left == []


def test_every_test_asserts_something():
    def asserts(node):
        return any(
            isinstance(inner, ast.Assert)
            or (isinstance(inner, ast.Call) and "raises" in ast.unparse(inner.func))
            or (isinstance(inner, ast.Call) and ast.unparse(inner.func).split(".")[-1].startswith("assert_"))
            for inner in ast.walk(node)
        )

    silent = [
        f"{source.path}:{node.lineno} {node.name}"
        for source in sources("tests/**/test_*.py")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not asserts(node)
    ]
    assert silent == []


def test_test_folders_are_packages():
    folders = {path.parent for path in ROOT.glob("tests/**/test_*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    "module", ["megatron", "megatron.registry", "megatron.common.errors", "megatron.neox_arguments"]
)
def test_the_launcher_side_imports_no_heavy_package(module):
    heavy = "('torch', 'numpy', 'deepspeed', 'transformers', 'tokenizers')"
    code = f"import sys, {module}; sys.stdout.write(','.join(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
