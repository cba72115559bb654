"""Build the index maps of a run ahead of it, so that a large job does not wait for them with all its devices.

python tools/datasets/build_index_maps.py configs/125M.yml configs/local_setup.yml

Takes the config files of the run, starts nothing, and needs no GPU. Where the run's number of processes does not follow
from this machine, set global_num_gpus: the global batch decides how many samples are needed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import ConfigError, run_main  # noqa: E402


def main(input_args: list[str] | None = None) -> None:
    """Build all maps of the config files named by `input_args` or on the command line."""
    from megatron.data.data_utils import build_datasets
    from megatron.neox_arguments import NeoXArgs

    files = sys.argv[1:] if input_args is None else input_args
    if not files or files[0].startswith("-"):
        raise ConfigError("usage: build_index_maps.py CONFIG... (the config files of the run)")
    build_datasets(NeoXArgs.from_ymls(files))


if __name__ == "__main__":
    run_main(main)
