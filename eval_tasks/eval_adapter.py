"""The model as a language model of lm-evaluation-harness; needs the package lm_eval."""

from megatron.evaluation.adapter import EvalHarnessAdapter
from megatron.evaluation.run import run_eval_harness

__all__ = ["EvalHarnessAdapter", "run_eval_harness"]
