"""Reading configuration files: YAML or JSON, merged without overlaps."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from megatron.common.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-5 is a number, as in YAML 1.2 and JSON (YAML 1.1 wants 1.0e-5)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_files(paths: Iterable[str | Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge configuration files.

    Returns: (values by key with "-" replaced by "_", original text by base name).

    Raises: ConfigError for missing or unreadable files, bad YAML (with the line), and keys or base names given twice.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    texts: dict[str, str] = {}
    problems: list[str] = []
    for path in map(Path, paths):
        if path.name in texts:
            problems.append(f"{path}: two configuration files are named {path.name!r}; rename one")
            continue
        try:
            text, pairs = _read_file(path)
        except ConfigError as error:
            problems += error.problems
            continue
        texts[path.name] = text
        for raw, line, value in pairs:
            key = raw.replace("-", "_")
            place = f"{path}, line {line}"
            if key in origin:
                problems.append(f"{place}: key {raw!r} was already given in {origin[key]}; keep one of them")
                continue
            origin[key] = place
            values[key] = value
    if problems:
        raise ConfigError(problems)
    return values, texts


def _read_file(path: Path) -> tuple[str, list[tuple[str, int, Any]]]:
    """The text of a file and its top-level (key, line, value) triples."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file{_other_files(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    try:
        return text, _parse(path, text)
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(path, error)) from None


def _parse(path: Path, text: str) -> list[tuple[str, int, Any]]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            raise ConfigError(f"{path}: must be a mapping of keys to values, not {found}")
        loader.flatten_mapping(node)
        return [_pair(path, loader, key, value) for key, value in node.value]
    finally:
        loader.dispose()


def _pair(path: Path, loader: Any, key_node: yaml.Node, value_node: yaml.Node) -> tuple[str, int, Any]:
    line = key_node.start_mark.line + 1
    key = loader.construct_object(key_node, deep=True)
    if not isinstance(key, str):
        raise ConfigError(f"{path}, line {line}: key {key!r} is not text")
    _refuse_repeated_keys(path, value_node)
    return key, line, loader.construct_object(value_node, deep=True)


def _refuse_repeated_keys(path: Path, node: yaml.Node) -> None:
    """Nested mappings too must not name a key twice; YAML would silently take the last."""
    if isinstance(node, yaml.SequenceNode):
        for element in node.value:
            _refuse_repeated_keys(path, element)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key_node, value_node in node.value:
        if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"{path}, line {line}: key {key_node.value!r} is given twice")
            seen.add(key_node.value)
        _refuse_repeated_keys(path, value_node)


def _yaml_problem(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{place}: not valid YAML: {problem}"


def _other_files(path: Path) -> str:
    from megatron.neox_arguments.suggestions import nearest

    if not path.parent.is_dir():
        return f" (there is no folder {str(path.parent)!r})"
    close = nearest(
        path.name, [other.name for other in path.parent.glob("*") if other.suffix in (".yml", ".json")]
    )
    return f"; did you mean {close!r}?" if close else "; correct the name, or give its folder with -d"
