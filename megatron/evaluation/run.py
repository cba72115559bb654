"""Evaluation in one call, for eval.py and for training."""

from typing import Any

from megatron.evaluation.harness import require_harness


def run_eval_harness(
    model,
    forward_step_fn,
    neox_args,
    batch_size: int | None = None,
    eval_tasks: list[str] | None = None,
    num_fewshot: int | None = None,
    bootstrap_iters: int = 2,
) -> dict[str, Any]:
    """Results of the tasks, on all ranks; collective. Arguments: see EvalHarnessAdapter and its run_eval.

    Raises: MissingPackageError without lm_eval.
    """
    require_harness()
    from megatron.evaluation.adapter import EvalHarnessAdapter

    adapter = EvalHarnessAdapter(model, forward_step_fn, neox_args, batch_size)
    return adapter.run_eval(eval_tasks, num_fewshot, bootstrap_iters)
