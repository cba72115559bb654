"""Requests as token ids, compared with the harness's own ways."""

import random

import pytest
from lm_eval.utils import get_rolling_token_windows

from megatron.common.errors import DataError
from megatron.evaluation.texts import TextCoder
from megatron.tokenizer.hf_tokenizer import HFTokenizer
from tests.common.evaluation import write_tokenizer

MARK = 0  # <|endoftext|>


class Letters:
    """One id per character, and perhaps marks around every text."""

    eod = 999

    def __init__(self, before=(), after=()):
        self.wrapping = (list(before), list(after))

    def tokenize_batch(self, texts):
        before, after = self.wrapping
        return [[*before, *self._ids(text), *after] for text in texts]

    def _ids(self, text):
        return [1 if letter == "^" else ord(letter) for letter in text]

    def detokenize(self, ids):
        return "".join("^" if number == 1 else chr(number) for number in ids)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> HFTokenizer:
    return HFTokenizer(str(write_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


def test_a_continuation_is_what_both_texts_together_have_beyond_the_context(tokenizer):
    (question,) = TextCoder(tokenizer, 100).pairs([("The sun", " and moon")])
    whole = tokenizer.tokenize("The sun and moon")
    assert (question.inputs, question.targets) == (whole[:-1], whole[len(tokenizer.tokenize("The sun")) :])


def test_blanks_at_the_end_of_a_context_belong_to_the_continuation(tokenizer):
    coder = TextCoder(tokenizer, 100)
    assert coder.pairs([("The sun ", "shone")]) == coder.pairs([("The sun", " shone")])


def test_without_a_context_the_mark_stands_before_the_text(tokenizer):
    coder, ids = TextCoder(tokenizer, 100), tokenizer.tokenize("moon")
    assert coder.pairs([("", "moon")]) == [([MARK, *ids[:-1]], ids)]
    assert coder.pairs([("", "<|endoftext|>moon")]) == [([MARK, *ids[:-1]], ids)]


def test_a_context_that_is_too_long_loses_its_beginning():
    (question,) = TextCoder(Letters(), 5).pairs([("abcdefgh", "xy")])
    assert question == ([ord(letter) for letter in "efghx"], [ord("x"), ord("y")])


def test_a_continuation_that_cannot_fit_is_refused():
    with pytest.raises(DataError, match="continuation of 6 tokens does not fit into seq_length=5"):
        TextCoder(Letters(), 5).pairs([("a", "bcdefg")])


def test_marks_that_a_tokenizer_adds_stand_once_before_a_text_and_never_behind():
    coder = TextCoder(Letters(before=[1], after=[2]), 100)
    assert coder.encode(["ab"]) == coder.encode(["^ab"]) == [[1, 97, 98]]
    assert coder.encode(["ab"], bare=True) == [[97, 98]]
    assert coder.pairs([("", "ab")]) == [([1, 97], [97, 98])]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 29])
def test_the_windows_of_a_text_are_those_of_the_harness(length):
    text = "".join(random.Random(length).choices("abcdef", k=length))
    theirs = get_rolling_token_windows([ord(letter) for letter in text], 999, max_seq_len=8, context_len=1)
    assert TextCoder(Letters(), 8).windows(text) == [(inputs, targets) for inputs, targets in theirs]


def test_equal_texts_are_tokenized_once():
    class Counting(Letters):
        seen = 0

        def tokenize_batch(self, texts):
            self.seen += len(texts)
            return super().tokenize_batch(texts)

    tokenizer = Counting()
    TextCoder(tokenizer, 100).pairs([("context", end) for end in ("a", "b", "c")])
    assert tokenizer.seen == 4
