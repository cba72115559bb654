"""Model families of Hugging Face's transformers: one file each, a table that is read in both directions.

To add a family, write a file with one class::

    @register("family", "gpt_neox", "neox")          # transformers' model_type; further names for --architecture
    class GPTNeoX(Family):
        architecture = "GPTNeoXForCausalLM"
        same = {"hidden_size": "hidden_size", ...}   # our key -> theirs, where the values mean the same
        fixed = {"norm": "layernorm", ...}           # our keys that have this value in every model of the family
        expressed = ("pos_emb", ...)                 # our further keys that `read` and `write` take care of
        demands = {"qk_layernorm": (False, None)}    # their keys of which only these values can be had here
        def read(self, config): ...                  # their config (a dict, rope_parameters included) -> our other keys
        def write(self, args): ...                   # our config -> their other keys
        def rules(self, args): ...                   # the weights, see Rule, and `linear` and `norm` in rules.py

What is not said cannot be had: on export every other key of the architecture must have its default, and on import every
weight must be used; else the conversion is refused with the key and the reason. `read` and `write` refuse by
raising ConfigError. Rules may name parameters that a model does not have (biases); these are passed over.

Families map tensors and plain values only, and know no files and no layouts: what reads Hugging Face folders, cuts
tensors over ranks and writes checkpoints is megatron/conversion. A case in tests/parity/families.py shows a new family.
"""

from megatron.families.base import Family
from megatron.families.rules import Rule
from megatron.registry import lookup, names

__all__ = ["Family", "Rule", "families", "family_named"]


def family_named(name: str) -> Family:
    """The family of a model_type or another of its names. Raises: ConfigError listing the choices."""
    return lookup("family", name)()


def families() -> list[Family]:
    """All families, in the order of their names."""
    return [family_named(name) for name in names("family")]
