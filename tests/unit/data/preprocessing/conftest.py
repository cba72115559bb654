"""A trained tokenizer and a corpus for preprocessing."""

import pytest

from megatron.data.preprocessing.encode import EncodeJob
from megatron.tokenizer.build import TokenizerSpec
from megatron.tokenizer.train_tokenizer import train_bpe
from tests.common.corpus import stdlib_documents, write_jsonl


@pytest.fixture(scope="session")
def spec(tmp_path_factory) -> TokenizerSpec:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe(stdlib_documents(30, 3000), 800, lossless=True).save(str(path))
    return TokenizerSpec("HFTokenizer", str(path))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """1,200 documents in about 2 MB: several blocks."""
    documents = [text for cut in (500, 1000, 2000, 3500) for text in stdlib_documents(300, cut)]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", documents)


@pytest.fixture
def char_job() -> EncodeJob:
    return EncodeJob(TokenizerSpec("CharLevelTokenizer"))
