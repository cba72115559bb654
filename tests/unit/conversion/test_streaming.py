"""A model never has to be in memory as a whole."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.common.paths import ROOT
from tests.common.runs import environment

LAYERS, HIDDEN, VOCABULARY = 24, 512, 1000
SCRIPT = """
import json, sys, threading, time
from megatron.conversion.from_hf import import_hf
from megatron.conversion.to_hf import export_hf
import deepspeed, transformers, megatron.model, safetensors.torch, huggingface_hub, torch._dynamo  # weigh something

def private_memory():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def peak_of(action):
    before, seen, done = private_memory(), [0], threading.Event()
    def watch():
        while not done.is_set():
            seen.append(private_memory())
            time.sleep(0.002)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return max(seen) - before

tensor, pipe = int(sys.argv[1]), int(sys.argv[2])
peaks = [
    peak_of(lambda: import_hf("hf", "neox", tensor, pipe)),
    peak_of(lambda: export_hf("neox/global_step0", [], "back", shard_size="20MB")),
]
print(json.dumps(peaks))
"""


@pytest.mark.parametrize(("tensor", "pipe"), [(1, 0), (2, 1)])
def test_memory_stays_far_below_the_size_of_the_model(tmp_path, tensor, pipe):
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        intermediate_size=2 * HIDDEN,
        architectures=["GPTNeoXForCausalLM"],
    )
    config.save_pretrained(tmp_path / "hf")
    with torch.device("meta"):
        shapes = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    weights = {name: torch.zeros(value.shape) for name, value in shapes.items()}
    weights["embed_out.weight"] = weights.pop("lm_head.weight")  # its name in files
    save_file(weights, tmp_path / "hf/model.safetensors", {"format": "pt"})
    size = sum(value.nbytes for value in weights.values())
    assert size > 180e6
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tensor), str(pipe)],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    imported, exported = json.loads(process.stdout.splitlines()[-1])
    assert imported < size / 5
    # One file of 20 MB at a time.
    assert exported < size / 5
