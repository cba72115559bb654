#!/usr/bin/env python
"""Write a checkpoint anew for another layout: other tensor, pipeline or data-parallel ranks, ZeRO stage, precision.

python tools/ckpts/reshape.py checkpoints/run checkpoints/run_tp4 --tp 4 --zero-stage 1 --dp 8

A run goes on from any layout by itself; this does the work ahead of time, with no more memory than a few of the model's
largest tensors. What is not given stays as it is.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import CheckpointError, run_main  # noqa: E402


def parse(input_args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a checkpoint anew for another layout.")
    parser.add_argument("input", help="folder of checkpoints (`load` of a config), or one global_stepN in it")
    parser.add_argument("output", help="folder that gets the checkpoint and names it in `latest`")
    parser.add_argument("--tp", type=_positive, help="model_parallel_size")
    parser.add_argument("--pp", type=int, help="pipe_parallel_size; 0 for no pipeline")
    parser.add_argument(
        "--dp", type=_positive, help="data-parallel ranks, which ZeRO divides the optimizer over"
    )
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), help="zero_optimization.stage")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bfloat16"))
    parser.add_argument("--iteration", type=int, help="the checkpoint to take (default: what `latest` names)")
    parser.add_argument(
        "--no-optim", action="store_true", help="the weights only, without the optimizer's states"
    )
    parser.add_argument("--jobs", type=_positive, default=0, help="files written at the same time")
    parser.add_argument(
        "--config", nargs="+", default=[], help="config of the model, for checkpoints of GPT-NeoX"
    )
    return parser.parse_args(input_args)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def find(folder: Path, iteration: int | None) -> Path:
    """The checkpoint that is meant.

    Raises: CheckpointError if there is none.
    """
    from megatron.checkpointing.names import get_checkpoint_tag, iteration_of_tag, read_latest

    if iteration is None and iteration_of_tag(folder.name) is not None:
        return folder
    tag = read_latest(folder) if iteration is None else get_checkpoint_tag(iteration)
    if not tag or not (folder / tag).is_dir():
        wanted = "file `latest` that names a checkpoint" if iteration is None else f"checkpoint {tag}"
        raise CheckpointError(f"input: {folder} has no {wanted}")
    return folder / tag


def main(input_args: list[str] | None = None) -> None:
    args = parse(input_args)
    from megatron.checkpointing.reshape import Task, reshape, saved_layout
    from megatron.checkpointing.target_tree import Layout

    directory = find(Path(args.input), args.iteration)
    saved = saved_layout(directory)
    layout = Layout(
        data=args.dp or saved.get("data_parallel_size", 1),
        tensor=args.tp or saved.get("model_parallel_size", 1),
        pipe=saved.get("pipe_parallel_size", 0) if args.pp is None else args.pp,
        zero=saved.get("zero_stage", 0) if args.zero_stage is None else args.zero_stage,
        precision=args.precision or saved.get("precision", "fp32"),
    )
    specs, parallel_residual = describe(directory, args.config)
    task = Task(directory, layout, not args.no_optim, specs, parallel_residual)
    print(f"wrote {reshape(task, Path(args.output), args.jobs)}")


def describe(directory: Path, configs: list[str]) -> tuple[dict | None, bool]:
    """(specs of the parameters, whether the residuals are parallel), from configs, or those that GPT-NeoX keeps beside
    the weights; no specs for a checkpoint that has its own."""
    from megatron.checkpointing.manifest import is_foreign
    from megatron.checkpointing.weights import SavedWeights
    from megatron.conversion.specs import model_config, parameter_specs
    from megatron.neox_arguments.loading import read_files

    files = configs or sorted(directory.glob("configs/*"))
    if not files or not (configs or is_foreign(directory)):
        return None, False
    args = model_config(read_files(files)[0])
    saved = SavedWeights(directory)
    rows = sum(saved.part("0.word_embeddings.weight", rank).shape[0] for rank in range(saved.tensor_size))
    # The rows are known, whatever a tokenizer would say.
    args.tokenizer = None
    return parameter_specs(args, rows), args.gpt_j_residual


if __name__ == "__main__":
    run_main(main)
