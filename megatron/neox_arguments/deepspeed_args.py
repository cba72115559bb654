"""The groups of keys that DeepSpeed and its launcher read."""

from megatron.neox_arguments.fields.deepspeed import NeoXArgsDeepspeedConfig, NeoXArgsDeepspeedRunner

__all__ = ["NeoXArgsDeepspeedConfig", "NeoXArgsDeepspeedRunner"]
