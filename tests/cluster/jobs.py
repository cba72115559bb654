"""Jobs as a user types them on a host, and what is known of them afterwards."""

import json
import sys
from pathlib import Path

from tests.cluster.hosts import Host
from tests.common.paths import ROOT
from tests.common.runs import environment, write_config

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
VARIABLES = {
    "DS_ACCELERATOR": "cpu",
    # Open MPI refuses to work for root, which the hosts of these tests need, unless told twice.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # It names its files after process ids, which come again in the next test; this folder is each host's own.
    "OMPI_MCA_orte_tmpdir_base": "/dev/shm",
}
# A script for deepy.py that trains nothing: each process writes down what it knows, and needs no torch for it.
PROBE = """
import json, os, socket
from pathlib import Path
from megatron.neox_arguments import NeoXArgs
args = NeoXArgs.consume_neox_args()
args.configure_distributed_args()
known = {"host": socket.gethostname(), "local_rank": args.local_rank, "size": args.world_size}
known["folder"], known["environment"] = os.getcwd(), dict(os.environ)
Path(__file__).with_name(f"rank_{args.rank}.json").write_text(json.dumps(known))
"""


def write_hostfile(folder: Path, *lines: str) -> str:
    """Write the lines to the file `hosts` of the folder; returns its path."""
    path = folder / "hosts"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def variables(env: dict | None = None) -> dict[str, str]:
    """Environment of a user of these hosts."""
    return {**environment(), **VARIABLES, **(env or {})}


def write_job(folder: Path, name: str, **settings) -> str:
    """Write NAME.yml, whose job logs to the folder NAME; returns the file's name."""
    return write_config(folder, f"{name}.yml", **{**SMALL, "log_dir": str(folder / name), **settings})


def launch(
    host: Host, folder: Path, name: str, env: dict | None = None, check: bool = True, options=(), **settings
):
    """Type `deepy.py [OPTIONS] train.py NAME.yml` on a host, in `folder`, and wait for the end of the job."""
    command = [
        sys.executable,
        ROOT / "deepy.py",
        *options,
        ROOT / "train.py",
        write_job(folder, name, **settings),
    ]
    return host.run(command, folder, variables(env), check=check)


def losses(folder: Path, name: str) -> list[float]:
    """Training loss of every step of a job that `launch` has run."""
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [record["train/lm_loss"] for record in found if "train/lm_loss" in record]


def probe(
    host: Host, folder: Path, env: dict | None = None, options=(), check: bool = True, **settings
) -> tuple[list[dict], str]:
    """Start PROBE through deepy.py. Returns: what each rank knew, and what the user has seen."""
    (folder / "probe.py").write_text(PROBE, encoding="utf-8")
    for old in folder.glob("rank_*.json"):
        old.unlink()
    config = write_config(folder, "probe.yml", **{**SMALL, "train_batch_size": 12, **settings})
    command = [sys.executable, ROOT / "deepy.py", "probe.py", config, *options]
    done = host.run(command, folder, variables({"PYTHONPATH": str(ROOT), **(env or {})}), check=check)
    files = sorted(folder.glob("rank_*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files], done.stdout + done.stderr
