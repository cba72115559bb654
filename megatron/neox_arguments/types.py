"""Structural type check of configuration values."""

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}
_PLURALS = {
    bool: "truth values",
    int: "whole numbers",
    float: "numbers",
    str: "texts",
    list: "lists",
    dict: "mappings",
}


class Mismatch(Exception):
    """A value does not fit its type."""


def conform(value: Any, expected: Any) -> Any:
    """The value in the shape its field's type asks for.

    A whole number fits a float, a float without fraction an int (5e8), text a Literal in any case; lists are checked
    element by element. Infinity and what is not a number fit nothing.

    Raises: Mismatch.
    """
    if expected is Any:
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise Mismatch
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        return _first_fit(value, get_args(expected))
    if origin is Literal:
        return _literal(value, get_args(expected))
    if origin is list:
        if not isinstance(value, list):
            raise Mismatch
        return [conform(element, get_args(expected)[0]) for element in value]
    return _plain(value, expected)


def describe(expected: Any) -> str:
    """A type in plain words."""
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in get_args(expected) if part is not type(None))
    if origin is Literal:
        choices = [str(choice) for choice in get_args(expected)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else repr(choices[0])
    if origin is list:
        return f"a list of {_PLURALS.get(get_args(expected)[0], 'values')}"
    return _WORDS.get(expected, str(expected))


def choices_of(expected: Any) -> list[str]:
    """The words a type admits, empty if it is not a choice."""
    if get_origin(expected) is Literal:
        return [str(choice) for choice in get_args(expected)]
    if get_origin(expected) in (Union, types.UnionType):
        return [word for part in get_args(expected) for word in choices_of(part)]
    return []


def admits_none(expected: Any) -> bool:
    """Whether null is a value of its own for a type."""
    return expected is Any or type(None) in get_args(expected)


def _first_fit(value: Any, options: tuple) -> Any:
    # An exact match first: 5.0 for int | float stays a float.
    for option in options:
        if type(value) is option:
            return value
    for option in options:
        try:
            return conform(value, option)
        except Mismatch:
            continue
    raise Mismatch


def _literal(value: Any, choices: tuple) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
        if isinstance(value, str) and isinstance(choice, str) and value.lower() == choice.lower():
            return choice
    raise Mismatch


def _plain(value: Any, expected: type) -> Any:
    if type(value) is expected:
        return value
    if expected is float and type(value) is int:
        return float(value)
    if expected is int and type(value) is float and value.is_integer():
        return int(value)
    if expected in (dict, list, str) and isinstance(value, expected):
        return value
    raise Mismatch
