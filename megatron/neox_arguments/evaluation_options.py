"""What the keys eval_* of an evaluation by tasks may be."""

from collections.abc import Iterator
from typing import Any

EVALUATION_KEYS = (
    "eval_tasks",
    "eval_include_path",
    "eval_limit",
    "eval_batch_size",
    "eval_num_fewshot",
    "eval_bootstrap_iters",
)


def evaluation_problems(args: Any) -> Iterator[str]:
    """What is wrong with the keys, one line each."""
    for key in ("eval_tasks", "eval_include_path"):
        value = getattr(args, key)
        if isinstance(value, list) and not (value and all(isinstance(item, str) and item for item in value)):
            yield f"{key}={value} must list names"
    for key, least in (("eval_batch_size", 1), ("eval_num_fewshot", 0), ("eval_bootstrap_iters", 0)):
        value = getattr(args, key)
        if isinstance(value, int) and value < least:
            yield f"{key}={value} must be at least {least}"
    limit = args.eval_limit
    if isinstance(limit, (int, float)) and (limit <= 0 or (limit > 1 and limit != int(limit))):
        yield f"eval_limit={limit} must be a number of documents, or a share of them below 1"
