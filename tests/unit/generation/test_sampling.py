"""Choosing the next token."""

import itertools

import pytest
import torch

from megatron.common.errors import ConfigError
from megatron.generation.sampling import Sampler, SamplingOptions, filter_logits, pick, row_seed

INFINITY = float("inf")


def filtered_by_hand(row, top_k, top_p):
    """The definition, token by token."""
    kept = set(range(len(row)))
    if top_k:
        bar = sorted(row, reverse=True)[min(top_k, len(row)) - 1]
        kept = {i for i in kept if row[i] >= bar}
    if top_p:
        weights = {i: torch.tensor(row[i], dtype=torch.float64).exp().item() for i in kept}
        total, before = sum(weights.values()), 0.0
        for place, i in enumerate(sorted(kept, key=lambda i: (-row[i], i))):
            if place and before > top_p:
                kept.discard(i)
            before += weights[i] / total
    return [value if i in kept else -INFINITY for i, value in enumerate(row)]


@pytest.mark.parametrize(
    "top_k, top_p", list(itertools.product([0, 1, 3, 10, 99], [0.0, 0.05, 0.33, 0.9, 1.0]))
)
def test_filter_keeps_what_the_definition_keeps(top_k, top_p):
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(top_k)) * 2
    expected = [filtered_by_hand(row, top_k, top_p) for row in logits.tolist()]
    assert filter_logits(logits, top_k, top_p).tolist() == expected


def test_filter_keeps_ties_with_the_last_kept_token_and_works_in_place():
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0]])
    filter_logits(logits, top_k=3)
    assert logits.tolist() == [[1.0, 3.0, 1.0, 2.0, 1.0]]
    filter_logits(logits, top_k=2)
    assert logits.tolist() == [[-INFINITY, 3.0, -INFINITY, 2.0, -INFINITY]]


def test_the_likeliest_token_survives_any_top_p():
    assert filter_logits(torch.tensor([[0.0, 5.0, 1.0]]), top_p=1e-9).isfinite().tolist() == [
        [False, True, False]
    ]


@pytest.mark.parametrize("top_k, top_p", [(0, 0.0), (2, 0.0), (0, 0.5), (3, 0.9)])
def test_temperature_zero_is_greedy_whatever_top_k_and_top_p_say(top_k, top_p):
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    sampler = Sampler(SamplingOptions(0.0, top_k, top_p), vocab_size=8, row_seeds=[0, 1, 2, 3])
    assert sampler(logits).tolist() == logits.argmax(-1).tolist()


def test_padding_rows_of_the_vocabulary_are_never_chosen():
    logits = torch.zeros(2, 16)
    logits[:, 10:] = 50.0
    assert Sampler(SamplingOptions(), 10, [1, 2])(logits).max() < 10
    assert Sampler(SamplingOptions(temperature=5.0), 10, [1, 2])(logits).max() < 10


def test_the_logits_given_are_left_alone():
    logits = torch.randn(2, 6)
    before = logits.clone()
    Sampler(SamplingOptions(0.7, 2, 0.5), 6, [1, 2])(logits)
    assert torch.equal(logits, before)


def test_draws_follow_the_softmax_of_the_scaled_logits():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    sampler = Sampler(SamplingOptions(temperature=2.0), 4, [7])
    counts = torch.bincount(torch.cat([sampler(logits) for _ in range(8000)]), minlength=4)
    assert torch.allclose(counts / 8000, torch.softmax(logits[0] / 2.0, -1), atol=0.02)


def test_a_row_draws_the_same_beside_any_other_rows():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    options = SamplingOptions(temperature=1.0)
    together = Sampler(options, 50, [5, 6, 7])
    alone = Sampler(options, 50, [6])
    assert [together(logits)[1].item() for _ in range(20)] == [alone(logits[1:2]).item() for _ in range(20)]


def test_pick_takes_the_token_at_the_point_and_never_an_impossible_one():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)

    def at(point):
        return pick(probabilities, torch.tensor([point], dtype=torch.float64)).item()

    assert [at(0.0), at(0.4999), at(0.5), at(0.9999999999999999)] == [1, 1, 3, 3]


def test_row_seeds_differ_by_seed_and_by_name():
    assert len({row_seed(seed, name) for seed in (1, 2, 3) for name in (1, 2, 3)}) == 9


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 1.5}, {"top_p": -0.1}])
def test_impossible_options_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SamplingOptions(**bad)
