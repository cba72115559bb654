"""Small tokenizers of every type, trained on real text."""

import base64

import pytest

from megatron.tokenizer.train_tokenizer import train_bpe
from tests.common.corpus import stdlib_documents

VOCAB_SIZE = 1000
TRICKY = [
    "don't stop,  we'll  see\n\n\tIT'S 12345 o'clock \n",
    "naïve café – 東京タワー, день; عربي 🙂👩‍👩‍👧",
    " leading and trailing  ",
    "a\u3000b\u00a0c\u2028d\x1ce\r\nf\x00g",
    "x" * 300,
    "def f(a):\n        return {'k': [1, 2, 3]}  # ünïcode\n",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [*TRICKY, *stdlib_documents(40, 3000)]


@pytest.fixture(scope="session")
def trained(texts):
    return train_bpe(texts, VOCAB_SIZE, lossless=True)


@pytest.fixture(scope="session")
def hf_file(trained, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("hf") / "tokenizer.json")
    trained.save(path)
    return path


@pytest.fixture(scope="session")
def gpt2_folder(trained, tmp_path_factory):
    """vocab.json and merges.txt, as GPT-2's."""
    folder = tmp_path_factory.mktemp("gpt2")
    trained.model.save(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiktoken_file(trained, tmp_path_factory) -> str:
    """The same merges as ranks of byte strings."""
    from megatron.tokenizer.tiktoken_bpe import _printable_bytes

    bytes_of = {character: byte for byte, character in _printable_bytes().items()}
    ordinary = [trained.id_to_token(number) for number in range(2, trained.get_vocab_size())]
    lines = (
        base64.b64encode(bytes(bytes_of[character] for character in token)).decode() + f" {rank}"
        for rank, token in enumerate(ordinary)
    )
    path = tmp_path_factory.mktemp("tiktoken") / "r50k_base.tiktoken"
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return str(path)


@pytest.fixture(scope="session")
def spm_file(texts, tmp_path_factory) -> str:
    import sentencepiece

    path = tmp_path_factory.mktemp("spm") / "spm.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for text in texts for line in text.splitlines()),
            model_writer=file,
            vocab_size=600,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=["<|endoftext|>"],
            minloglevel=2,
        )
    return str(path)


@pytest.fixture(scope="session")
def files(hf_file, gpt2_folder, tiktoken_file, spm_file) -> dict[str, tuple[str | None, str | None]]:
    """Type to (vocab_file, merge_file)."""
    return {
        "GPT2BPETokenizer": (str(gpt2_folder / "vocab.json"), str(gpt2_folder / "merges.txt")),
        "HFTokenizer": (hf_file, None),
        "HFGPT2Tokenizer": (str(gpt2_folder), None),
        "SPMTokenizer": (spm_file, None),
        "CharLevelTokenizer": (None, None),
        "TiktokenTokenizer": (tiktoken_file, None),
    }
