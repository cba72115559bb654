"""Requests of lm-evaluation-harness per second, beside its own Hugging Face model, of the same weights in one process.

    python tools/benchmarks/evaluation.py                 a small model in fp32
    python tools/benchmarks/evaluation.py --threads 1

Both sides get the same requests and batch size, take turns, and must give the same answers.
"""

import argparse
import json
import logging
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from megatron.common.device import synchronize
from megatron.common.errors import run_main
from megatron.common.optional import require
from tools.benchmarks.table import print_table

LENGTH, VOCABULARY = 256, 4096
NEW_TEXT = {"until": ["\n\n\n"], "max_gen_toks": 32}


def texts(count: int, characters: int) -> list[str]:
    """The beginnings of modules of Python's standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    whole = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    return [text[:characters] for text in whole if len(text) > characters][:count]


def write_tokenizer(folder: Path) -> Path:
    """A BPE tokenizer as transformers saves it. Returns: its tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    from megatron.tokenizer.train_tokenizer import save_tokenizer, train_bpe

    save_tokenizer(train_bpe(texts(60, 20_000), VOCABULARY, lossless=True), folder / "tokenizer.json")
    mark = "<|endoftext|>"
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=mark, eos_token=mark, pad_token=mark
    )
    fast.save_pretrained(folder)
    return folder / "tokenizer.json"


def requests() -> dict[str, list]:
    """By name: (request type, arguments of each)."""
    documents = texts(48, 600)
    return {
        "choices of several tokens": (
            "loglikelihood",
            [(text, f" {words}") for text in documents for words in ("return None", "class Node:", "# the end of it")],
        ),
        "choices of one token": (
            "loglikelihood",
            [(text, f" {letter}") for text in documents for letter in "ABCD"],
        ),
        "whole texts": ("loglikelihood_rolling", [(text,) for text in texts(48, 1500)]),
        "generation, 32 tokens": (
            "generate_until",
            [(text[: 200 + 37 * n % 240], dict(NEW_TEXT)) for n, text in enumerate(documents)],
        ),
    }  # fmt: skip


def both_sides(folder: Path, batch_size: int) -> dict:
    """{"this project": adapter, "lm_eval's HFLM": its model} of the same random weights."""
    from lm_eval.models.huggingface import HFLM

    from megatron.checkpointing import save_checkpoint
    from megatron.conversion.to_hf import export_hf
    from megatron.engine.inference import InferenceModel
    from megatron.engine.setup import build_engine, get_model
    from megatron.evaluation.adapter import EvalHarnessAdapter
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.objectives import build_objective

    config = {
        "num_layers": 4, "hidden_size": 256, "num_attention_heads": 8, "seq_length": LENGTH,
        "max_position_embeddings": LENGTH, "pos_emb": "rotary", "rotary_pct": 0.25, "no_weight_tying": True,
        "gpt_j_residual": True, "init_method_std": 0.1, "tokenizer_type": "HFTokenizer",
        "vocab_file": str(write_tokenizer(folder)), "data_path": "none", "train_iters": 1,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3}}, "train_micro_batch_size_per_gpu": batch_size,
        "global_num_gpus": 1, "save": str(folder / "model"), "checkpoint_factor": 1,
    }  # fmt: skip
    neox_args = NeoXArgs.from_dict(config)
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    initialize_megatron(neox_args)
    engine, optimizer, scheduler = build_engine(neox_args, get_model(neox_args), build_objective(neox_args))
    save_checkpoint(neox_args, 1, engine, optimizer, scheduler)
    written = folder / "config.json"
    written.write_text(json.dumps(config), encoding="utf-8")
    export_hf(folder / "model" / "global_step1", [written], folder / "hf", vocab_is_hf_tokenizer=True)
    theirs = HFLM(str(folder / "hf"), device=str(engine.device), batch_size=batch_size, dtype="float32")
    return {
        "this project": EvalHarnessAdapter(InferenceModel(engine, neox_args), None, neox_args),
        "lm_eval's HFLM": theirs,
    }


def measure(sides: dict, kind: str, arguments: list, rounds: int) -> dict[str, float]:
    """Median seconds of each side. Raises: AssertionError when their answers differ."""
    from lm_eval.api.instance import Instance

    times: dict[str, list[float]] = {name: [] for name in sides}
    answers = {}
    for number in range(rounds + 1):
        for name, side in sides.items():
            asked = [Instance(kind, {}, item, n) for n, item in enumerate(arguments)]
            synchronize()
            start = time.perf_counter()
            answers[name] = getattr(side, kind)(asked, disable_tqdm=True)
            synchronize()
            if number:  # the first is for warming up
                times[name].append(time.perf_counter() - start)
    check_equal(*answers.values())
    return {name: statistics.median(values) for name, values in times.items()}


def check_equal(ours: list, theirs: list) -> None:
    for own, other in zip(ours, theirs, strict=True):
        if isinstance(own, str):
            assert own == other, (own, other)
            continue
        own, other = (value if isinstance(value, tuple) else (value,) for value in (own, other))
        assert abs(own[0] - other[0]) <= 1e-5 * abs(other[0]) + 1e-4, (own, other)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=8, help="texts per pass (8)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch on a CPU")
    options = parser.parse_args()
    require("lm_eval", "eval", "this benchmark")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sides = both_sides(Path(folder), options.batch_size)
        for name, (kind, arguments) in requests().items():
            seconds = measure(sides, kind, arguments, options.rounds)
            ours, theirs = (len(arguments) / value for value in seconds.values())
            rows.append([name, f"{ours:,.1f}", f"{theirs:,.1f}", f"{ours / theirs:.2f}"])
    print_table(
        f"requests per second, batch {options.batch_size}, {torch.get_num_threads()} threads",
        ["requests", *sides, "ratio"],
        rows,
    )


if __name__ == "__main__":
    run_main(main)
