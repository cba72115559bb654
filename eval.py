#!/usr/bin/env python
"""Score a trained model: `python deepy.py eval.py CONFIG... --eval_tasks TASK...`; see docs/evaluation.md."""

from megatron.common.errors import run_main


def main(input_args: list[str] | None = None, overwrite_values: dict | None = None) -> None:
    """Load the model that the config names and run its `eval_tasks`.

    Args: input_args: command line, None takes sys.argv; overwrite_values: config values that win over it.
    """
    from megatron.engine.inference import setup_for_inference_or_eval
    from megatron.evaluation.run import check_evaluation, report_results, run_eval_harness
    from megatron.initialize import shut_down
    from megatron.training import forward_step

    model, neox_args = setup_for_inference_or_eval(
        use_cache=False, overwrite_values=overwrite_values, input_args=input_args, check=check_evaluation
    )
    results = run_eval_harness(
        model,
        forward_step,
        neox_args,
        eval_tasks=neox_args.eval_tasks,
        bootstrap_iters=neox_args.eval_bootstrap_iters,
    )
    report_results(neox_args, results)
    shut_down()


if __name__ == "__main__":
    run_main(main)
