"""Metrics files as runs write them."""

import json
import math
from pathlib import Path

NAN = math.nan


def start(iteration: int, time: float, devices: int = 2) -> dict:
    return {
        "iteration": iteration,
        "time": time,
        "runtime/devices": float(devices),
        "runtime/startup_time": 3.0,
    }


def step(iteration: int, time: float, loss: float, **tags) -> dict:
    """The record of an interval, in which 64 tokens an iteration were trained on."""
    return {
        "iteration": iteration,
        "time": time,
        "train/lm_loss": loss,
        "train/learning_rate": 1e-3,
        "train/grad_norm": 1.0 + loss,
        "runtime/tokens_per_sec": 6400.0,
        "runtime/model_flops_utilization": 40.0,
        "runtime/hardware_flops_utilization": 50.0,
        "runtime/iteration_time": 0.01,
        "runtime/data_wait": 0.001,
        "runtime/consumed_tokens": 64.0 * iteration,
        "memory/max_allocated": 3.0 * 2**30,
        "memory/max_reserved": 4.0 * 2**30,
        "gradient_norms/2.attention.dense.weight": 1.0,
        **tags,
    }


def write_log(folder: Path, records: list[dict], config: dict | None = None, tail: str = "") -> Path:
    """Write the files of a run; `tail` stands behind the last line. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    if config is not None:
        (folder / "neox_args.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def steps(count: int, first: int = 1, time: float = 1000.0) -> list[dict]:
    """A run whose loss falls from 8 to 2, an iteration a second."""
    return [
        step(n, time + n, 2 + 6 * math.exp(-8 * n / count) + 0.1 * math.sin(n))
        for n in range(first, count + 1)
    ]
