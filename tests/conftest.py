"""Settings and fixtures that every test shares."""

import os
import signal

from tests.common.distributed import has_gpu

# A shell that starts the tests in the background has them ignore Ctrl-C, which what they start would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports torch or deepspeed, which read these once.
if not has_gpu():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402

from tests.common.corpus import stdlib_documents, write_jsonl  # noqa: E402


@pytest.fixture(scope="session")
def stdlib_texts() -> list[str]:
    """100 documents of real text."""
    return stdlib_documents(100)


@pytest.fixture
def make_corpus(tmp_path):
    """make_corpus(count, max_chars, name, key) -> path of a jsonl file with that many real documents."""

    def build(count=50, max_chars=4000, name="corpus.jsonl", key="text"):
        return write_jsonl(tmp_path / name, stdlib_documents(count, max_chars), key)

    return build
