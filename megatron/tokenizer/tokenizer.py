"""The names GPT-NeoX keeps in one module; each type lives in a file of its own."""

from megatron.tokenizer.abstract import AbstractTokenizer
from megatron.tokenizer.build import build_tokenizer
from megatron.tokenizer.char_level import CharLevelTokenizer
from megatron.tokenizer.gpt2_bpe import _GPT2BPETokenizer
from megatron.tokenizer.hf_gpt2 import HFGPT2Tokenizer
from megatron.tokenizer.hf_tokenizer import HFTokenizer
from megatron.tokenizer.sentencepiece_model import SentencePieceTokenizer
from megatron.tokenizer.tiktoken_bpe import TiktokenTokenizer

__all__ = [
    "AbstractTokenizer",
    "CharLevelTokenizer",
    "HFGPT2Tokenizer",
    "HFTokenizer",
    "SentencePieceTokenizer",
    "TiktokenTokenizer",
    "_GPT2BPETokenizer",
    "build_tokenizer",
]
