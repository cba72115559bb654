"""The size of the vocabulary that a model gets."""

from types import SimpleNamespace

import pytest

from megatron.tokenizer import build_tokenizer
from megatron.tokenizer.build import vocab_size_with_padding


@pytest.mark.parametrize(
    "size, divisible_by, model_parallel, padded",
    [
        (50257, 128, 1, 50304),
        (50257, 128, 2, 50432),
        (50277, 128, 2, 50432),
        (512, 128, 1, 512),
        (32000, 1, 4, 32000),
    ],
)
def test_padding_is_the_next_multiple_of_divisor_and_model_parallel_size(
    size, divisible_by, model_parallel, padded
):
    assert vocab_size_with_padding(size, divisible_by, model_parallel) == padded


def arguments(**changes) -> SimpleNamespace:
    defaults = {
        "rank": 0,
        "tokenizer_type": "charleveltokenizer",
        "vocab_file": None,
        "merge_file": None,
        "make_vocab_size_divisible_by": 100,
        "model_parallel_size": 4,
        "padded_vocab_size": None,
    }
    return SimpleNamespace(**{**defaults, **changes})


def test_build_tokenizer_sets_the_padded_size_and_says_so(capsys):
    args = arguments()
    tokenizer = build_tokenizer(args)
    assert tokenizer.vocab_size == 512 and args.padded_vocab_size == 800
    assert "(size: 512) with 288 dummy tokens (new size: 800)" in capsys.readouterr().out


def test_build_tokenizer_is_silent_on_other_ranks(capsys):
    build_tokenizer(arguments(rank=3))
    assert capsys.readouterr().out == ""


def test_the_names_of_gpt_neox_are_importable():
    from megatron.tokenizer import tokenizer as module

    for name in (
        "AbstractTokenizer",
        "_GPT2BPETokenizer",
        "SentencePieceTokenizer",
        "HFTokenizer",
        "HFGPT2Tokenizer",
        "CharLevelTokenizer",
        "TiktokenTokenizer",
        "build_tokenizer",
    ):
        assert callable(getattr(module, name)), name
