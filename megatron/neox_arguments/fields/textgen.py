"""Sampling and evaluation."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.template import NeoXArgsTemplate


@dataclass
class NeoXArgsTextgen(NeoXArgsTemplate):
    """What generate.py and eval.py do."""

    text_gen_type: Literal["unconditional", "input-file", "interactive", "precompute"] | None = None
    """Where prompts come from; precompute writes log-probabilities of the data sets instead. Unset: input-file when
    sample_input_file is given, else unconditional."""

    precompute_model_name: str | None = None
    """Suffix of the data sets of precomputed log-probabilities. Unset: the checkpoint's folder and iteration."""

    temperature: float = 0.0
    """Sampling temperature; 0 always takes the likeliest token."""

    top_p: float = 0.0
    """Keep the likeliest tokens that together reach this probability; 0 keeps all."""

    top_k: int = 0
    """Keep this many likeliest tokens; 0 keeps all."""

    return_logits: bool = False
    """Add the logits of generated tokens to the records."""

    maximum_tokens: int = 64
    """Most tokens generated per prompt."""

    prompt_end: str = "\n"
    """Text that ends a prompt in a prompt file or in interactive use."""

    sample_input_file: str | None = None
    """File of prompts."""

    sample_output_file: str | None = "samples.txt"
    """File that receives the records, one JSON object a line."""

    num_samples: int = 1
    """Number of unconditional samples."""

    recompute: bool = False
    """Run the whole sequence again for each token instead of keeping a cache of keys and values."""

    eval_results_prefix: str = ""
    """Start of the name of the evaluation's results file; may have a folder in front."""

    eval_tasks: list | None = None
    """Names or wildcards of lm-evaluation-harness tasks: for eval.py, and for every evaluation during training. Unset:
    eval.py runs its default tasks, training none."""

    eval_include_path: str | list | None = None
    """Folder or folders with task YAML files of your own, beside the harness's tasks."""

    eval_num_fewshot: int | None = None
    """Examples before each question, except where a task fixes 0; unset: as each task says."""

    eval_limit: float | int | None = None
    """Documents per task, or below 1 their share; all when unset."""

    eval_batch_size: int | None = None
    """Texts of full length per device and pass of an evaluation by tasks; unset: train_micro_batch_size_per_gpu."""

    eval_bootstrap_iters: int = 10000
    """Draws of eval.py for standard errors that have no formula; 0: no standard errors."""

    eval_apply_chat_template: bool = False
    """Put questions as conversations, in the form of the tokenizer's chat template."""

    eval_log_samples: bool = False
    """Add every request and its answer to the results file of eval.py."""
