"""Tokens and characters are counted where a loss is."""

import pytest
import torch

from megatron.utils import CharCounter


class Words:
    """Token n stands for n letters; 9 ends a document."""

    eod = 9

    def detokenize(self, tokens: list[int]) -> str:
        return "".join("x" * token for token in tokens)


def test_batches_pass_unchanged_and_what_is_predicted_is_counted():
    batches = [{"text": torch.tensor([[7, 2, 4], [1, 1, 3]])}, {"text": torch.tensor([[1, 9, 2]])}]
    counter = CharCounter(iter(batches), Words())
    assert [batch["text"] is given["text"] for batch, given in zip(counter, batches, strict=True)] == [
        True,
        True,
    ]
    # 2 4 | 1 3 | end-of-document 2
    assert (counter.tokens, counter.characters) == (6, 12)
    assert counter.tokens_per_char() == pytest.approx(0.5)


def test_tokens_without_a_label_do_not_count():
    batch = {"text": torch.tensor([[7, 2, 4]]), "label": torch.tensor([[7, -100, 4]])}
    counter = CharCounter(iter([batch]), Words())
    next(counter)
    assert (counter.tokens, counter.characters) == (1, 4)


def test_no_characters_are_no_division_by_zero():
    counter = CharCounter(iter([{"text": torch.tensor([[9, 9]])}]), Words())
    next(counter)
    assert counter.tokens_per_char() == float("inf")
