"""The key reference is made of the declarations and never stale."""

import dataclasses

from megatron.neox_arguments import NeoXArgs, reference


def test_the_key_reference_is_fresh():
    """If this fails: `make docs`."""
    assert reference.TARGET.read_text(encoding="utf-8") == reference.reference()


def test_every_key_is_documented_once():
    documented = [key.name for group in reference.groups() for key in group.keys]
    assert sorted(documented) == sorted(field.name for field in dataclasses.fields(NeoXArgs))
    assert all(key.text.endswith(".") for group in reference.groups() for key in group.keys)
