"""Corpora by name: downloaded from where the user says, or collected from this very Python."""

import io
import json
import zipfile

import pytest
import zstandard

from megatron.common.errors import ConfigError, DataError, TokenizerError
from megatron.data.corpora.prepare import data_downloaders, prepare_dataset
from megatron.data.corpora.sources import VARIABLE, Sources
from megatron.data.corpora.stdlib import StandardLibrary, standard_library_documents
from megatron.data.indexed_dataset import make_dataset
from megatron.registry import lookup
from megatron.tokenizer.hf_tokenizer import HFTokenizer
from tests.common.corpus import stdlib_documents

NAMES = (
    "enron pile_subset pile github arxiv europarl freelaw nih pubmed books1 books3 hackernews openwebtext2"
    " stackexchange ubuntu_irc youtube_subtitles c4 c4_openwebtext enwik8"
).split()


@pytest.fixture(autouse=True)
def no_sources(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("DATA_DIR", raising=False)


@pytest.fixture
def small_stdlib(monkeypatch):
    """The standard library, shortened."""
    documents = [(f"m{number}.py", text) for number, text in enumerate(stdlib_documents(60, 2000))]
    monkeypatch.setattr("megatron.data.corpora.stdlib.standard_library_documents", lambda: iter(documents))
    return documents


def jsonl_zst(texts) -> bytes:
    return zstandard.ZstdCompressor().compress(
        "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    )


def items(prefix) -> list[list[int]]:
    dataset = make_dataset(str(prefix), "infer")
    return [dataset[number].tolist() for number in range(len(dataset))]


def test_the_names_of_gpt_neox_are_registered_with_their_files():
    known = data_downloaders()
    assert sorted(known) == sorted([*NAMES, "stdlib", "pass"])
    assert known["pass"] == "pass"
    assert known["pile"].files[29] == "29.jsonl.zst" and len(known["c4"].files) == 1024
    assert known["pile_subset"].name == "pile_00" and known["enron"].num_docs == 517401


def test_the_importable_names_are_those_of_gpt_neox():
    from tools.datasets.corpora import DATA_DOWNLOADERS, DataDownloader, prepare_dataset

    assert issubclass(DATA_DOWNLOADERS["enwik8"], DataDownloader) and callable(prepare_dataset)


def test_an_unknown_name_lists_the_known_ones_and_pass_does_nothing(tmp_path):
    with pytest.raises(ConfigError, match="enwik8.*did you mean 'enron'"):
        prepare_dataset("enrom")
    prepare_dataset("PASS", data_dir=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_corpus_is_downloaded_and_tokenised_and_then_kept(site, tmp_path, capsys):
    site.files["/enron_emails.jsonl.zst"] = jsonl_zst(["one", "two"])
    arguments = {"tokenizer_type": "CharLevelTokenizer", "data_dir": str(tmp_path), "source": site.url}
    prepare_dataset("Enron", num_workers=1, **arguments)
    assert items(tmp_path / "enron" / "enron_text_document") == [[*b"one", 0], [*b"two", 0]]
    shown = capsys.readouterr().out
    assert "$ python tools/datasets/preprocess_data.py --input" in shown and "--num-docs 517401" in shown
    prepare_dataset("enron", num_workers=1, **arguments)
    shown = capsys.readouterr().out
    assert "there already" in shown and "complete and up to date" in shown
    assert len(site.requests) == 1


def test_force_redownload_gets_everything_again(site, tmp_path):
    site.files["/yt_subs.jsonl.zst"] = jsonl_zst(["old"])
    arguments = {"tokenizer_type": "CharLevelTokenizer", "data_dir": str(tmp_path), "source": site.url}
    prepare_dataset("youtube_subtitles", num_workers=1, **arguments)
    site.files["/yt_subs.jsonl.zst"] = jsonl_zst(["new"])
    prepare_dataset("youtube_subtitles", num_workers=1, force_redownload=True, **arguments)
    assert items(tmp_path / "youtube_subtitles" / "youtube_subtitles_text_document") == [[*b"new", 0]]


def test_only_missing_files_are_fetched_after_a_failure(site, tmp_path):
    sources = tmp_path / "sources.yml"
    sources.write_text(f"pile: {site.url}/pile\n")
    site.files = {f"/pile/{part:02d}.jsonl.zst": jsonl_zst([f"{part}"]) for part in range(29)}
    arguments = {"tokenizer_type": "CharLevelTokenizer", "data_dir": str(tmp_path), "source": str(sources)}
    with pytest.raises(DataError, match="29.jsonl.zst: the server answers 404"):
        prepare_dataset("pile", num_workers=1, **arguments)
    assert not (tmp_path / "pile" / "pile_text_document.idx").exists()
    site.files["/pile/29.jsonl.zst"] = jsonl_zst(["29"])
    site.requests.clear()
    prepare_dataset("pile", num_workers=1, **arguments)
    assert site.requests == [("/pile/29.jsonl.zst", None)]
    assert len(items(tmp_path / "pile" / "pile_text_document")) == 30


def test_enwik8_is_one_document(site, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("enwik8", "<page>\n text\n</page>\n" * 100)
    site.files["/enwik8.zip"] = packed.getvalue()
    prepare_dataset("enwik8", "CharLevelTokenizer", str(tmp_path), num_workers=1, source=site.url)
    assert [len(item) for item in items(tmp_path / "enwik8" / "enwik8_text_document")] == [2101]


def test_gpt2_files_are_fetched_and_checked(site, tmp_path):
    site.files = {
        "/enron_emails.jsonl.zst": jsonl_zst(["a"]),
        "/gpt2-vocab.json": b"{}",
        "/gpt2-merges.txt": b"#",
    }
    with pytest.raises(DataError, match="gpt2-vocab.json has checksum"):
        prepare_dataset("enron", data_dir=str(tmp_path), source=site.url)
    assert not (tmp_path / "gpt2-vocab.json").exists()


def test_without_a_source_the_error_says_how_to_set_one(tmp_path):
    with pytest.raises(DataError, match=f"enwik8.zip of enwik8.*--source-url.*{VARIABLE}") as caught:
        prepare_dataset("enwik8", "CharLevelTokenizer", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_sources_come_from_an_address_a_file_or_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "sources.yml"
    path.write_text(
        "default: http://a/all/\nenron: http://b\npile: [http://c/x/00.jsonl.zst]\nsha256: {enwik8.zip: abc}\n"
    )
    monkeypatch.setenv(VARIABLE, str(path))
    sources = Sources()
    assert sources.url("enwik8", "enwik8.zip") == "http://a/all/enwik8.zip"
    assert sources.url("Enron", "e.zst") == "http://b/e.zst"
    assert sources.url("pile", "00.jsonl.zst") == "http://c/x/00.jsonl.zst"
    assert sources.sha256("enwik8.zip") == "abc" and sources.sha256("e.zst") is None
    assert Sources("http://d").url("pile", "00.jsonl.zst") == "http://d/00.jsonl.zst"
    with pytest.raises(DataError, match="no source is known for 01.jsonl.zst"):
        sources.url("pile", "01.jsonl.zst")


@pytest.mark.parametrize("content", [None, "a: [", "- list"])
def test_a_bad_file_of_sources_is_named(content, tmp_path):
    path = tmp_path / "sources.yml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="sources.yml, the file of data sources"):
        Sources(str(path))


def test_the_standard_library_is_prepared_without_a_network(small_stdlib, tmp_path, capsys):
    prepare_dataset("stdlib", data_dir=str(tmp_path), num_workers=1, train_tokenizer=True, vocab_size=600)
    tokenizer = HFTokenizer(str(tmp_path / "stdlib" / "tokenizer.json"))
    assert tokenizer.vocab_size == 600
    found = [tokenizer.detokenize(item) for item in items(tmp_path / "stdlib" / "stdlib_text_document")]
    assert sorted(found) == sorted(text + "<|endoftext|>" for _, text in small_stdlib)
    assert found != [
        text + "<|endoftext|>" for _, text in small_stdlib
    ]  # mixed, so that splits are fair samples
    shown = capsys.readouterr().out
    assert (
        f'vocab_file: "{tmp_path}/stdlib/tokenizer.json"' in shown
        and 'tokenizer_type: "HFTokenizer"' in shown
    )


def test_another_vocabulary_size_trains_and_tokenises_again(small_stdlib, tmp_path, capsys):
    for vocab_size, trained in [(400, True), (400, False), (500, True)]:
        prepare_dataset(
            "stdlib", data_dir=str(tmp_path), num_workers=1, train_tokenizer=True, vocab_size=vocab_size
        )
        shown = capsys.readouterr().out
        assert ("training a tokenizer" in shown) == trained and ("up to date" in shown) != trained


def test_an_interrupted_preparation_is_not_taken_for_a_complete_one(small_stdlib, tmp_path, monkeypatch):
    arguments = {"data_dir": str(tmp_path), "num_workers": 1, "tokenizer_type": "CharLevelTokenizer"}
    prepare_dataset("stdlib", **arguments)
    (tmp_path / "stdlib" / "stdlib_text_document.idx").unlink()
    prepare_dataset("stdlib", **arguments)
    assert len(items(tmp_path / "stdlib" / "stdlib_text_document")) == len(small_stdlib)


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    for arguments in (
        {"train_tokenizer": True, "tokenizer_type": "CharLevelTokenizer"},
        {"train_tokenizer": True, "vocab_file": "x.json"},
        {"vocab_size": 500},
    ):
        with pytest.raises(ConfigError, match="--train-tokenizer"):
            prepare_dataset("enron", data_dir=str(tmp_path), **arguments)
    with pytest.raises(TokenizerError, match="--vocab-file"):
        prepare_dataset("enron", data_dir=str(tmp_path), tokenizer_type="SPMTokenizer")


def test_the_standard_library_holds_modules_and_help_texts_but_no_tests():
    documents = dict(standard_library_documents())
    assert "json/decoder.py" in documents
    assert not any("/tests/" in f"/{name}" or "/test/" in f"/{name}" for name in documents)
    assert not any("site-packages" in name for name in documents)
    assert 300 < len(documents) < 3000
    assert 5e6 < sum(map(len, documents.values())) < 4e7


def test_the_collected_standard_library_is_the_same_every_time(small_stdlib, tmp_path):
    contents = []
    for folder in ("a", "b"):
        corpus = lookup("corpus", "stdlib")(data_dir=str(tmp_path / folder))
        corpus.folder.mkdir(parents=True)
        assert isinstance(corpus, StandardLibrary) and not corpus.exists()
        corpus.download()
        assert corpus.exists()
        contents.append(corpus.paths[0].read_bytes())
    assert contents[0] == contents[1]
