"""What a run would be: sizes, layout, length, memory and command, without starting anything."""

import os
from typing import Any

from megatron.common.console import info
from megatron.common.device import has_accelerator


def show_plan(neox_args: Any) -> None:
    """Print the plan of a run.

    Raises: TokenizerError if the tokenizer's files are here but broken.
    """
    if not has_accelerator():
        # Before DeepSpeed looks for one, and complains.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from megatron.planning.report import describe_plan

    info(describe_plan(neox_args))
