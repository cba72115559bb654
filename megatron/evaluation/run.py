"""Evaluation in one call, for eval.py and for training."""

from typing import Any

from megatron.common.console import info, warn
from megatron.evaluation.harness import check_tasks, table
from megatron.evaluation.results import check_place, metrics_of, write_results
from megatron.logging.metrics import Metrics


def check_evaluation(neox_args) -> None:
    """Find out before the model is loaded whether the tasks are there and their results can be written.

    Raises: NeoXError if not.
    """
    check_tasks(neox_args)
    check_place(neox_args.eval_results_prefix)


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
    from megatron.evaluation.adapter import EvalHarnessAdapter

    adapter = EvalHarnessAdapter(model, forward_step_fn, neox_args, batch_size)
    return adapter.run_eval(eval_tasks, num_fewshot, bootstrap_iters)


def evaluate_in_training(engine, forward_step_fn, neox_args) -> dict[str, float]:
    """`<task>_<metric>` -> value of the config's eval_tasks, {} without any; collective. Training goes on as it was.

    Standard errors that would have to be drawn by the thousand are left out.
    """
    if not neox_args.eval_tasks:
        return {}
    return metrics_of(run_eval_harness(engine, forward_step_fn, neox_args, bootstrap_iters=0))


def remind_of_validation(neox_args, do_valid: bool) -> None:
    """Say so if the tasks of a training will never be due."""
    if neox_args.eval_tasks and not do_valid:
        warn(
            "eval_tasks run together with the validation, and there is none: give validation data and eval_iters"
        )


def report_results(neox_args, results: dict[str, Any]) -> None:
    """Rank 0: show the table, write the results file, and log `eval/<task>_<metric>` at the checkpoint's iteration."""
    if neox_args.rank != 0:
        return
    neox_args.initialize_tensorboard_writer()
    metrics = Metrics(neox_args)
    metrics.log(
        {f"eval/{name}": value for name, value in metrics_of(results).items()}, neox_args.iteration or 0
    )
    metrics.close()
    info(table(results))
    info(f"results written to {write_results(results, neox_args.eval_results_prefix)}")
