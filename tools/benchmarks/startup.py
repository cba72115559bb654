"""Start: from the command to the end of the first step, against `import torch, deepspeed` alone, in the same run.

    python tools/benchmarks/startup.py

The first start is measured with empty caches for compiled extensions, so a compilation would show; rounds alternate.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

import numpy  # noqa: E402

from megatron.common.errors import NeoXError, run_main  # noqa: E402
from megatron.data.indexed_dataset import make_builder  # noqa: E402
from tools.benchmarks.table import print_table  # noqa: E402

CONFIG = {
    "tokenizer_type": "CharLevelTokenizer", "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
    "seq_length": 64, "max_position_embeddings": 64, "pos_emb": "rotary", "train_batch_size": 4, "train_iters": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 1.0e-3}}, "log_interval": 1, "eval_interval": 1000, "eval_iters": 1,
    "data_path": "data", "split": "90,5,5", "num_gpus": 1, "num_workers": 0,
    "master_port": 20000 + os.getpid() % 10000,
}  # fmt: skip


def write_data(directory: Path) -> None:
    """Random tokens in the indexed format, and the config."""
    builder = make_builder(str(directory / "data.bin"), "mmap", vocab_size=256)
    random = numpy.random.default_rng(1)
    for _ in range(100):
        builder.add_item(random.integers(1, 256, 200).astype(numpy.uint16))
        builder.end_document()
    builder.finalize(str(directory / "data.idx"))
    (directory / "config.yml").write_text(json.dumps(CONFIG), encoding="utf-8")


def seconds_to_first_step(directory: Path, environment: dict) -> float:
    """Wall seconds from starting deepy.py until it prints the first iteration."""
    command = [sys.executable, str(REPOSITORY / "deepy.py"), str(REPOSITORY / "train.py"), "config.yml"]
    start = time.perf_counter()
    job = subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output, reached = [], None
    for line in job.stdout:
        output.append(line)
        if reached is None and "iteration        1/" in line:
            reached = time.perf_counter() - start
    if job.wait() or reached is None:
        raise NeoXError("the measured run failed:\n" + "".join(output[-20:]))
    return reached


def seconds_to_import(environment: dict) -> float:
    """Wall seconds of a process that only imports torch and DeepSpeed."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, deepspeed"], env=environment, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "TORCH_EXTENSIONS_DIR": str(directory / "extensions"),
        }
        environment["XDG_CACHE_HOME"] = str(directory / "cache")
        write_data(directory)
        seconds_to_import(environment)
        first = seconds_to_first_step(directory, environment)
        compiled = sorted(path.name for path in directory.glob("*/**/*.so"))
        imports, starts = [], []
        for _ in range(rounds):
            imports.append(seconds_to_import(environment))
            starts.append(seconds_to_first_step(directory, environment))
        shutil.rmtree(directory / "extensions", ignore_errors=True)
    alone, start = statistics.median(imports), statistics.median(starts)
    rows = [
        ["import torch, deepspeed", f"{alone:.2f}", "1.00"],
        ["deepy.py to the first step", f"{start:.2f}", f"{start / alone:.2f}"],
        ["the same, very first start", f"{first:.2f}", f"{first / alone:.2f}"],
    ]
    print_table("start of a training run", ["what", "seconds", "ratio"], rows)
    print_table("compiled on the first start", ["file"], [[name] for name in compiled] or [["nothing"]])


if __name__ == "__main__":
    run_main(main)
