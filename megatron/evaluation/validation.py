"""Validation in training: the loss over held-out data, and what comes with it."""

import time

import torch

from megatron.common.activity import beat
from megatron.common.console import print_rank_0
from megatron.common.timers import Timers
from megatron.engine.averages import mean_over_replicas
from megatron.engine.batches import use_length
from megatron.engine.characters import CharCounter, tokens_per_char_of_all
from megatron.evaluation.run import evaluate_in_training
from megatron.logging.metrics import Metrics
from megatron.logging.report import perplexity


@torch.no_grad()
def evaluate(
    neox_args,
    forward_step_fn,
    data_iterator,
    model,
    verbose: bool = False,
    timers=None,
    reference_model=None,
    with_tasks: bool = True,
) -> dict[str, float]:
    """Mean loss, metrics and perplexity over `eval_iters` global batches.

    A micro-batch counts as much as any other, as in training. With `char_level_ppl` the perplexity of a character too,
    and, unless told otherwise, `<task>_<metric>` of all `eval_tasks`.
    """
    timers = timers or Timers()
    counter = None
    if neox_args.char_level_ppl and data_iterator is not None:
        data_iterator = counter = CharCounter(data_iterator, neox_args.tokenizer)
    model.eval()
    use_length(model, None)
    collected = []
    # The pipeline engine goes through an accumulation of micro-batches by itself.
    calls = 1 if neox_args.is_pipe_parallel else neox_args.gradient_accumulation_steps
    for iteration in range(neox_args.eval_iters):
        if verbose and (iteration + 1) % neox_args.log_interval == 0:
            print_rank_0(f"evaluating iteration {iteration + 1}/{neox_args.eval_iters}")
        for _ in range(calls):
            loss, metrics = forward_step_fn(
                data_iterator, model, neox_args, timers, reference_model=reference_model
            )
            collected.append({"lm_loss": loss.detach(), **metrics})
    model.train()
    results = {name: float(value) for name, value in mean_over_replicas(collected).items()}
    results["lm_loss_ppl"] = perplexity(results["lm_loss"])
    if neox_args.char_level_ppl:
        results["lm_loss_char_lvl_ppl"] = perplexity(results["lm_loss"] * tokens_per_char_of_all(counter))
    return results | (evaluate_in_training(model, forward_step_fn, neox_args) if with_tasks else {})


def evaluate_and_print_results(
    neox_args,
    prefix: str,
    forward_step_func,
    data_iterator,
    model,
    iteration: int,
    verbose: bool = False,
    timers=None,
    chart_name: str = "validation",
    reference_model=None,
    metrics: Metrics | None = None,
) -> dict[str, float]:
    """Evaluate, print a ruled line and log under `validation/` or `test/`; scores of tasks, which have nothing to do
    with the test data, with the validation, and also under `eval/` as eval.py does."""
    began = time.monotonic()
    beat(chart_name, iteration)
    results = evaluate(
        neox_args, forward_step_func, data_iterator, model, verbose, timers, reference_model, with_tasks=False
    )
    scores = evaluate_in_training(model, forward_step_func, neox_args) if chart_name != "test" else {}
    results |= scores
    line = f" {chart_name} results at {prefix} | "
    line += "".join(f"{name} value: {value:.6E} | " for name, value in results.items())
    print_rank_0("-" * (len(line) + 1))
    print_rank_0(line)
    print_rank_0("-" * (len(line) + 1))
    if metrics is not None:
        tags = {f"{chart_name}/{name}": value for name, value in results.items()}
        tags |= {f"eval/{name}": value for name, value in scores.items()}
        metrics.log({**tags, "runtime/evaluation_time": time.monotonic() - began}, iteration)
    return results
