"""Prompts in, records out."""

import json

import pytest

from megatron.common.errors import DataError, NeoXError
from megatron.generation.prompts import TextStream, read_prompts
from megatron.generation.records import check_output
from megatron.text_generation_utils import (
    generate_samples_from_prompt,
    generate_samples_input_from_file,
    generate_samples_unconditional,
    stop_tokens_in_completion,
)
from tests.unit.generation.toy import SuccessorModel, toy_args

FIELDS = ["context", "text", "length", "finished", "message", "duration_seconds"]


def test_a_record_has_the_fields_of_the_format_in_their_order():
    (record,) = generate_samples_from_prompt(toy_args(), SuccessorModel(), "ab", maximum_tokens=3)
    assert list(record) == FIELDS
    assert record | {"duration_seconds": 0} == {
        "context": "ab",
        "text": "cde",
        "length": 3,
        "finished": False,
        "message": None,
        "duration_seconds": 0,
    }
    assert record["duration_seconds"] > 0


def test_prompts_of_all_lengths_come_back_in_their_order():
    prompts = ["a", "abcdef", "xy", "b", "mnop"]
    records = generate_samples_from_prompt(toy_args(), SuccessorModel(), prompts, maximum_tokens=2)
    assert [record["context"] for record in records] == prompts
    assert [record["text"] for record in records] == ["bc", "gh", None, "cd", "qr"]


def test_a_prompt_without_room_gets_a_message_and_spoils_nothing_else():
    prompts = ["a", "a" * 16, "b" * 40, "c"]
    records = generate_samples_from_prompt(toy_args(), SuccessorModel(), prompts, maximum_tokens=2)
    assert [record["text"] for record in records] == ["bc", None, None, "de"]
    assert [record["length"] for record in records] == [2, 0, 0, 2]
    assert "16 tokens" in records[1]["message"] and "40 tokens" in records[2]["message"]


def test_a_text_that_only_the_end_of_the_sequence_cuts_off_says_so():
    records = generate_samples_from_prompt(toy_args(), SuccessorModel(), ["abcdefgh", "x"], maximum_tokens=10)
    assert (records[0]["text"], records[0]["finished"]) == ("ijklmnop", False)
    assert "seq_length=16" in records[0]["message"] and "maximum_tokens=10" in records[0]["message"]
    filled = generate_samples_from_prompt(toy_args(), SuccessorModel(), "abcdefgh", maximum_tokens=8)
    assert (filled[0]["length"], filled[0]["message"]) == (8, None)
    ended = generate_samples_from_prompt(
        toy_args(), SuccessorModel(), "abc", eos_token_id=5, maximum_tokens=14
    )
    assert (ended[0]["text"], ended[0]["finished"], ended[0]["message"]) == ("de", True, None)


def test_tokens_without_text_give_a_message_instead_of_a_crash():
    (record,) = generate_samples_from_prompt(toy_args(), SuccessorModel(), "y", maximum_tokens=3)
    assert (record["text"], record["length"]) == (None, 3)
    assert "no text" in record["message"]


def test_the_empty_prompt_starts_from_the_end_of_document_token():
    (record,) = generate_samples_from_prompt(toy_args(), SuccessorModel(), "", maximum_tokens=3)
    assert (record["context"], record["text"]) == ("", "abc")


def test_a_prompt_of_which_the_tokenizer_makes_nothing_gets_a_message():
    (record,) = generate_samples_from_prompt(toy_args(), SuccessorModel(), "123", maximum_tokens=3)
    assert record["text"] is None and "no tokens" in record["message"]


def test_logits_are_in_the_record_when_asked_for_one_row_per_new_token():
    stop = [[4]]
    (record,) = generate_samples_from_prompt(
        toy_args(), SuccessorModel(), "a", maximum_tokens=5, stop_tokens=stop, return_logits=True
    )
    assert list(record) == [*FIELDS, "logits"]
    assert record["text"] == "bcd" and record["finished"]
    assert [max(range(30), key=row.__getitem__) for row in record["logits"]] == [1, 2, 3, 4]


def test_samples_of_one_run_differ_and_a_second_run_repeats_them():
    options = {"temperature": 50.0, "maximum_tokens": 12, "eos_token_id": 99}
    first = generate_samples_unconditional(toy_args(), SuccessorModel(), 5, **options)
    second = generate_samples_unconditional(toy_args(), SuccessorModel(), 5, **options)
    texts = [(record["text"], record["message"]) for record in first]
    assert len(set(texts)) == 5
    assert texts == [(record["text"], record["message"]) for record in second]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_prompt_is_continued_alike_alone_and_beside_longer_and_shorter_ones(temperature):
    prompts = ["abcdef", "x", "bcd", "mn"]
    options = {"temperature": temperature, "maximum_tokens": 6, "stop_tokens": [[30], [5, 6]]}

    def texts(rows):
        args = toy_args(train_micro_batch_size_per_gpu=rows)
        records = generate_samples_from_prompt(args, SuccessorModel(), prompts, **options)
        return [(record["text"], record["length"], record["finished"]) for record in records]

    assert texts(4) == texts(3) == texts(1)


def test_the_output_file_has_one_line_per_prompt_and_a_default_name(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("ab\n\n  cd \nef\n")
    records = generate_samples_input_from_file(toy_args(), SuccessorModel(), str(path), maximum_tokens=2)
    lines = (tmp_path / "prompts.txt.output.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert [record["context"] for record in records] == ["ab", "cd", "ef"]


def test_prompts_of_several_lines_are_separated_by_prompt_end(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a\nb<|end|>\nc <|end|>\n")
    assert read_prompts(path, "<|end|>") == ["a\nb", "c"]


def test_missing_empty_and_binary_prompt_files_are_one_line_errors(tmp_path):
    with pytest.raises(DataError, match="none.txt cannot be read"):
        read_prompts(tmp_path / "none.txt", "\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match="no prompt"):
        read_prompts(tmp_path / "empty.txt", "\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_prompts(tmp_path / "binary.txt", "\n")


def test_an_output_file_that_cannot_be_written_is_an_error_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    model = SuccessorModel()
    with pytest.raises(DataError, match="cannot be written"):
        generate_samples_unconditional(
            toy_args(), model, 1, output_file=str(tmp_path / "file" / "samples.txt")
        )
    assert model.calls == []


@pytest.mark.parametrize(
    "output, told",
    [
        ("prompts.txt", "is sample_input_file too"),
        (".", "is a folder"),
        ("prompts.txt/samples.jsonl", "cannot make the folder"),
    ],
)
def test_a_bad_place_for_samples_is_found_before_the_model_is_loaded(tmp_path, monkeypatch, output, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a prompt\n")
    args = toy_args(
        text_gen_type="input-file", sample_input_file=str(tmp_path / "prompts.txt"), sample_output_file=output
    )
    with pytest.raises(NeoXError, match=f"sample_output_file.*{told}"):
        check_output(args)
    args.sample_output_file = "new/samples.jsonl"
    check_output(args)
    assert (tmp_path / "prompts.txt").read_text() == "a prompt\n"


def test_without_new_tokens_the_record_says_why_it_has_no_text():
    (record,) = generate_samples_from_prompt(toy_args(), SuccessorModel(), "ab", maximum_tokens=0)
    assert (record["text"], record["message"]) == (None, "no new token is asked for: maximum_tokens is 0")


def test_a_stop_sequence_is_found_at_a_position_of_a_row():
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert stop_tokens_in_completion([[6, 7]], rows, batch_index=1, current_index=2)
    assert not stop_tokens_in_completion([[6, 7]], rows, batch_index=1, current_index=3)


class ByteTokenizer:
    def detokenize(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def test_streamed_text_never_shows_half_a_character_and_loses_nothing():
    text = "naïve €uro 🙂 end"
    stream = TextStream(ByteTokenizer())
    parts = [stream.push(byte) for byte in text.encode()]
    assert not any("\ufffd" in part for part in parts)
    assert "".join(parts) + stream.rest() == text


def test_an_incomplete_character_at_the_end_is_shown_as_such():
    stream = TextStream(ByteTokenizer())
    assert stream.push(0xE2) == ""
    assert stream.rest() == "\ufffd"
