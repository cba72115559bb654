"""Rules for what goes on around training: checkpoints, evaluation, profiles, generation."""

from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments import profiling
from megatron.neox_arguments.steps import Steps

RULES = Steps()
rule = RULES.reading


@rule("save", "checkpoint_factor", "extra_save_iters", "checkpoint_scale")
def _saving(args: Any) -> Iterator[str]:
    factor = args.checkpoint_factor
    if args.save is not None and factor is None and args.extra_save_iters is None:
        yield f"save={args.save!r} needs checkpoint_factor or extra_save_iters to say when"
    if factor is None:
        return
    if args.checkpoint_scale == "linear" and (factor < 1 or int(factor) != factor):
        yield f"checkpoint_factor={factor} must be a whole number of iterations with checkpoint_scale: linear"
    if args.checkpoint_scale == "log" and factor <= 1:
        yield f"checkpoint_factor={factor} must be above 1 with checkpoint_scale: log"


@rule("s3_path", "s3_chunk_size", "save")
def _uploading(args: Any) -> Iterator[str]:
    if args.s3_path is not None and not args.s3_path.startswith("s3://"):
        yield f"s3_path={args.s3_path!r} must be s3://BUCKET/PREFIX"
    if args.s3_path is not None and args.save is None:
        yield f"s3_path={args.s3_path!r} needs save: checkpoints are written there first"
    if args.s3_chunk_size < 5 << 20:
        yield f"s3_chunk_size={args.s3_chunk_size} must be at least {5 << 20}, the smallest part that S3 takes"


@rule("text_gen_type", "sample_input_file", "prompt_end")
def _prompts(args: Any) -> Iterator[str]:
    if not args.prompt_end:
        yield "prompt_end must not be empty: it is what ends a prompt, such as a line break"
    if args.text_gen_type == "input-file" and not args.sample_input_file:
        yield "text_gen_type: input-file needs sample_input_file (-i), a text file of prompts"


@rule(
    "eval_tasks",
    "eval_include_path",
    "eval_limit",
    "eval_batch_size",
    "eval_num_fewshot",
    "eval_bootstrap_iters",
)
def _evaluation(args: Any) -> Iterator[str]:
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


rule(*profiling.KEYS)(profiling.problems)
