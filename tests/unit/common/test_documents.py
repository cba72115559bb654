"""Every kind of input gives its documents, in order; damage is reported with its place."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest
import zstandard

from megatron.common.documents import RecordBlock, TextBlock, find_inputs, read_blocks, read_documents
from megatron.common.documents.blocks import BLOCK_BYTES
from megatron.common.errors import DataError

TEXTS = ["first\nwith two lines", "zweiter – ünïcode 東京", "third"]
LINES = "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(TEXTS)).encode()


def never_cut(text):
    return None


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def tar(members: dict[str, bytes], mode: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return target.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target.getvalue()


def dat(texts) -> bytes:
    return b"".join(b"%016d" % len(text.encode()) + text.encode() for text in texts)


PLAIN = {f"{number}.txt": text.encode() for number, text in enumerate(TEXTS)}
ARRAY = json.dumps([{"text": text} for text in TEXTS], indent=2).encode()
KINDS = {
    "a.jsonl": LINES,
    "a.jsonl.zst": zst(LINES),
    "frames.jsonl.zst": zst(LINES[:40]) + zst(LINES[40:]),
    "a.jsonl.gz": gzip.compress(LINES),
    "A.JSONL": LINES.replace(b"\n", b"\r\n"),
    "marked.jsonl": b"\xef\xbb\xbf" + LINES,
    "unfinished.jsonl": LINES.rstrip(b"\n"),
    "blank.jsonl": LINES.replace(b"\n", b"\n\n \n"),
    "a.jsonl.zst.tar": tar({"x.jsonl.zst": zst(LINES)}, "w"),
    "a.json": ARRAY,
    "lines.json": LINES,
    "strings.json": json.dumps(TEXTS).encode(),
    "strings.json.zst": zst(json.dumps(TEXTS).encode()),
    "c4.json.gz": gzip.compress(LINES),
    "a.dat.zst": zst(dat(TEXTS)),
    "a.tar.gz": tar(PLAIN, "w:gz"),
    "a.tgz": tar(PLAIN, "w:gz"),
    "a.tar": tar(PLAIN, "w"),
    "records.tar": tar({"x.jsonl": LINES}, "w"),
    "nested.tar": tar({"x.zip": zipped(PLAIN), ".hidden": b"no"}, "w"),
    "a.zip": zipped(PLAIN),
    "no_suffix.zip": zipped({f"doc{n}": text.encode() for n, text in enumerate(TEXTS)}),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_gives_its_documents_in_order(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    assert list(read_documents([path])) == TEXTS


def test_a_text_file_is_one_document_and_a_gz_file_one_per_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"one\r\n\ntwo"))
    assert list(read_documents(find_inputs([tmp_path / "a.txt"]))) == ["one\n\ntwo\n"]
    assert list(read_documents(find_inputs([tmp_path / "b.gz"]))) == ["one", "two"]


def test_a_folder_stands_for_its_known_files_sorted(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("b.txt", "a.jsonl", "notes.pdf", "sub/c.txt", ".cache/d.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_inputs(str(tmp_path))] == ["a.jsonl", "b.txt", "c.txt"]
    both = f"{tmp_path / 'b.txt'}, {tmp_path / 'a.jsonl'}"
    assert [path.name for path in find_inputs(both)] == ["b.txt", "a.jsonl"]


def test_inputs_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"")
    for inputs, message in [
        (str(tmp_path / "nowhere.jsonl"), "nowhere.jsonl does not exist"),
        (str(tmp_path / "a.pdf"), "a.pdf is of no known kind"),
        (str(tmp_path), "no file in"),
        (" , ", "no input"),
    ]:
        with pytest.raises(DataError, match=message):
            find_inputs(inputs)


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"{broken", "not valid JSON"),
        (b'["a"]', "a JSON object was expected, not list"),
        (b'"text"', "a JSON object was expected, not str"),
        (b'{"body": "a"}', "no field 'text' (its fields: body)"),
        (b'{"text": 3}', "but int"),
        (b'{"text": ["a", 3]}', "but list"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_an_invalid_record_is_an_error_with_file_and_line_or_skipped(line, reason, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + line + b"\n" + LINES)
    with pytest.raises(DataError) as caught:
        list(read_documents([path]))
    assert f"{path}, line 4: " in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value) and "--skip-invalid" in str(caught.value)
    assert list(read_documents([path], skip_invalid=True)) == TEXTS * 2
    (block,) = read_blocks([path], never_cut)
    assert block.texts(["text"], skip_invalid=True).skipped == 1


def test_line_numbers_count_from_the_start_of_the_file_in_every_block(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES * (2 * BLOCK_BYTES // len(LINES)) + b"{\n")
    lines = path.read_bytes().count(b"\n")
    with pytest.raises(DataError, match=f"line {lines}:"):
        list(read_documents([path]))


@pytest.mark.parametrize(
    "name, data",
    [
        ("cut.jsonl.zst", zst(LINES * 50)[:-9]),
        ("cut.json.gz", gzip.compress(LINES * 50)[:-9]),
        ("other.jsonl.zst", b"not compressed at all"),
        ("other.gz", b"not compressed at all"),
        ("cut.zip", zipped(PLAIN)[:-30]),
        ("cut.tar", tar(PLAIN, "w")[:700]),
        ("cut.tar.gz", tar(PLAIN, "w:gz")[:-20]),
        ("cut.dat.zst", zst(dat(TEXTS)[:-2])),
        ("other.dat.zst", zst(b"no length here at all")),
        ("cut.json", ARRAY[:-20]),
        ("unclosed.json", json.dumps(TEXTS).encode()[:-1]),
        ("broken.json", b'[{"text": "a"}, {"text" "b"}]'),
    ],
)
def test_a_damaged_file_is_named(name, data, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(read_documents([path]))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_named_or_mended(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 text \(byte 0xe9 at 3\)"):
        list(read_documents([path]))
    assert list(read_documents([path], skip_invalid=True)) == ["caf\N{REPLACEMENT CHARACTER}"]


def test_half_surrogates_from_escapes_become_replacement_characters():
    block = RecordBlock("a", 0, b'{"text": "a\\ud83d\\ude42b\\ud83dc"}')
    assert block.texts(["text"]).rows == [["a🙂b\N{REPLACEMENT CHARACTER}c"]]


def test_each_key_gets_its_own_field():
    block = RecordBlock("a", 0, b'{"question": "q", "answer": ["a", "b"], "other": 1}')
    assert block.texts(["question", "answer"]).rows == [["q", "a\n\nb"]]


def test_plain_text_has_no_fields_to_choose_from():
    with pytest.raises(DataError, match="plain text"):
        TextBlock("a.txt", 0, [("a.txt", b"a")]).texts(["question", "answer"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.json"])
def test_blocks_are_of_bounded_size_and_tell_how_far_they_read(name, tmp_path):
    path = tmp_path / name
    data = LINES * (5 * BLOCK_BYTES // len(LINES))
    path.write_bytes(zst(data) if name.endswith("zst") else data)
    blocks = list(read_blocks([path], never_cut))
    assert all(len(block.data) <= BLOCK_BYTES + len(LINES) for block in blocks)
    assert len(blocks) in (5, 6)
    consumed = [block.consumed for block in blocks]
    assert consumed == sorted(consumed) and consumed[-1] == path.stat().st_size
    assert sum(len(block.texts(["text"]).rows) for block in blocks) == data.count(b"\n")


def test_a_large_array_is_read_element_by_element(tmp_path):
    path = tmp_path / "a.json"
    texts = [f"{number} " + "word\n" * (number * 3000) for number in range(30)]
    path.write_text(json.dumps([{"text": text, "nested": [{"a": []}]} for text in texts], indent=1))
    assert list(read_documents([path])) == texts
    assert len(list(read_blocks([path], never_cut))) > 3


def test_a_large_text_comes_in_pieces_that_join_to_the_whole(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(f"line {number}\n" for number in range(200_000))
    path.write_text(text)

    def cut(data):
        return (BLOCK_BYTES, BLOCK_BYTES) if len(data) > BLOCK_BYTES else None

    blocks = list(read_blocks([path], cut))
    assert len(blocks) > 3
    assert [block.begins for block in blocks] == [True] + [False] * (len(blocks) - 1)
    assert [block.ends for block in blocks] == [False] * (len(blocks) - 1) + [True]
    assert "".join(block.texts(["text"]).rows[0][0] for block in blocks) == text


def test_many_small_members_share_blocks(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(tar({f"{number}.txt": b"text %d" % number for number in range(500)}, "w:gz"))
    (block,) = read_blocks([path], never_cut)
    assert [row[0] for row in block.texts(["text"]).rows] == [f"text {number}" for number in range(500)]
