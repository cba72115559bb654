import pytest

from megatron.common.errors import ConfigError
from megatron.neox_arguments.attention_types import expand_attention_types


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ([[["global"], 4]], ["global"] * 4),
        ([[["global", "flash"], "all"]], ["global", "flash"] * 2),
        ([[["global"], 2], [["flash"], "all"]], ["global", "global", "flash", "flash"]),
        ([[["global"], 1], [["flash"], 3]], ["global", "flash", "flash", "flash"]),
        (["flash", "global", "flash", "global"], ["flash", "global", "flash", "global"]),
    ],
)
def test_patterns_expand_to_one_kind_per_layer(config, kinds):
    assert expand_attention_types(config, 4) == kinds


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([[["global"], 3]], "describes 3 layers, but num_layers=4"),
        ([[["a", "b", "c"], "all"]], "4 layers cannot be filled with whole repeats"),
        ([[["global"], "all"], [["flash"], 2]], "must be the last entry"),
        ([["global", 4]], "not of the form"),
        ([[["global"], "some"]], "repeats 'some' times"),
        ([[["global"], 5], [["flash"], "all"]], "describes"),
    ],
)
def test_patterns_that_do_not_fill_the_model_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        expand_attention_types(config, 4)
