"""GPT-NeoX: training large autoregressive transformers with tensor, pipeline and data parallelism.

Importing this package loads neither torch nor DeepSpeed: the launcher and the data tools start instantly.
"""

import importlib

_EXPORTS = {
    "print_rank_0": "megatron.common.console",
    "NeoXArgs": "megatron.neox_arguments",
    "initialize_megatron": "megatron.initialize",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'megatron' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
