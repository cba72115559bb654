"""What choices cannot be combined with is refused in one place, with the keys and the reason."""

import pytest

from megatron import registry
from megatron.common.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.features import CACHED_GENERATION, FEATURES, check_features, refusals

SMALL = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": 16,
    "max_position_embeddings": 16,
    "train_batch_size": 2,
    "global_num_gpus": 1,
}


@pytest.fixture
def lame_norm(monkeypatch):
    """layernorm as if it lacked two features."""
    lacks = {"alibi": "it is lame", CACHED_GENERATION: "it forgets"}
    entry = registry.entry("norm", "layernorm")
    monkeypatch.setitem(
        registry._ENTRIES["norm"], "layernorm", registry.Entry("layernorm", entry.value, lacks=lacks)
    )


def test_a_lacking_choice_is_refused_with_keys_and_reason(lame_norm, monkeypatch):
    monkeypatch.setitem(FEATURES, "alibi", type(FEATURES["alibi"])("some_key", lambda args: True))
    with pytest.raises(ConfigError, match=r"norm: layernorm does not support alibi \(some_key\): it is lame"):
        check_features(NeoXArgs.from_dict(SMALL))


def test_what_nobody_asks_for_is_not_refused(lame_norm):
    assert list(refusals(NeoXArgs.from_dict(SMALL))) == []


def test_only_cached_generation_needs_a_cache(lame_norm):
    with pytest.raises(ConfigError, match="recompute: true"):
        check_features(NeoXArgs.from_dict(SMALL), cached=True)


@pytest.mark.parametrize("kind", sorted(registry.KINDS))
def test_choices_lack_known_features_only(kind):
    for name in registry.names(kind):
        for feature, reason in registry.entry(kind, name).lacks.items():
            assert feature in FEATURES or feature == CACHED_GENERATION, (
                f"{kind} {name}: unknown feature {feature!r}"
            )
            assert reason and not reason.endswith("."), f"{kind} {name} lacks {feature!r} without a reason"
