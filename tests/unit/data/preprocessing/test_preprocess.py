"""What ends up in the data sets."""

import json
import os

import numpy as np
import pytest

from megatron.common.errors import ConfigError, DataError, TokenizerError
from megatron.data.indexed_dataset import make_builder, make_dataset
from megatron.data.preprocessing.cli import main, main_with_mask
from megatron.data.preprocessing.encode import EncodeJob, mask_labels
from megatron.data.preprocessing.run import PreprocessPlan, preprocess
from megatron.tokenizer.splitting import PIECE_BYTES
from tests.common.corpus import stdlib_documents, write_jsonl

CHARACTERS = ["--tokenizer-type", "CharLevelTokenizer"]


def read(prefix, key="text") -> list[list[int]]:
    dataset = make_dataset(f"{prefix}_{key}_document", "infer")
    assert dataset.doc_idx.tolist() == list(range(len(dataset) + 1))
    return [dataset[number].tolist() for number in range(len(dataset))]


def same_files(first, second) -> bool:
    suffixes = ("_text_document.bin", "_text_document.idx")
    return all(open(f"{first}{end}", "rb").read() == open(f"{second}{end}", "rb").read() for end in suffixes)


@pytest.mark.parametrize("impl", ["mmap", "cached", "lazy"])
def test_files_equal_those_of_the_dataset_builders(impl, spec, corpus, tmp_path):
    preprocess(
        PreprocessPlan(str(corpus), str(tmp_path / "ours"), EncodeJob(spec, append_eod=True), impl=impl)
    )
    tokenizer = spec.build()
    prefix = str(tmp_path / "builder_text_document")
    builder = make_builder(prefix + ".bin", impl, tokenizer.vocab_size)
    for line in corpus.read_text().splitlines():
        ids = [*tokenizer.tokenize(json.loads(line)["text"]), tokenizer.eod]
        builder.add_item(np.array(ids, dtype=np.uint16 if impl == "mmap" else np.int32))
        builder.end_document()
    builder.finalize(prefix + ".idx")
    assert same_files(tmp_path / "ours", tmp_path / "builder")


def test_workers_write_the_same_files_as_one_process(spec, corpus, tmp_path):
    job = EncodeJob(spec, append_eod=True)
    for workers in (1, 2):
        preprocess(PreprocessPlan(str(corpus), str(tmp_path / f"w{workers}"), job, workers=workers))
    assert same_files(tmp_path / "w1", tmp_path / "w2")


def test_every_key_gets_its_own_fields_and_items_stay_side_by_side(tmp_path):
    records = [{"q": "ab", "a": "c"}, {"q": "", "a": "d"}, {"q": "", "a": ""}, {"q": "e", "a": ["f", "g"]}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    main(
        ["--input", str(path), "--output-prefix", str(tmp_path / "p"), "--jsonl-keys", "q", "a", *CHARACTERS]
    )
    assert read(tmp_path / "p", "q") == [[97, 98], [], [101]]
    assert read(tmp_path / "p", "a") == [[99], [100], [102, 10, 10, 103]]


def test_eod_ends_every_document_and_empty_documents_are_left_out(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["ab", "", "c", ""])
    arguments = ["--input", str(path), "--output-prefix", str(tmp_path / "p"), *CHARACTERS]
    totals = main([*arguments, "--append-eod"])
    assert read(tmp_path / "p") == [[97, 98, 0], [99, 0]]
    assert (totals.documents, totals.tokens) == (2, 5)
    main(arguments)
    assert read(tmp_path / "p") == [[97, 98], [99]]


def test_several_inputs_are_read_in_the_order_given(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ["b"])
    (tmp_path / "a.txt").write_text("a")
    inputs = f"{tmp_path / 'b.jsonl'},{tmp_path / 'a.txt'}"
    main(["--input", inputs, "--output-prefix", str(tmp_path / "p"), *CHARACTERS])
    assert read(tmp_path / "p") == [[98], [97]]


def test_ftfy_mends_the_text(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["cafÃ©"])
    main(["--input", str(path), "--output-prefix", str(tmp_path / "p"), "--ftfy", *CHARACTERS])
    assert bytes(read(tmp_path / "p")[0]).decode() == "café"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_large_text_gives_one_document_with_the_ids_of_the_whole(workers, spec, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron.common.documents.blocks.LONG_RECORD_BYTES", 1 << 20)  # in this process only
    text = "\n".join(stdlib_documents(250, 10_000))
    assert len(text) > 2 * PIECE_BYTES
    (tmp_path / "a.txt").write_text("before")
    (tmp_path / "b.txt").write_text(text)
    write_jsonl(tmp_path / "c.jsonl", [text, "after"])
    preprocess(
        PreprocessPlan(str(tmp_path), str(tmp_path / "p"), EncodeJob(spec, append_eod=True), workers=workers)
    )
    tokenizer = spec.build()
    whole = [*tokenizer.tokenize(text), tokenizer.eod]
    before, after = ([*tokenizer.tokenize(text), tokenizer.eod] for text in ("before", "after"))
    assert read(tmp_path / "p") == [before, whole, whole, after]


def test_small_vocabularies_take_two_bytes_and_large_ones_four(tmp_path):
    from tokenizers import Tokenizer, models

    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    for size, dtype in [(65_499, np.uint16), (65_500, np.int32)]:
        Tokenizer(models.WordLevel({"a": 0, "b": size - 1}, "a")).save(str(tmp_path / "words.json"))
        tokenizer = ["--tokenizer-type", "hftokenizer", "--vocab", str(tmp_path / "words.json")]
        main(["--input", str(path), "--output-prefix", str(tmp_path / "p"), *tokenizer])
        assert make_dataset(f"{tmp_path}/p_text_document", "mmap").dtype == dtype


def test_labels_are_masked_through_the_first_occurrence_of_the_pattern(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["ab:cd:e", "none", ":x", "a:"])
    arguments = ["--input", str(path), "--output-prefix", str(tmp_path / "p"), *CHARACTERS, "--append-eod"]
    main_with_mask([*arguments, "--mask-before-token", "58"])
    text, labels = read(tmp_path / "p"), read(tmp_path / "p", "label")
    assert labels[0] == [-100] * 3 + text[0][3:]
    assert labels[1] == text[1]
    assert labels[2] == [-100, ord("x"), 0]
    assert labels[3] == [-100, -100, 0]
    for key in ("text", "label"):
        assert make_dataset(f"{tmp_path}/p_{key}_document", "mmap").dtype == np.int32


def test_a_pattern_of_several_tokens_must_stand_inside_one_document():
    flat = np.array([1, 2, 3, 1, 2, 2, 3, 4], dtype=np.uint16)
    lengths = np.array([2, 3, 3])
    assert mask_labels(flat, lengths, (2, 3)).tolist() == [1, 2, 3, 1, 2, -100, -100, 4]


def test_without_a_pattern_no_labels_are_written(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["ab"])
    main_with_mask(["--input", str(path), "--output-prefix", str(tmp_path / "p"), *CHARACTERS])
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "p_text_document.bin", "p_text_document.idx"]


def test_each_of_several_keys_has_labels_of_its_own(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": "a:b", "y": "cd:e"}\n')
    arguments = [
        "--input",
        str(path),
        "--output-prefix",
        str(tmp_path / "p"),
        "--jsonl-keys",
        "x",
        "y",
        *CHARACTERS,
    ]
    main_with_mask([*arguments, "--mask-before-token", "token 58"])
    assert read(tmp_path / "p", "x_label") == [[-100, -100, 98]]
    assert read(tmp_path / "p", "y_label") == [[-100, -100, -100, 101]]


def test_bad_settings_and_input_without_documents_leave_nothing(tmp_path, char_job):
    path = write_jsonl(tmp_path / "a.jsonl", ["", ""])
    before = os.listdir(tmp_path)
    with pytest.raises(DataError, match="holds no document"):
        preprocess(PreprocessPlan(str(path), str(tmp_path / "p"), char_job))
    with pytest.raises(ConfigError, match="--workers"):
        preprocess(PreprocessPlan(str(path), str(tmp_path / "p"), char_job, workers=0))
    with pytest.raises(TokenizerError, match="nowhere.json does not exist"):
        main(
            ["--input", str(path), "--output-prefix", str(tmp_path / "p"), "--tokenizer-type", "HFTokenizer"]
            + ["--vocab-file", str(tmp_path / "nowhere.json")]
        )
    assert os.listdir(tmp_path) == before


def test_an_output_that_cannot_be_written_is_named(tmp_path, char_job):
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    (tmp_path / "p_text_document.bin.part").mkdir()
    with pytest.raises(DataError, match="p_text_document.bin and .idx cannot be written"):
        preprocess(PreprocessPlan(str(path), str(tmp_path / "p"), char_job))


def test_invalid_records_are_counted_when_they_are_skipped(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{\n{"text": "b"}\n')
    totals = main(
        ["--input", str(path), "--output-prefix", str(tmp_path / "p"), *CHARACTERS, "--skip-invalid"]
    )
    assert (totals.documents, totals.skipped) == (2, 1)
    assert "1 invalid records were left out" in capsys.readouterr().out


def test_the_progress_tells_amount_rate_time_left_and_documents(tmp_path, corpus, capsys, monkeypatch):
    monkeypatch.setattr("megatron.common.console.PLAIN_INTERVAL_SECONDS", 0.0)
    main(["--input", str(corpus), "--output-prefix", str(tmp_path / "p"), *CHARACTERS, "--num-docs", "1200"])
    lines = capsys.readouterr().err
    assert "MB/s" in lines and "left" in lines and "of 1,200 documents" in lines
