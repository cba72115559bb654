"""What every corpus does: get its files, train a tokenizer if asked, tokenise."""

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from megatron.common.console import info
from megatron.common.documents import find_inputs, read_documents
from megatron.common.errors import ConfigError, TokenizerError
from megatron.common.files import atomic_write_text, make_folder
from megatron.data.corpora.fetch import fetch
from megatron.data.corpora.sources import Sources
from megatron.data.preprocessing import cli
from megatron.tokenizer.build import TokenizerSpec
from megatron.tokenizer.train_tokenizer import save_tokenizer, train_bpe

GPT2_FILES = {
    "gpt2-vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "gpt2-merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
GPT2_TYPE, TRAINED_TYPE = "GPT2BPETokenizer", "HFTokenizer"
DEFAULT_DATA_DIR = "./data"
TRAINED_NAME = "tokenizer.json"
TRAINED_VOCAB_SIZE = 8192
# More text than this no longer changes a vocabulary noticeably.
TRAINING_CHARACTERS = 64_000_000


class DataDownloader:
    """A corpus by name. Subclasses set `name` and `files`, or override `download` and `paths`.

    Args: tokenizer_type, vocab_file, merge_file: as in the config; data_dir: DATA_DIR or ./data; force_redownload: do
    everything again; num_workers: tokenising processes, all cores by default; train_tokenizer: train a byte-level BPE
    of `vocab_size` tokens on the corpus and use it; source: see `Sources`.
    """

    name: str
    files: tuple[str, ...] = ()
    num_docs: int | None = None
    ftfy = False
    trains_by_default = False

    def __init__(
        self,
        tokenizer_type: str | None = None,
        merge_file: str | None = None,
        vocab_file: str | None = None,
        data_dir: str | None = None,
        force_redownload: bool | None = None,
        num_workers: int | None = None,
        train_tokenizer: bool = False,
        vocab_size: int | None = None,
        source: str | None = None,
    ):
        self.base_dir = data_dir or os.environ.get("DATA_DIR") or DEFAULT_DATA_DIR
        self.folder = Path(self.base_dir) / self.name
        self.force_redownload = bool(force_redownload)
        self.num_workers = num_workers or len(os.sched_getaffinity(0))
        self.sources = Sources(source)
        nothing_said = tokenizer_type is None and vocab_file is None and merge_file is None
        self.train_tokenizer = train_tokenizer or (self.trains_by_default and nothing_said)
        self.vocab_size = vocab_size or TRAINED_VOCAB_SIZE
        if vocab_size is not None and not self.train_tokenizer:
            raise ConfigError("--vocab-size is the size of a tokenizer to train: it needs --train-tokenizer")
        if self.train_tokenizer:
            if tokenizer_type not in (None, TRAINED_TYPE) or vocab_file is not None or merge_file is not None:
                raise ConfigError(
                    f"--train-tokenizer makes its own {TRAINED_TYPE}: leave out other tokenizer settings"
                )
            tokenizer_type, vocab_file = TRAINED_TYPE, str(self.folder / TRAINED_NAME)
        self.tokenizer_type = tokenizer_type or GPT2_TYPE
        self.merge_file = merge_file
        self.vocab_file = vocab_file or self._default_vocab_file()
        if self.tokenizer_type == GPT2_TYPE:
            self.merge_file = merge_file or str(Path(self.base_dir) / "gpt2-merges.txt")

    def _default_vocab_file(self) -> str | None:
        defaults = {
            GPT2_TYPE: str(Path(self.base_dir) / "gpt2-vocab.json"),
            "HFGPT2Tokenizer": "gpt2",
            "CharLevelTokenizer": None,
        }
        if self.tokenizer_type not in defaults:
            raise TokenizerError(f"{self.tokenizer_type} needs a tokenizer file: give --vocab-file")
        return defaults[self.tokenizer_type]

    @property
    def urls(self) -> list[str]:
        """Addresses of the files, in order. Raises: DataError if no source is known."""
        return [self.sources.url(self.name, file) for file in self.files]

    @property
    def paths(self) -> list[Path]:
        """The corpus's files on this machine, in order."""
        return [self.folder / file for file in self.files]

    @property
    def output_prefix(self) -> str:
        return str(self.folder / self.name)

    def exists(self) -> bool:
        """Whether all files are there; a file gets its name when it is complete."""
        return all(path.is_file() for path in self.paths)

    def download(self) -> None:
        """Fetch the files that are missing, or all of them if forced."""
        missing = [path for path in self.paths if self.force_redownload or not path.is_file()]
        addresses = [self.sources.url(self.name, path.name) for path in missing]
        for url, path in zip(addresses, missing, strict=True):
            info(f"downloading {url}")
            fetch(url, path, self.sources.sha256(path.name))

    def prepare(self) -> None:
        """Everything from the download to the tokenised data set; what is complete from an earlier call is kept."""
        make_folder(self.folder, "--data-dir")
        if self.force_redownload or not self.exists():
            self.download()
        else:
            info(f"{self.name}: {self._names(self.paths)} there already (--force-redownload gets it again)")
        self._prepare_tokenizer()
        if not self.force_redownload and self._is_tokenised():
            info(f"{self.name}: {self.output_prefix}_text_document is complete and up to date")
            return
        self.tokenize()

    def tokenize(self) -> None:
        """Tokenise the files into PREFIX_text_document.bin and .idx."""
        record = self._record_path()
        record.unlink(missing_ok=True)
        arguments = self._arguments()
        info("$ python tools/datasets/preprocess_data.py " + shlex.join(arguments))
        cli.main(arguments)
        atomic_write_text(record, json.dumps(self._state(), indent=1))

    def _arguments(self) -> list[str]:
        options = {
            "--input": ",".join(map(str, self.paths)),
            "--output-prefix": self.output_prefix,
            "--dataset-impl": "mmap",
            "--tokenizer-type": self.tokenizer_type,
            "--vocab-file": self.vocab_file,
            "--merge-file": self.merge_file,
            "--num-docs": self.num_docs,
            "--workers": self.num_workers,
        }
        given = [
            str(part) for option, value in options.items() if value is not None for part in (option, value)
        ]
        return [*given, "--append-eod", *(["--ftfy"] if self.ftfy else [])]

    def _prepare_tokenizer(self) -> None:
        if self.train_tokenizer:
            self._train_tokenizer()
        elif self.tokenizer_type == GPT2_TYPE:
            for wanted, (file, sha256) in zip(
                (self.vocab_file, self.merge_file), GPT2_FILES.items(), strict=True
            ):
                path = Path(self.base_dir) / file
                if wanted is not None and Path(wanted) == path and not path.is_file():
                    url = self.sources.url("gpt2", file)
                    info(f"downloading {url}")
                    fetch(url, path, sha256)

    def _train_tokenizer(self) -> None:
        path = self.folder / TRAINED_NAME
        if path.is_file() and not self.force_redownload:
            if TokenizerSpec(TRAINED_TYPE, str(path)).build().vocab_size == self.vocab_size:
                info(f"{self.name}: {path} is there already")
                return
        info(f"training a tokenizer of {self.vocab_size:,} tokens on {self._names(self.paths)}")
        save_tokenizer(train_bpe(self._sample(), self.vocab_size, lossless=True), path)

    def _sample(self) -> Iterator[str]:
        left = TRAINING_CHARACTERS
        for text in read_documents(find_inputs(self.paths)):
            yield text
            left -= len(text)
            if left <= 0:
                return

    def _names(self, paths: list[Path]) -> str:
        return str(paths[0]) if len(paths) == 1 else f"{len(paths)} files in {self.folder}"

    def _record_path(self) -> Path:
        return self.folder / "prepared.json"

    def _is_tokenised(self) -> bool:
        prefix = f"{self.output_prefix}_text_document"
        try:
            same = json.loads(self._record_path().read_text(encoding="utf-8")) == self._state()
        except (OSError, ValueError):
            return False
        return same and all(Path(prefix + suffix).is_file() for suffix in (".bin", ".idx"))

    def _state(self) -> dict:
        """What the tokenised data set depends on."""
        files = [path for path in (self.vocab_file, self.merge_file) if path and Path(path).is_file()]
        return {
            "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths],
            "tokenizer_type": self.tokenizer_type,
            "tokenizer": [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files]
            or self.vocab_file,
            "ftfy": self.ftfy,
        }
