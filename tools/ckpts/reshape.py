#!/usr/bin/env python
"""Write a checkpoint anew for another layout: other tensor, pipeline or data-parallel ranks, ZeRO stage, precision.

python tools/ckpts/reshape.py checkpoints/run checkpoints/run_tp4 --tp 4 --zero-stage 1 --dp 8

A run goes on from any layout by itself; this does the work ahead of time, with no more memory than a few of the model's
largest tensors. What is not given stays as it is.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402


def parse(input_args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a checkpoint anew for another layout.")
    parser.add_argument("input", help="folder of checkpoints (`load` of a config), or one global_stepN in it")
    parser.add_argument("output", help="folder that gets the checkpoint and names it in `latest`")
    parser.add_argument("--tp", type=_positive, help="model_parallel_size")
    parser.add_argument("--pp", type=_natural, help="pipe_parallel_size; 0 for no pipeline")
    parser.add_argument(
        "--dp", type=_positive, help="data-parallel ranks, which ZeRO divides the optimizer over"
    )
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), help="zero_optimization.stage")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bfloat16"))
    parser.add_argument(
        "--iteration", type=_natural, help="the checkpoint to take (default: what `latest` names)"
    )
    parser.add_argument(
        "--no-optim", action="store_true", help="the weights only, without the optimizer's states"
    )
    parser.add_argument("--jobs", type=_positive, default=0, help="files written at the same time")
    parser.add_argument(
        "--config", nargs="+", default=[], help="config of the model, for checkpoints of GPT-NeoX"
    )
    return parser.parse_args(input_args)


def _natural(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}")
    return int(text)


def _positive(text: str) -> int:
    return _natural(text, 1)


def main(input_args: list[str] | None = None) -> None:
    args = parse(input_args)
    from megatron.checkpointing.manifest import read_manifest
    from megatron.checkpointing.reshape import Task, reshape
    from megatron.checkpointing.target_tree import Layout
    from megatron.conversion.reshaping import check_layout, described_by, find_checkpoint, layout_of

    directory = find_checkpoint(args.input, args.iteration)
    saved = layout_of(directory)
    layout = Layout(
        data=args.dp or saved.data,
        tensor=args.tp or saved.tensor,
        pipe=saved.pipe if args.pp is None else args.pp,
        zero=saved.zero if args.zero_stage is None else args.zero_stage,
        precision=args.precision or saved.precision,
    )
    specs, parallel_residual = described_by(directory, args.config)
    with_optimizer = not args.no_optim and (read_manifest(directory) or {}).get("optimizer", True)
    # The stage is the optimizer's.
    check_layout(directory, args.config, layout if with_optimizer else replace(layout, zero=0))
    task = Task(directory, layout, with_optimizer, specs, parallel_residual)
    print(f"wrote {reshape(task, Path(args.output), args.jobs)}")


if __name__ == "__main__":
    run_main(main)
