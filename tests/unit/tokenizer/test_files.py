"""Missing and broken tokenizer files give one line that names them."""

import pytest

from megatron.common.errors import TokenizerError
from megatron.tokenizer.build import TokenizerSpec

FILE_TYPES = ["GPT2BPETokenizer", "HFTokenizer", "SPMTokenizer"]


def one_line(spec: TokenizerSpec) -> str:
    with pytest.raises(TokenizerError) as caught:
        spec.build()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", [*FILE_TYPES, "TiktokenTokenizer"])
def test_a_type_that_needs_a_file_names_the_key_that_is_not_set(kind):
    assert "vocab_file" in one_line(TokenizerSpec(kind))


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_a_missing_file_is_named(kind, tmp_path):
    path = str(tmp_path / "nowhere.json")
    assert f"{path} does not exist" in one_line(TokenizerSpec(kind, path, path))


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_a_folder_in_place_of_a_file_is_named(kind, tmp_path):
    assert f"{tmp_path} is not a file" in one_line(TokenizerSpec(kind, str(tmp_path), str(tmp_path)))


@pytest.mark.parametrize("kind", FILE_TYPES)
@pytest.mark.parametrize("content", [b"", b'{"a": [', b'{"a": 1}', b"\xff\xfe\x00garbage"])
def test_a_broken_file_is_named(kind, content, tmp_path):
    path = tmp_path / "broken"
    path.write_bytes(content)
    assert str(path) in one_line(TokenizerSpec(kind, str(path), str(path)))


@pytest.mark.parametrize("merges", ["#version: 0.2\na b c\n", "one\n", "unknown tokens\n"])
def test_broken_merges_are_named(merges, gpt2_folder, tmp_path):
    path = tmp_path / "merges.txt"
    path.write_text(merges)
    assert str(path) in one_line(
        TokenizerSpec("GPT2BPETokenizer", str(gpt2_folder / "vocab.json"), str(path))
    )


def test_gpt2_needs_its_merges_too(gpt2_folder):
    message = one_line(TokenizerSpec("GPT2BPETokenizer", str(gpt2_folder / "vocab.json")))
    assert "merge_file" in message and "--merge-file" in message


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    assert str(tmp_path) in one_line(TokenizerSpec("HFGPT2Tokenizer", str(tmp_path)))


def test_a_name_that_cannot_be_loaded_offline_is_named():
    assert "'no/such-tokenizer'" in one_line(TokenizerSpec("HFGPT2Tokenizer", "no/such-tokenizer"))


def test_an_unknown_tiktoken_encoding_lists_the_known_ones():
    message = one_line(TokenizerSpec("TiktokenTokenizer", "cl100k_bas"))
    assert "cl100k_bas" in message and "o200k_base" in message


def test_a_tiktoken_encoding_that_cannot_be_fetched_says_where_to_put_it(monkeypatch):
    import tiktoken

    def no_network(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    message = one_line(TokenizerSpec("TiktokenTokenizer", "cl100k_base"))
    assert "TIKTOKEN_CACHE_DIR" in message and "cl100k_base.tiktoken" in message


@pytest.mark.parametrize(
    "name, content", [("mine.tiktoken", "YQ== 0\n"), ("cl100k_base.tiktoken", "no ranks here\n")]
)
def test_a_tiktoken_file_of_unknown_name_or_content_is_named(name, content, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    assert str(path) in one_line(TokenizerSpec("TiktokenTokenizer", str(path)))
