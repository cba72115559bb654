"""Evaluation by the names that GPT-NeoX has for it. What they do lives in megatron.evaluation."""

from eval_tasks.eval_adapter import EvalHarnessAdapter, run_eval_harness

__all__ = ["EvalHarnessAdapter", "run_eval_harness"]
