"""Training jobs as a user types them on a host, and their losses."""

import json
import sys
from pathlib import Path

from tests.cluster.hosts import Host
from tests.common.runs import REPOSITORY, environment, write_config

STEPS = 20
LAYOUTS = {"tp2": {"model_parallel_size": 2}, "dp2": {"model_parallel_size": 1}}
SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "seq_length": 32,
    "max_position_embeddings": 32,
    "train_iters": STEPS,
    "lr_decay_iters": STEPS,
    "eval_interval": 1000,
    "eval_iters": 0,
    "log_interval": 1,
}
# Both MPIs and CPU-only hosts, as the programs' own pages ask for it.
VARIABLES = {"DS_ACCELERATOR": "cpu", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def write_hostfile(folder: Path, *lines: str) -> str:
    """Write the lines to the file `hosts` of the folder; returns its path."""
    path = folder / "hosts"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def launch(
    host: Host, folder: Path, name: str, env: dict | None = None, check: bool = True, options=(), **settings
):
    """Type `deepy.py train.py NAME.yml` on a host, in `folder`, and wait for the end of the job."""
    config = write_config(folder, f"{name}.yml", **{**SMALL, "log_dir": str(folder / name), **settings})
    command = [sys.executable, REPOSITORY / "deepy.py", *options, REPOSITORY / "train.py", config]
    variables = {**environment(), **VARIABLES, **(env or {})}
    return host.run(command, folder, variables, check=check)


def losses(folder: Path, name: str) -> list[float]:
    """Training loss of every step of a job that `launch` has run."""
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [record["train/lm_loss"] for record in found if "train/lm_loss" in record]
