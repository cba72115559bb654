"""Configuration: declarations, derivation, validation, command lines, and the view DeepSpeed gets."""

from megatron.neox_arguments.arguments import NeoXArgs

__all__ = ["NeoXArgs"]
