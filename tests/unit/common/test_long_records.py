"""Huge JSON records are read part by part with the same result as at once."""

import json
import random

import pytest

from megatron.common.documents import RecordBlock
from megatron.common.documents.long_records import LongText, read_long_record
from megatron.common.errors import DataError

ALPHABET = ["a", "é", "中", "🙂", "\\", '"', "\n", "\x00", "/", " ", "u", "ud83d", "{", "]"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr("megatron.common.documents.long_records.PART_BYTES", 16)
    monkeypatch.setattr("megatron.common.documents.blocks.LONG_RECORD_BYTES", 30)


def texts_of(line: bytes, keys=("text",)) -> list[str]:
    (row,) = RecordBlock("a.jsonl", 0, line).texts(keys).rows
    assert all(isinstance(text, LongText) for text in row)
    return [str(text) for text in row]


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_random_texts_are_read_as_the_json_parser_reads_them(ensure_ascii):
    draw = random.Random(1234)
    for _ in range(300):
        text = "".join(draw.choices(ALPHABET, k=draw.randrange(20, 80)))
        record = {"meta": {"a": [1, '"}]']}, "te\\xt": "other", "text": text, "n": -1.5e3, "end": None}
        assert texts_of(json.dumps(record, ensure_ascii=ensure_ascii).encode()) == [text]


def test_half_surrogates_become_replacement_characters_and_pairs_stay_whole():
    escaped = b'{"text": "' + rb"\ud83d\ude42" * 10 + rb"\ud83dx\ude42" + b'"}'
    assert texts_of(escaped) == ["🙂" * 10 + "\N{REPLACEMENT CHARACTER}x\N{REPLACEMENT CHARACTER}"]


def test_length_and_several_keys():
    line = json.dumps({"a": "é" * 50, "b": "", "c": "x" * 40}).encode()
    assert texts_of(line, ("c", "b", "a")) == ["x" * 40, "", "é" * 50]
    assert [len(text) for text in RecordBlock("a", 0, line).texts(["a", "b"]).rows[0]] == [50, 0]


def test_a_list_of_texts_is_joined_as_always():
    line = json.dumps({"text": ["x" * 40, "y"]}).encode()
    assert RecordBlock("a", 0, line).texts(["text"]).rows == [["x" * 40 + "\n\ny"]]


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"text": "' + b"x" * 40, "not closed"),
        (b'{"text": "' + b"x" * 40 + b"\\q" + b'"}', "Invalid \\\\escape"),
        (b'{"text": "' + b"x" * 40 + b"\\u12" + b'"}', "escape"),
        (b'{"text": "' + b"x" * 40 + b"\t" + b'"}', "Invalid control character"),
        (b'{"text": "' + b"x" * 40 + b"\xff" + b'"}', "not UTF-8"),
        (b'{"text": "' + b"x" * 40 + b'"} more', "more text after the object"),
        (b'{"text": "' + b"x" * 40 + b'" "b": 1}', "',' expected"),
        (b'{"text": "' + b"x" * 40 + b'", "b" 1}', "':' expected"),
        (b'{"text": "' + b"x" * 40 + b'", "b": [1, 2}', "not valid JSON"),
        (b'{"text": "' + b"x" * 40 + b'", "b": }', "a value expected"),
        (b'{"text": "' + b"x" * 40 + b'", "b": tru}', "not valid JSON"),
        (b'{"body": "' + b"x" * 40 + b'"}', "no field 'text'"),
    ],
)
def test_an_invalid_record_is_an_error_with_file_and_line_or_skipped(line, reason):
    block = RecordBlock("a.jsonl", 0, b'{"text": "before"}\n' + line)
    with pytest.raises(DataError, match=f"a.jsonl, line 2: .*{reason}"):
        block.texts(["text"])
    found = block.texts(["text"], skip_invalid=True)
    assert (found.rows, found.skipped) == ([["before"]], 1)


def test_something_else_than_an_object_is_refused():
    with pytest.raises(ValueError, match="a JSON object was expected"):
        read_long_record(b"[1]", ["text"])
