#!/usr/bin/env python
"""Merge a model that was saved by several tensor and pipeline ranks, as the published GPT-NeoX-20B, into one of each.

python tools/ckpts/merge20b.py --input_dir 20B_checkpoints --output_dir 20B_merged

The result has the weights only, a config (configs/20B.yml) that loads it, and the tokenizer if the input has it.
"""

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from megatron.common.errors import run_main  # noqa: E402

TOKENIZER = "20B_tokenizer.json"


def main(input_args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Merge GPT-NeoX-20B into one tensor and pipeline rank.")
    parser.add_argument("--input_dir", required=True, help="folder with `latest` and global_step150000")
    parser.add_argument("--output_dir", required=True, help="gets the merged checkpoint")
    parser.add_argument(
        "--config", default=str(ROOT / "configs" / "20B.yml"), help="config of the model (configs/20B.yml)"
    )
    args = parser.parse_args(input_args)
    from megatron.checkpointing.reshape import Task, reshape
    from megatron.checkpointing.target_tree import Layout
    from megatron.conversion.reshaping import described_by, find_checkpoint, layout_of

    source, output = Path(args.input_dir), Path(args.output_dir)
    directory = find_checkpoint(source)
    specs, parallel_residual = described_by(directory, [args.config])
    layout = Layout(data=1, tensor=1, pipe=1, zero=0, precision=layout_of(directory).precision)
    merged = reshape(Task(directory, layout, False, specs, parallel_residual), output)
    for path in source.glob(TOKENIZER):
        shutil.copy(path, output / path.name)
    write_config(Path(args.config), output)
    print(f"wrote {merged} and {output / 'configs' / '20B.yml'}")


def write_config(config: Path, output: Path) -> None:
    """The model's config for one rank of each kind, with the places of the merged model."""
    import yaml

    from megatron.neox_arguments.loading import read_files

    values, _ = read_files([config])
    values |= {"model_parallel_size": 1, "pipe_parallel_size": 1, "load": str(output), "save": str(output)}
    values["zero_optimization"] = {**values.get("zero_optimization", {}), "stage": 0}
    if (output / TOKENIZER).is_file():
        values["vocab_file"] = str(output / TOKENIZER)
    # There is nothing of an optimizer to go on with.
    values["no_load_optim"] = True
    (output / "configs").mkdir(exist_ok=True)
    (output / "configs" / "20B.yml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
