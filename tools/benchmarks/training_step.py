"""Training step against a plain PyTorch loop of the same model, on one process, side by side in one run.

    python tools/benchmarks/training_step.py                  a small model in fp32, on CPU or GPU
    python tools/benchmarks/training_step.py --shape 160M     Pythia shapes in bf16, on a GPU (also 410M, 1.4B)

On a GPU the plain loop runs under torch.compile and autocast with fused AdamW. Both sides see the same random tokens
and take turns, so that a change of the machine's clock strikes both. FLOPs: megatron/logging/flops.py.
"""

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from megatron.common import device as door
from megatron.common.errors import ConfigError, run_main
from megatron.logging.flops import model_flops_per_iteration
from megatron.neox_arguments import NeoXArgs
from tools.benchmarks.plain_gpt import PlainGPT
from tools.benchmarks.table import print_table

# name: layers, hidden, heads, sequence, vocabulary, global batch in tokens
SHAPES = {
    "small": (4, 256, 8, 256, 4096, 4096),
    "160M": (12, 768, 12, 2048, 50304, 262144),
    "410M": (24, 1024, 16, 2048, 50304, 262144),
    "1.4B": (24, 2048, 16, 2048, 50304, 262144),
}
LEARNING_RATE = 1e-4


def configuration(shape: tuple, micro_batch: int, precision: str) -> NeoXArgs:
    """The config of a run on this project's side."""
    layers, hidden, heads, sequence, vocabulary, tokens = shape
    neox_args = NeoXArgs.from_dict(
        {
            "num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "seq_length": sequence,
            "max_position_embeddings": sequence, "pos_emb": "rotary", "rotary_pct": 0.25, "no_weight_tying": True,
            "gpt_j_residual": True, "precision": precision, "tokenizer_type": "CharLevelTokenizer",
            "data_path": "random", "train_iters": 1000, "lr_decay_style": "constant", "warmup": 0.0,
            "optimizer": {"type": "Adam", "params": {"lr": LEARNING_RATE, "betas": [0.9, 0.95], "eps": 1e-8}},
            "train_micro_batch_size_per_gpu": micro_batch, "train_batch_size": tokens // sequence,
            "global_num_gpus": 1, "weight_decay": 0.1, "gradient_clipping": 1.0, "steps_per_print": 10**6,
        }
    )  # fmt: skip
    neox_args.configure_distributed_args()
    # No tokenizer, so that all rows of the vocabulary are real ones, as on the other side.
    neox_args.padded_vocab_size = vocabulary
    return neox_args


def our_side(neox_args: NeoXArgs):
    """A function that makes one step of this project's training on a list of micro-batches."""
    from megatron.common.timers import Timers
    from megatron.initialize import initialize_megatron
    from megatron.training import setup_model_and_optimizer, train_step

    initialize_megatron(neox_args)
    engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
    engine.train()
    timers = Timers()

    def step(micro_batches: list[torch.Tensor]) -> torch.Tensor:
        iterator = iter([{"text": text} for text in micro_batches])
        return train_step(neox_args, timers, iterator, engine, optimizer, scheduler)[0]["lm_loss"]

    return step


def plain_side(shape: tuple, precision: str):
    """A function that makes one step of the plain loop."""
    layers, hidden, heads, sequence, vocabulary, _ = shape
    device = door.current_device()
    model = PlainGPT(vocabulary, layers, hidden, heads, sequence, device)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, fused=True)
    forward = torch.compile(model) if device.type == "cuda" else model
    cast = (
        torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
    )

    def step(micro_batches: list[torch.Tensor]) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for text in micro_batches:
            with cast:
                loss = forward(text.to(device, non_blocking=True)) / len(micro_batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total

    return step


def measure(sides: dict, batch: list[torch.Tensor], rounds: int, steps: int) -> dict[str, float]:
    """Median seconds per step of every side; the sides take turns."""
    for step in sides.values():
        for _ in range(2):
            step(batch)
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            door.synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                step(batch)
            door.synchronize()
            times[name].append((time.perf_counter() - start) / steps)
    return {name: statistics.median(values) for name, values in times.items()}


def with_peak_memory(build, batch: list[torch.Tensor]):
    """Build a side and make its first step. Returns: (side, GB of device memory it needs at its peak, None on CPU)."""
    if not door.has_accelerator():
        return build(), None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    side = build()
    side(batch)
    torch.cuda.synchronize()
    return side, (torch.cuda.max_memory_allocated() - before) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument(
        "--micro-batch", type=int, default=None, help="samples per forward pass (default: 16, or 4 on CPU)"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--peak-tflops", type=float, default=None, help="the device's peak, for MFU")
    options = parser.parse_args()
    if options.shape != "small" and not door.has_accelerator():
        raise ConfigError(f"--shape {options.shape} needs a GPU; leave it out on a CPU")
    shape = SHAPES[options.shape]
    precision = "fp32" if options.shape == "small" else "bfloat16"
    sequence, vocabulary, tokens = shape[3:]
    micro_batch = options.micro_batch or (16 if door.has_accelerator() else 4)
    generator = torch.Generator().manual_seed(1)
    samples = torch.randint(vocabulary, (tokens // sequence, sequence + 1), generator=generator)
    batch = list(samples.split(micro_batch))

    neox_args = configuration(shape, micro_batch, precision)
    builders = {
        "this project": lambda: our_side(neox_args),
        "plain PyTorch": lambda: plain_side(shape, precision),
    }
    built = {name: with_peak_memory(build, batch) for name, build in builders.items()}
    sides = {name: side for name, (side, _) in built.items()}
    flops = model_flops_per_iteration(neox_args)
    seconds = measure(sides, batch, options.rounds, options.steps)
    rows = []
    for name, value in seconds.items():
        row = [
            name,
            f"{tokens / value:,.0f}",
            f"{value * 1000:.1f}",
            f"{seconds['plain PyTorch'] / value:.3f}",
        ]
        if options.peak_tflops:
            row.append(f"{100 * flops / value / options.peak_tflops / 1e12:.1f} %")
        if built[name][1] is not None:
            row.append(f"{built[name][1]:.1f} GB")
        rows.append(row)
    header = ["side", "tokens/s", "ms/step", "ratio to plain"] + (["MFU"] if options.peak_tflops else [])
    header += ["peak memory"] if door.has_accelerator() else []
    print_table(
        f"training step, {options.shape}, {precision}, micro-batch {micro_batch}, {tokens} tokens/step",
        header,
        rows,
    )


if __name__ == "__main__":
    run_main(main)
