"""No key is accepted and ignored (P17)."""

import dataclasses
import typing

import pytest

from megatron.common.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.markers import mark_of
from megatron.neox_arguments.types import choices_of
from tests.unit.neox_arguments.basic import minimal

SAMPLES = {bool: True, int: 77, float: 0.77, str: "something", list: ["x"], dict: {"enabled": True}}
MARKED = [field for field in dataclasses.fields(NeoXArgs) if mark_of(field)]


def other_value(field):
    """A value of the field's type that its mark does not allow."""
    allowed = mark_of(field).allowed
    for choice in choices_of(field.type):
        if choice not in allowed:
            return choice
    for part in (field.type, *typing.get_args(field.type)):
        plain = typing.get_origin(part) or part
        if plain in SAMPLES:
            value = SAMPLES[plain]
            return (not value) if value in allowed and plain is bool else value
    raise AssertionError(f"no sample for {field.name}")


@pytest.mark.parametrize(
    "field", [f for f in MARKED if mark_of(f).kind in ("later", "partly", "retired")], ids=lambda f: f.name
)
def test_a_key_without_its_feature_is_refused_away_from_its_default(field):
    value = other_value(field)
    with pytest.raises(ConfigError) as caught:
        NeoXArgs.from_dict(minimal(**{field.name: value}))
    expected = "has no effect" if mark_of(field).kind == "retired" else "is not supported yet"
    assert any(p.startswith(f"{field.name}={value!r} {expected}") for p in caught.value.problems)


@pytest.mark.parametrize("field", MARKED, ids=lambda f: f.name)
def test_the_default_of_every_marked_key_may_be_written_out(field):
    args = NeoXArgs.from_dict({**minimal(), field.name: field.default})
    assert args.validate_values()


def test_every_choice_offered_is_built_or_marked():
    """Loading with each choice of each key either works or says that it is not supported yet."""
    unclear = []
    for field in dataclasses.fields(NeoXArgs):
        for choice in choices_of(field.type):
            try:
                NeoXArgs.from_dict(minimal(**{field.name: choice}, sample_input_file="prompts.txt"))
            except ConfigError as error:
                if not all("not supported yet" in p or "follows from" in p for p in error.problems):
                    unclear.append((field.name, choice, error.problems))
    assert unclear == []
