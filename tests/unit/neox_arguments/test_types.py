from typing import Any, Literal

import pytest

from megatron.neox_arguments.types import Mismatch, conform, describe


@pytest.mark.parametrize(
    ("value", "expected", "result"),
    [
        (3, float, 3.0),
        (5e8, int, 500_000_000),
        ("RMSNorm", Literal["layernorm", "rmsnorm"], "rmsnorm"),
        ([1, 2], list[int], [1, 2]),
        ([1, 2], list[float], [1.0, 2.0]),
        ([6000, 6001], int | list[int], [6000, 6001]),
        ("all", int | list[int] | Literal["all"], "all"),
        (2.5, int | float, 2.5),
        (2.0, int | float, 2.0),
        (None, int | None, None),
        (object, Any, object),
    ],
)
def test_values_that_fit_take_the_shape_of_their_type(value, expected, result):
    found = conform(value, expected)
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, int),
        (True, float),
        (1, bool),
        (1.5, int),
        ("1", int),
        (1, str),
        ([1, "a"], list[int]),
        (1, list[int]),
        ("group", Literal["layernorm"]),
        ({}, list),
        ([1.5], int | list[int]),
        (float("nan"), float),
        (float("inf"), int | float),
    ],
)
def test_values_of_another_type_are_refused(value, expected):
    with pytest.raises(Mismatch):
        conform(value, expected)


def test_types_are_described_in_plain_words():
    assert describe(int | list[int] | None) == "a whole number or a list of whole numbers"
    assert describe(Literal["a", "b"] | None) == "one of a, b"
    assert describe(bool) == "true or false"
