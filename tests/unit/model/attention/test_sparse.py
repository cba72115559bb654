"""Block-sparse layouts are those of the papers, and the same for every length, rank and start of the program."""

import math

import pytest
import torch

from megatron import mpu
from megatron.model.attention.backend import pattern_of_layer
from megatron.model.attention.pattern import Pattern
from tests.common.models import model_args


def pattern(kind, layer=0, **options) -> Pattern:
    """Of a layer of this kind; keys in capitals are config keys."""
    keys = {key.lower(): options.pop(key) for key in list(options) if key.isupper()}
    args = model_args(attention_config=[kind] * 2, sparsity_config=options or None, **keys)
    return pattern_of_layer(args, layer, None)


def picture(kind, blocks, head=0, **options) -> list[str]:
    """A row of "#" and "." for every block of queries, up to its own."""
    layout = pattern(kind, **options).layout
    table = layout.table(blocks * layout.block, torch.device("cpu"))[head]
    assert not table.triu(1).any()
    return ["".join("#" if seen else "." for seen in table[row, : row + 1]) for row in range(blocks)]


def test_fixed_is_the_own_stretch_and_the_end_of_those_before():
    # arXiv 1904.10509, section 4.3: floor(j / l) = floor(i / l), or j mod l in the last c places
    for stretch, last in ((4, 1), (4, 2), (3, 1)):
        rows = picture("sparse_fixed", 10, num_local_blocks=stretch, num_global_blocks=last)
        for i, row in enumerate(rows):
            for j, seen in enumerate(row):
                expected = math.floor(j / stretch) == math.floor(i / stretch) or j % stretch >= stretch - last
                assert (seen == "#") == expected, (i, j)


def test_fixed_heads_can_look_at_different_ends():
    options = {
        "num_local_blocks": 4, "num_different_global_patterns": 2, "different_layout_per_head": True
    }  # fmt: skip
    assert picture("sparse_fixed", 6, head=0, **options)[5] == "...###"
    assert picture("sparse_fixed", 6, head=1, **options)[5] == "..#.##"
    assert picture("sparse_fixed", 6, head=2, **options)[5] == "...###"


def test_variable_has_stretches_of_its_lengths_and_global_blocks():
    assert picture("sparse_variable", 8, local_window_blocks=[1, 2], global_block_indices=[0]) == [
        "#",
        "##",
        "###",
        "#..#",
        "#..##",
        "#....#",
        "#....##",
        "#......#",
    ]
    ranges = {"global_block_indices": [1, 4], "global_block_end_indices": [3, 5]}
    rows = picture("sparse_variable", 8, local_window_blocks=[1], **ranges)
    assert rows == ["#", ".#", ".##", ".###", ".##.#", ".##.##", ".##.#.#", ".##.#..#"]


def test_bigbird_is_a_window_the_first_blocks_and_random_ones():
    # arXiv 2007.14062, section 2
    for windows, first, count in ((3, 1, 1), (5, 2, 2), (1, 0, 3)):
        options = {
            "num_sliding_window_blocks": windows,
            "num_global_blocks": first,
            "num_random_blocks": count,
        }
        rows = picture("bigbird", 40, **options)
        scattered = 0
        for i, row in enumerate(rows):
            fixed = {j for j in range(i + 1) if j < first or i - j <= windows // 2}
            seen = {j for j, mark in enumerate(row) if mark == "#"}
            assert fixed <= seen and len(seen - fixed) <= count
            scattered += len(seen - fixed)
        assert scattered > 20


def test_longformer_is_a_window_and_global_blocks():
    # arXiv 2004.05150, section 3.1: a window, and positions that attend to all and are attended to by all
    assert picture("bslongformer", 7, global_block_indices=[0, 4]) == [
        "#",
        "##",
        "###",
        "#.##",
        "#####",
        "#...##",
        "#...###",
    ]
    ranges = {"global_block_indices": [1], "global_block_end_indices": [3]}
    assert picture("bslongformer", 5, num_sliding_window_blocks=1, **ranges)[4] == ".##.#"


def test_local_is_a_window_of_blocks_or_of_exactly_the_keys_asked_for():
    assert picture("local", 5, num_local_blocks=2) == ["#", "##", ".##", "..##", "...##"]
    assert picture("local", 6) == picture("local", 6, num_sliding_window_blocks=4)
    assert picture("local", 6)[5] == "..####"
    exact = pattern("local", window=256)
    assert exact.window == 256 and exact.layout is None
    assert pattern("local").layout.block == 16


def test_a_sliding_window_narrows_every_kind():
    assert pattern("global", SLIDING_WINDOW_WIDTH=7).window == 7
    assert pattern("local", window=5, SLIDING_WINDOW_WIDTH=7).window == 5
    assert pattern("local", window=9, SLIDING_WINDOW_WIDTH=7).window == 7
    narrowed = pattern("bigbird", SLIDING_WINDOW_WIDTH=7)
    assert narrowed.window == 7 and narrowed.layout is not None


RANDOM = [("bigbird", {}), ("sparse_variable", {"num_random_blocks": 2})]


@pytest.mark.parametrize(
    "kind, options", [*RANDOM, ("sparse_fixed", {}), ("bslongformer", {}), ("local", {})]
)
def test_a_longer_sequence_begins_like_a_shorter_one(kind, options):
    short, long = (pattern(kind, block=4, **options).layout.table(n, torch.device("cpu")) for n in (40, 160))
    assert torch.equal(long[:, :10, :10], short)
    grown = pattern(kind, block=4, **options).layout
    grown.table(40, torch.device("cpu"))
    assert torch.equal(grown.table(160, torch.device("cpu")), long)


@pytest.mark.parametrize("kind, options", RANDOM)
def test_random_blocks_are_drawn_for_the_seed_the_layer_and_the_head(kind, options):
    options = {"block": 4, "different_layout_per_head": True, **options}

    def table(**keys):
        return pattern(kind, **keys, **options).layout.table(160, torch.device("cpu"))

    assert torch.equal(table(), table())
    assert not torch.equal(table(), table(SEED=7)) and not torch.equal(table(), table(layer=1))
    assert len({tuple(head.flatten().tolist()) for head in table()}) == 4


@pytest.mark.parametrize("kind, options", RANDOM)
def test_ranks_have_the_layouts_of_their_heads(kind, options, monkeypatch):
    options = {"block": 4, "different_layout_per_head": True, **options}
    whole = pattern(kind, **options).layout.table(160, torch.device("cpu"))
    monkeypatch.setattr(mpu, "get_model_parallel_world_size", lambda: 2)
    monkeypatch.setattr(mpu, "get_model_parallel_rank", lambda: 1)
    assert torch.equal(pattern(kind, **options).layout.table(160, torch.device("cpu")), whole[2:])


def test_layer_scaling_multiplies_what_is_added_to_the_scores_by_the_layer_number():
    args = model_args(apply_query_key_layer_scaling=True, num_layers=4)
    slopes = torch.ones(4)
    assert [pattern_of_layer(args, layer, slopes).bias_factor for layer in range(4)] == [1, 1, 2, 3]
    assert pattern_of_layer(model_args(), 3 - 2, slopes).bias_factor == 1
