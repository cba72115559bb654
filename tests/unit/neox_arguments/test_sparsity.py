import pytest

from megatron.common.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.sparsity import SPARSITY_OPTIONS, sparsity_options, sparsity_problems
from tests.unit.neox_arguments.basic import minimal

SOUND = [
    (None, ["global"]),
    ({"block": 16, "num_local_blocks": 32}, ["local", "global"]),
    ({"window": 256}, ["local", "global"]),
    ({"window": 256, "block": 8, "num_local_blocks": 4}, ["local", "sparse_fixed"]),
    ({"num_global_blocks": 2, "num_local_blocks": 8}, ["sparse_fixed"]),
    ({"num_different_global_patterns": 4, "different_layout_per_head": True}, ["sparse_fixed"]),
    ({"global_block_indices": [0, 5], "global_block_end_indices": [2, 6]}, ["bslongformer"]),
    ({"num_random_blocks": 0, "local_window_blocks": [1, 2, 4]}, ["sparse_variable"]),
    ({"num_random_blocks": 3, "num_global_blocks": 0}, ["bigbird"]),
]
WRONG = [
    ({"blok": 16}, "local", "blok is unknown; did you mean 'block'?"),
    ({"xyz": 1}, "local", "xyz is unknown; the options are block, different_layout_per_head"),
    (
        {"block": 16},
        "global",
        "has no effect without a sparse layer in attention_config (local, sparse_fixed",
    ),
    ({"num_random_blocks": 2}, "local", "num_random_blocks is read by none of the layers (local)"),
    ({"block": 0}, "local", "block must be a whole number of at least 1, not 0"),
    ({"block": True}, "local", "block must be a whole number of at least 1, not True"),
    ({"window": 2.5}, "local", "window must be a whole number of at least 1, not 2.5"),
    ({"num_random_blocks": -1}, "bigbird", "num_random_blocks must be a whole number of at least 0, not -1"),
    ({"local_window_blocks": []}, "sparse_variable", "local_window_blocks must be a list of whole numbers"),
    ({"local_window_blocks": [0]}, "sparse_variable", "of at least 1, not [0]"),
    ({"global_block_indices": 3}, "bslongformer", "global_block_indices must be a list of whole numbers"),
    ({"different_layout_per_head": 1}, "bigbird", "different_layout_per_head must be true or false, not 1"),
    ({"window": 8, "num_local_blocks": 2}, "local", "window and num_local_blocks both set the window"),
    ({"window": 8, "block": 4}, "local", "window and block both set the window"),
    ({"num_local_blocks": None}, "sparse_fixed", "must be a whole number of at least 1, not None"),
    ({"num_global_blocks": 3}, "sparse_fixed", "num_global_blocks=3 must divide num_local_blocks=4"),
    ({"num_global_blocks": 0}, "sparse_fixed", "num_global_blocks=0 must divide num_local_blocks=4"),
    (
        {"num_different_global_patterns": 5, "different_layout_per_head": True},
        "sparse_fixed",
        "num_different_global_patterns=5 exceeds the 4 places",
    ),
    (
        {"num_different_global_patterns": 2},
        "sparse_fixed",
        "num_different_global_patterns=2 needs different_layout_per_head: true",
    ),
    (
        {"global_block_end_indices": [1], "global_block_indices": [1]},
        "bslongformer",
        "global_block_end_indices=[1] must give an end above each of global_block_indices=[1]",
    ),
    ({"global_block_end_indices": [1, 2]}, "sparse_variable", "must give an end above each"),
]


@pytest.mark.parametrize("config, kinds", SOUND)
def test_sound_options_pass(config, kinds):
    assert list(sparsity_problems(config, kinds)) == []


@pytest.mark.parametrize("config, kind, message", WRONG)
def test_a_mistake_is_told_in_one_line(config, kind, message):
    (problem,) = sparsity_problems(config, [kind])
    assert problem.startswith("sparsity_config") and message in problem and "\n" not in problem


def test_the_config_is_checked():
    with pytest.raises(ConfigError, match="sparsity_config: blok is unknown"):
        NeoXArgs.from_dict(minimal(attention_config=[[["local"], "all"]], sparsity_config={"blok": 1}))
    with pytest.raises(ConfigError, match="sliding_window_width=0 must be above 0"):
        NeoXArgs.from_dict(minimal(sliding_window_width=0))


def test_what_is_not_set_has_its_default():
    options = sparsity_options("bigbird", {"num_random_blocks": 2})
    assert options == {**SPARSITY_OPTIONS["bigbird"], "num_random_blocks": 2}
    assert sparsity_options("local", None) == SPARSITY_OPTIONS["local"]
