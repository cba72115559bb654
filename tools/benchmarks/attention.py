"""Attention back-ends by pattern, forward and backward, against torch's SDPA in the same run.

    python tools/benchmarks/attention.py                 on a CPU in fp32, on a GPU in bf16
    python tools/benchmarks/attention.py --length 8192

Two peers: SDPA that is handed the whole mask and bias as a tensor of [t, t], which computes the same; and plain causal
SDPA, which computes more than a sparse pattern needs and less than a biased one. All take turns in every round.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F

from megatron.common import device as door
from megatron.common.errors import run_main
from megatron.model.attention.backend import Demands
from megatron.model.attention.flex import visibility
from megatron.model.attention.pattern import BlockLayout, OnDevice, Pattern
from megatron.registry import lookup, names
from tools.benchmarks.table import print_table

BATCH, HEADS, KV_HEADS, SIZE = 1, 8, 2, 64
BLOCK = 16


def bigbird_like(blocks: int, head: int) -> torch.Tensor:
    """The own block, the one before, the first one, and about one block in sixteen."""
    number = torch.arange(blocks)
    apart = number[:, None] - number
    return (apart < 2) | (number == 0) | ((apart * 7 + number[:, None] * 3) % 16 == 0)


def patterns(length: int) -> dict[str, Pattern]:
    slopes = OnDevice(torch.tensor([2.0 ** -(i + 1) for i in range(HEADS)]))
    return {
        "causal": Pattern(),
        "window of an eighth": Pattern(window=length // 8),
        "block-sparse": Pattern(layout=BlockLayout(BLOCK, bigbird_like, range(1))),
        "alibi": Pattern(slopes=slopes),
        "documents of an eighth": Pattern(),
    }


def whole_mask(pattern: Pattern, length: int, positions: torch.Tensor | None, dtype: torch.dtype):
    """[1, 1 or n, t, t]: the mask, or bias, that the pattern is."""
    device = door.current_device()
    index = torch.arange(length, device=device)
    batch, head = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
    visible = visibility(pattern, length, device, positions)(batch, head, index[:, None], index)[None, None]
    if not pattern.biased:
        return visible
    distance = (index[:, None] - index).clamp(min=0)
    added = pattern.bias_by_distance(length, device)[:, distance].to(dtype)
    return added.masked_fill(~visible, -torch.inf)


def sides(pattern: Pattern, length: int, positions: torch.Tensor | None, dtype: torch.dtype) -> dict:
    """Name -> attention of (query, key, value), of the peers and of all back-ends that can serve."""
    demands = Demands(SIZE, dtype, isolated=positions is not None)
    mask = whole_mask(pattern, length, positions, dtype)
    found = {
        "SDPA, mask [t, t]": lambda *qkv: F.scaled_dot_product_attention(
            *qkv, attn_mask=mask, enable_gqa=True
        ),
        "SDPA, plain causal": lambda *qkv: F.scaled_dot_product_attention(
            *qkv, is_causal=True, enable_gqa=True
        ),
    }
    for name in names("attention back-end"):
        kind = lookup("attention back-end", name)
        if kind.serves(pattern, demands):
            attend = kind(pattern)
            found[name] = lambda *qkv, attend=attend: attend(
                *qkv, scale=SIZE**-0.5, dropout=0.0, positions=positions
            )
    return found


def seconds(attentions: dict, inputs: list[torch.Tensor], rounds: int) -> dict[str, float]:
    """Median of forward and backward of each; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in attentions}
    for number in range(rounds + 2):  # the first two warm up
        for name, attend in attentions.items():
            door.synchronize()
            start = time.perf_counter()
            attend(*inputs).sum().backward()
            door.synchronize()
            if number >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=2048, help="positions (default: 2048)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    length, device = options.length, door.current_device()
    dtype = torch.bfloat16 if door.has_accelerator() else torch.float32
    rows = []
    for name, pattern in patterns(length).items():
        positions = None
        if name.startswith("documents"):
            positions = (torch.arange(length, device=device) % (length // 8)).expand(BATCH, -1).contiguous()
        inputs = [
            torch.randn(BATCH, heads, length, SIZE, device=device, dtype=dtype, requires_grad=True)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        ]
        found = seconds(sides(pattern, length, positions, dtype), inputs, options.rounds)
        peers = list(found.values())[:2]
        for side, value in found.items():
            ratios = [f"{peer / value:.2f}" for peer in peers]
            rows.append([f"{name}: {side}", f"{value * 1000:.2f}", *ratios])
    print_table(
        f"attention, forward and backward, {length} positions, {HEADS} heads on {KV_HEADS}, {dtype}",
        ["pattern: side", "ms", "speed, mask = 1", "speed, causal = 1"],
        rows,
    )


if __name__ == "__main__":
    run_main(main)
