"""Block-sparse attention kinds: every query sees some blocks of the keys before it.

Options: megatron/neox_arguments/sparsity.py. Layouts are causal, and what a block sees does not depend on how long the
sequence is, so that decoding can go on with the layout of training. Random blocks depend on the seed, the layer and the
head only. Legend: row, col are numbers of blocks of queries and of keys.
"""

import random
from collections.abc import Callable

import torch

from megatron import mpu
from megatron.model.attention.pattern import BlockLayout, Pattern
from megatron.neox_arguments.sparsity import sparsity_options
from megatron.registry import register

# (options, blocks, head, seed) -> bool [blocks, blocks]
Definition = Callable[[dict, int, int, str], torch.Tensor]


def _sparse(kind: str, **example) -> Callable[[Definition], Definition]:
    """Register a definition of a layout as the attention kind of that name."""

    def add(define: Definition) -> Definition:
        @register("attention", kind, example={"sparsity_config": {"block": 4, **example}})
        def pattern(neox_args, layer_number: int) -> Pattern:
            options = sparsity_options(kind, neox_args.sparsity_config)
            heads = neox_args.num_attention_heads // mpu.get_model_parallel_world_size()
            first = mpu.get_model_parallel_rank() * heads
            own = range(first, first + heads) if options["different_layout_per_head"] else range(1)
            seed = f"{neox_args.seed} {layer_number}"
            return Pattern(
                layout=BlockLayout(
                    options["block"], lambda blocks, head: define(options, blocks, head, seed), own
                )
            )

        return define

    return add


@_sparse("sparse_fixed", num_local_blocks=2)
def fixed(options: dict, blocks: int, head: int, seed: str) -> torch.Tensor:
    """arXiv 1904.10509: own stretch of num_local_blocks, and the last num_global_blocks of every earlier one (or those
    before them, where heads have different patterns)."""
    local, count = options["num_local_blocks"], options["num_global_blocks"]
    row, col = _grid(blocks)
    first = local - (1 + head % options["num_different_global_patterns"]) * count
    place = col % local - first
    return (row // local == col // local) | ((place >= 0) & (place < count))


@_sparse("sparse_variable", local_window_blocks=[1, 2], num_random_blocks=1)
def variable(options: dict, blocks: int, head: int, seed: str) -> torch.Tensor:
    """Own stretch, of the lengths local_window_blocks in turn, the last repeated; global blocks; random blocks."""
    lengths, stretch = options["local_window_blocks"], []
    while len(stretch) < blocks:
        number = stretch[-1] + 1 if stretch else 0
        stretch += [number] * lengths[min(number, len(lengths) - 1)]
    stretch = torch.tensor(stretch[:blocks])
    local = stretch[:, None] == stretch
    return local | _global(options, blocks) | _random(options, blocks, head, seed)


@_sparse("bigbird")
def bigbird(options: dict, blocks: int, head: int, seed: str) -> torch.Tensor:
    """arXiv 2007.14062: sliding blocks, the first num_global_blocks, random blocks."""
    _, col = _grid(blocks)
    globally = col < options["num_global_blocks"]
    return _sliding(options, blocks) | globally | _random(options, blocks, head, seed)


@_sparse("bslongformer")
def longformer(options: dict, blocks: int, head: int, seed: str) -> torch.Tensor:
    """arXiv 2004.05150: sliding blocks and global blocks, which see everything before them and are seen by everything
    behind them."""
    globally = _global(options, blocks)
    return _sliding(options, blocks) | globally | globally[-1:].T


def _grid(blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    number = torch.arange(blocks)
    return number[:, None], number[None, :]


def _sliding(options: dict, blocks: int) -> torch.Tensor:
    """A window of num_sliding_window_blocks around the own block, of which the half before it matters."""
    row, col = _grid(blocks)
    return row - col <= options["num_sliding_window_blocks"] // 2


def _global(options: dict, blocks: int) -> torch.Tensor:
    """bool [1, blocks]: the blocks from each global_block_indices to before its global_block_end_indices."""
    starts = options["global_block_indices"]
    ends = options["global_block_end_indices"] or [start + 1 for start in starts]
    _, col = _grid(blocks)
    found = torch.zeros_like(col, dtype=torch.bool)
    for start, end in zip(starts, ends, strict=True):
        found |= (col >= start) & (col < end)
    return found


def _random(options: dict, blocks: int, head: int, seed: str) -> torch.Tensor:
    """num_random_blocks of those up to the own one."""
    found = torch.zeros(blocks, blocks, dtype=torch.bool)
    count = options["num_random_blocks"]
    for row in range(blocks if count else 0):
        drawn = random.Random(f"{seed} {head} {row}").sample(range(row + 1), min(count, row + 1))
        found[row, drawn] = True
    return found
