"""Whole runs through the real command lines, in a folder of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.common.corpus import stdlib_documents, write_jsonl
from tests.common.paths import ROOT
from tests.common.ports import quiet_ports

TINY = {
    "tokenizer_type": "CharLevelTokenizer",
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": 64,
    "max_position_embeddings": 64,
    "pos_emb": "rotary",
    "gpt_j_residual": True,
    "no_weight_tying": True,
    "make_vocab_size_divisible_by": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 5e-3, "betas": [0.9, 0.95], "eps": 1e-8}},
    "train_batch_size": 4,
    "train_iters": 20,
    "lr_decay_iters": 20,
    "lr_decay_style": "cosine",
    "split": "90,5,5",
    "eval_interval": 10,
    "eval_iters": 2,
    "log_interval": 5,
    "num_workers": 0,
}


def run_command(
    arguments: list, directory: Path, check: bool = True, timeout: float = 180, env: dict | None = None
):
    """Run `python ARGUMENTS` in `directory`; scripts are named relative to the repository."""
    process = subprocess.run(
        [sys.executable, *_resolved(arguments)],
        cwd=directory,
        env=environment() | meeting() | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check:
        assert process.returncode == 0, f"{arguments}\n{process.stdout[-4000:]}\n{process.stderr[-4000:]}"
    return process


def start_command(arguments: list, directory: Path, output) -> subprocess.Popen:
    """Start `python ARGUMENTS` in `directory`, both output streams into the open file."""
    return subprocess.Popen(
        [sys.executable, *_resolved(arguments)],
        cwd=directory,
        env=environment() | meeting(),
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def environment() -> dict:
    """The tests' environment, one thread per process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def meeting() -> dict:
    """A port for the processes of one job, unlike those of jobs at the same time; a config's own goes before."""
    return {"MASTER_PORT": str(quiet_ports(1)[0])}


def _resolved(arguments: list) -> list[str]:
    script, *rest = map(str, arguments)
    rest = [str(ROOT / item) if item in ("train.py", "generate.py", "eval.py") else item for item in rest]
    return [str(ROOT / script), *rest]


BY_CHARACTERS = ("--tokenizer-type", "CharLevelTokenizer")


def prepare_corpus(directory: Path, documents: int = 60, tokenizer: Sequence[str] = BY_CHARACTERS) -> str:
    """Tokenise standard-library text; returns the data prefix."""
    write_jsonl(directory / "corpus.jsonl", stdlib_documents(documents))
    run_command(
        [
            "tools/datasets/preprocess_data.py", "--input", "corpus.jsonl", "--output-prefix", "corpus",
            *tokenizer, "--append-eod", "--dataset-impl", "mmap",
        ],
        directory,
    )  # fmt: skip
    return str(directory / "corpus_text_document")


def write_config(directory: Path, name: str = "config.yml", **settings) -> str:
    """Write a config of TINY and `settings` (None removes a key); returns its file name."""
    config = {key: value for key, value in {**TINY, **settings}.items() if value is not None}
    (directory / name).write_text(json.dumps(config, indent=1), encoding="utf-8")
    return name
