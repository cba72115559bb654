"""Scaled rotary positions are those of transformers."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron import registry
from megatron.common.errors import ConfigError
from megatron.model.positional_embeddings import RotaryEmbedding
from megatron.model.positional_embeddings.rope_scaling import make_frequencies
from megatron.model.positional_embeddings.rotary import _tables
from megatron.model.sequential import build_sequential
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.rope_scaling import KINDS
from tests.common.models import model_args, random_tokens, randomize
from tests.unit.neox_arguments.basic import minimal

HEAD, BASE, LONGEST, ORIGINAL = 64, 10000.0, 8192, 2048
SHORT, LONG = [1.0 + j / 40 for j in range(32)], [1.0 + j / 4 for j in range(32)]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
SCALINGS = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.5},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.00001, "beta_slow": 1},
    LLAMA3,
    {**LLAMA3, "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0},
    LONGROPE,
    {**LONGROPE, "factor": 16.0},
    {**LONGROPE, "attention_factor": 1.25},
]


def theirs(scaling: dict, share: float = 1.0, longest: int = LONGEST, **more) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * HEAD,
        num_attention_heads=4,
        max_position_embeddings=longest,
        rope_parameters={**scaling, "rope_theta": BASE, "partial_rotary_factor": share, **more},
    )


def ours(scaling: dict, share: float = 1.0, longest: int = LONGEST):
    return make_frequencies(int(HEAD * share), BASE, longest, scaling)


@pytest.mark.parametrize("length", [1, 100, ORIGINAL, ORIGINAL + 1, 5000, LONGEST])
@pytest.mark.parametrize(
    "scaling", SCALINGS, ids=lambda scaling: "-".join(map(str, list(scaling.values())[:3]))
)
def test_frequencies_and_magnitude_are_those_of_transformers(scaling, length):
    scaling = scaling | (
        {} if scaling["rope_type"] == "linear" else {"original_max_position_embeddings": ORIGINAL}
    )
    config = theirs(scaling)
    expected, magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](
        config, torch.device("cpu"), seq_len=length
    )
    found = ours(scaling)
    torch.testing.assert_close(found.inverse(length), expected)
    assert found.magnitude == pytest.approx(magnitude)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_a_share_of_each_head_is_scaled_like_a_smaller_head(kind, share):
    scaling = {**LLAMA3, "rope_type": kind} if kind == "llama3" else {"rope_type": kind, "factor": 4.0}
    if kind != "linear":
        scaling["original_max_position_embeddings"] = ORIGINAL
    expected, _ = ROPE_INIT_FUNCTIONS[kind](theirs(scaling, share), torch.device("cpu"))
    torch.testing.assert_close(ours(scaling, share).inverse(100), expected)


@pytest.mark.parametrize("length", [1, 1000, ORIGINAL, ORIGINAL + 1, 3000, 8000])
def test_dynamic_frequencies_follow_the_length(length):
    # transformers takes max_position_embeddings for the length before scaling.
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    config = theirs(scaling, longest=ORIGINAL)
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=length)
    torch.testing.assert_close(ours(scaling, longest=ORIGINAL).inverse(length), expected)
    named = ours({**scaling, "original_max_position_embeddings": ORIGINAL})
    torch.testing.assert_close(named.inverse(length), expected)


@pytest.mark.parametrize("length", [7, 40, 16, 17, 30])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {**LLAMA3, "original_max_position_embeddings": 16},
        {**LONGROPE, "original_max_position_embeddings": 16},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_tables_are_those_of_a_fresh_llama_whatever_was_asked_before(scaling, length):
    longest = 16 if scaling["rope_type"] == "dynamic" else 64
    rotary = RotaryEmbedding(HEAD, 64, precision=torch.float32, frequencies=ours(scaling, longest=longest))
    for before in (3, 50, 64):
        rotary.half_tables(before, torch.float32, torch.device("cpu"))
    found = rotary(torch.empty(length, 1))
    reference = LlamaRotaryEmbedding(theirs(scaling, longest=longest))
    expected = reference(torch.empty(1), torch.arange(length)[None])
    for ours_, theirs_ in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_[:, 0, 0], theirs_[0])


def test_there_are_no_more_tables_than_scalings_however_many_lengths():
    frequencies = ours({"rope_type": "dynamic", "factor": 3.5}, longest=8)
    rotary = RotaryEmbedding(HEAD, 8, frequencies=frequencies)
    before = len(_tables)
    for length in range(9, 60):
        rotary.half_tables(length, torch.half, torch.device("cpu"))
    assert len(_tables) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_no_logits_within_the_original_length(kind):
    entry = registry.entry("rope scaling", kind).example
    scaling = {"rope_type": kind, **entry["rope_scaling"]}
    keys = {"hidden_size": 32, "rope_scaling": scaling, "seq_length": 32, "max_position_embeddings": 32}
    model = build_sequential(model_args(**keys))
    randomize(model)
    tokens, positions = random_tokens(1, 30), torch.arange(30)[None]
    model.inference_mode(use_cache=False)
    with torch.no_grad():
        whole = model((tokens[:, :16], positions[:, :16]))
        model.inference_mode(use_cache=True)
        parts = [model((tokens[:, at : at + 4], positions[:, at : at + 4])) for at in range(0, 16, 4)]
        beyond = model((tokens[:, 16:], positions[:, 16:]))
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert torch.isfinite(beyond).all()


def test_the_registry_and_the_rules_know_the_same_kinds():
    assert set(registry.names("rope scaling")) == set(KINDS)


def test_the_older_name_of_the_kind_is_understood():
    args = NeoXArgs.from_dict(minimal(pos_emb="rotary", rope_scaling={"type": "linear", "factor": 2.0}))
    assert make_frequencies(8, BASE, 32, args.rope_scaling).factor == 2.0


@pytest.mark.parametrize(
    "scaling, message",
    [
        ({"factor": 2.0}, "rope_scaling.rope_type=None must be one of linear"),
        ({"rope_type": "yarm", "factor": 2.0}, "did you mean 'yarn'"),
        ({"rope_type": "linear"}, "rope_scaling.factor is missing; rope_type linear needs it"),
        ({"rope_type": "linear", "factor": 0.5}, "factor=0.5 must be a number of at least 1"),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1},
            "original_max_position_embeddings=1 must be a whole number above 1",
        ),
        ({"rope_type": "linear", "factor": 2, "beta_fast": 2}, "beta_fast is not known to rope_type linear"),
        ({"rope_type": "yarn", "factor": 2, "beta_fats": 2}, "did you mean 'beta_fast'"),
        ({"rope_type": "yarn", "factor": 2, "beta_fast": 2, "beta_slow": 3}, "beta_fast=2 must be above"),
        (
            {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 64},
            "must not exceed max_position_embeddings=32",
        ),
        (
            {**LLAMA3, "original_max_position_embeddings": 16, "high_freq_factor": 1.0},
            "high_freq_factor=1.0 must be above rope_scaling.low_freq_factor=1.0",
        ),
        (
            {**LLAMA3, "original_max_position_embeddings": 16, "high_freq_factor": "4"},
            "high_freq_factor='4' must be a number above 0",
        ),
        ({"rope_type": "yarn", "factor": 2.0, "beta_slow": 32}, "beta_fast=32 must be above .*beta_slow=32"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": "no"}, "truncate='no' must be true or false"),
        ({"rope_type": "linear", "factor": None}, "factor is missing; rope_type linear needs it"),
        ({"rope_type": ["yarn"], "factor": 2.0}, "must be one of linear"),
        ({**LONGROPE, "short_factor": None}, "short_factor is missing"),
        (LLAMA3, "original_max_position_embeddings is missing; rope_type llama3 needs it"),
        ({**LONGROPE, "original_max_position_embeddings": 16}, "short_factor has 32 numbers, but half"),
        ({"rope_type": "dynamic", "factor": "2"}, "factor='2' must be a number"),
    ],
)
def test_mistakes_are_told_with_their_keys(scaling, message):
    with pytest.raises(ConfigError, match=message):
        NeoXArgs.from_dict(minimal(pos_emb="rotary", rope_scaling=scaling))


def test_scaling_needs_rotary_positions():
    with pytest.raises(ConfigError, match="not pos_emb: alibi"):
        NeoXArgs.from_dict(minimal(pos_emb="alibi", rope_scaling={"rope_type": "linear", "factor": 2.0}))


def test_dynamic_scaling_needs_more_than_one_pair_of_features():
    keys = {"pos_emb": "rotary", "rotary_pct": 0.125, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    with pytest.raises(ConfigError, match="needs at least 4 rotated features"):
        NeoXArgs.from_dict(minimal(**keys))
