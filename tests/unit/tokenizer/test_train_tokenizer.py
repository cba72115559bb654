"""Training a tokenizer."""

import json

import pytest

from megatron.common.errors import DataError, TokenizerError
from megatron.tokenizer.hf_tokenizer import HFTokenizer
from megatron.tokenizer.train_tokenizer import (
    json_iterator,
    load_jsonl,
    main,
    parse_args,
    train_bpe,
    train_tokenizer,
)
from tests.common.corpus import write_jsonl


def test_a_trained_tokenizer_has_neox_special_tokens_and_normalisation(texts, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", texts)
    target = tmp_path / "out" / "tokenizer.json"
    main(parse_args(["--json_input_dir", str(tmp_path), "--tokenizer_output_path", str(target), "-v", "700"]))
    tokenizer = HFTokenizer(str(target))
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pad) == (700, 0, 1)
    assert (
        tokenizer.detokenize(tokenizer.tokenize("①word")) == " 1word"
    )  # NFKC, and a space before the first word
    assert target.read_text(encoding="utf-8").count("\n") > 700  # pretty-printed


def test_a_lossless_tokenizer_keeps_texts_as_they_are(trained, texts):
    assert [trained.decode(trained.encode(text).ids) for text in texts] == texts


def test_without_an_output_path_nothing_is_saved(texts, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", texts[:6])
    tokenizer = train_tokenizer(tmp_path, "", vocab_size=300)
    assert tokenizer.get_vocab_size() == 300
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_json_lines_come_before_json_and_plain_text(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.json").write_text('[{"text": "array"}]')
    (tmp_path / "d.jsonl").write_text('{"text": "second"}\n')
    (tmp_path / "c.jsonl").write_text('{"text": ["first", "part"]}\n')
    assert list(json_iterator(tmp_path)) == ["first\n\npart", "second", "array", "text"]


def test_load_jsonl_gives_the_records(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"b": 1}\n')
    assert load_jsonl(path) == [{"text": "a"}, {"b": 1}]


def test_bad_input_is_named(tmp_path):
    with pytest.raises(DataError, match="no file to train on"):
        list(json_iterator(tmp_path))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n{broken\n")
    with pytest.raises(DataError, match="a.jsonl, line 2"):
        load_jsonl(path)
    with pytest.raises(DataError, match="a.jsonl, line 2"):
        list(json_iterator(tmp_path))


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(TokenizerError, match="too small"):
        train_bpe(["text"], 100)
    with pytest.raises(TokenizerError, match="only BPE"):
        train_tokenizer(tmp_path, "", tokenizer_type="Unigram")
