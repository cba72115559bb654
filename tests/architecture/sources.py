"""The project's Python sources, parsed once, and the import graph of the package."""

import ast
import functools
from dataclasses import dataclass, field
from pathlib import Path

from tests.common.paths import ROOT

PACKAGE = "megatron"


@dataclass(frozen=True)
class Source:
    """One file: path relative to the root, dotted name, syntax tree, text."""

    path: str
    module: str
    tree: ast.Module = field(repr=False, compare=False)
    text: str = field(repr=False, compare=False)


@dataclass(frozen=True)
class Import:
    """`importer` imports `imported` (both dotted modules of the package) at `line`."""

    importer: str
    imported: str
    line: int


def sources(*patterns: str) -> list[Source]:
    """Parsed files matching the glob patterns, relative to the root."""
    return [_parse(path) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


@functools.cache
def _parse(path: Path) -> Source:
    relative = path.relative_to(ROOT)
    text = path.read_text(encoding="utf-8")
    module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    # The oldest supported Python decides what is valid syntax.
    return Source(str(relative), module, ast.parse(text, str(relative), feature_version=(3, 10)), text)


def library() -> list[Source]:
    """The sources of the package."""
    return sources(f"{PACKAGE}/**/*.py")


def scripts() -> list[Source]:
    """Entry scripts and tools."""
    return sources("*.py", "tools/**/*.py")


def imports_of(source: Source, modules: set[str]) -> list[Import]:
    """Imports of package modules anywhere in a file, except those for type checkers only."""
    found = []
    for node in _runtime_nodes(source.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            targets = [_target(node.module, alias.name, modules) for alias in node.names]
        else:
            continue
        inside = [name for name in targets if name.split(".")[0] == PACKAGE]
        found += [Import(source.module, name, node.lineno) for name in inside]
    return found


def _target(module: str, name: str, modules: set[str]) -> str:
    return f"{module}.{name}" if f"{module}.{name}" in modules else module


def _runtime_nodes(tree: ast.Module):
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def import_graph() -> list[Import]:
    """All imports between modules of the package."""
    modules = {source.module for source in library()}
    return [found for source in library() for found in imports_of(source, modules)]


def find_cycle(edges: set[tuple[str, str]]) -> list[str]:
    """Nodes of one cycle of a directed graph, or an empty list."""
    graph: dict[str, set[str]] = {}
    for start, end in edges:
        graph.setdefault(start, set()).add(end)
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for following in sorted(graph.get(node, ())):
            if cycle := visit(following, [*path, node]):
                return cycle
        finished.add(node)
        return []

    for node in sorted(graph):
        if cycle := visit(node, []):
            return cycle
    return []
