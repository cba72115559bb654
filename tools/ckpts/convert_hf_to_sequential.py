"""Turn a GPT-NeoX model of Hugging Face's form, of a revision stepN as Pythia has them, into a checkpoint.

python tools/ckpts/convert_hf_to_sequential.py --hf-model-name pythia-70m --revision 143000 \
    --output-dir checkpoints/pythia-70m/global_step143000 --config configs/pythia/70M.yml
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import ConfigError, run_main  # noqa: E402

OWNER = "EleutherAI/"


def main(input_args: list[str] | None = None) -> None:
    args = _parse(input_args)
    from megatron.conversion.compare import check_logits
    from megatron.conversion.from_hf import import_hf
    from megatron.conversion.hub import local_folder
    from megatron.neox_arguments.loading import read_files

    name = args.hf_model_name
    if not Path(name).is_dir() and "/" not in name:
        name = OWNER + name
    folder = local_folder(name, f"step{args.revision}", args.cache_dir, args.ckpt_tmp_dir)
    if args.download_only:
        return
    if not args.output_dir:
        raise ConfigError("--output-dir is missing: the folder of the checkpoint (.../global_stepN)")
    layout = read_files(args.config)[0] if args.config else {}
    target = Path(args.output_dir)
    tensor, pipe = layout.get("model_parallel_size", 1), layout.get("pipe_parallel_size", 0)
    config = import_hf(folder, target.parent, tensor, pipe, tag=target.name)
    if args.test:
        check_logits(folder, config, target)


def _parse(input_args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Turn a Hugging Face GPT-NeoX model into a checkpoint.")
    parser.add_argument("--hf-model-name", required=True, help="folder, or name on the Hugging Face hub")
    parser.add_argument("--revision", type=int, default=143000, help="N of the branch stepN (143000)")
    parser.add_argument("--output-dir", help="folder of the checkpoint; `latest` is written beside it")
    parser.add_argument(
        "--config", nargs="*", default=[], help="config files that say how many ranks the files are for"
    )
    parser.add_argument("--test", action="store_true", help="compare the logits of both models afterwards")
    parser.add_argument("--download-only", action="store_true", help="fetch the model and stop")
    parser.add_argument(
        "--ckpt-tmp-dir",
        default=str(Path(tempfile.gettempdir(), "ckpt_tmp_dir")),
        help="folder that the model is fetched into",
    )
    parser.add_argument("--cache-dir", help="of huggingface_hub")
    return parser.parse_args(input_args)


if __name__ == "__main__":
    run_main(main)
