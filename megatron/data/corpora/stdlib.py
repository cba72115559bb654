"""The one corpus every machine has: the sources and documents of the running Python's standard library."""

import hashlib
import importlib
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from megatron.common.console import human_bytes, info
from megatron.common.files import atomic_path
from megatron.data.corpora.base import DataDownloader
from megatron.registry import register

# Left out: what others installed, tests, tables written by programs (encodings), files made for this one machine.
SKIPPED_FOLDERS = re.compile(
    r"(site|dist)-packages|__pycache__|(idle_|ctypes_)?tests?|encodings|config-.*|\..*"
)
SKIPPED_FILES = re.compile(r"_sysconfigdata.*|topics\.py|.*_pb2\.py")
SUFFIXES = (".py", ".rst", ".txt")
TOPICS_MODULE = "pydoc_data.topics"


@register("corpus", "stdlib")
class StandardLibrary(DataDownloader):
    """Python modules, and the texts of `help()`: about 11 MB in 700 documents, made without a network.

    Documents come in an order that looks random and is always the same, so that any split of them is a fair sample.
    """

    name = "stdlib"
    files = ("stdlib.jsonl",)
    trains_by_default = True

    def download(self) -> None:
        """Collect the documents into one JSON-lines file."""
        documents = sorted(standard_library_documents(), key=_place)
        (path,) = self.paths
        with atomic_path(path) as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                for name, text in documents:
                    file.write(json.dumps({"text": text, "meta": {"name": name}}) + "\n")
        size = human_bytes(path.stat().st_size)
        info(
            f"collected {len(documents):,} documents ({size}) of Python {sys.version.split()[0]} into {path}"
        )


def standard_library_documents() -> Iterator[tuple[str, str]]:
    """(name, text) of every document."""
    root = Path(sysconfig.get_path("stdlib"))
    manual = Path(sys.base_prefix, "share", "doc", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    for folder in (root, manual):
        for path in _text_files(folder):
            text = path.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                yield path.relative_to(folder).as_posix(), text
    with suppress(ImportError):  # some distributions leave the texts of help() out
        for topic, text in sorted(importlib.import_module(TOPICS_MODULE).topics.items()):
            yield f"help/{topic}", text


def _text_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            if not SKIPPED_FOLDERS.fullmatch(path.name):
                yield from _text_files(path)
        elif path.suffix in SUFFIXES and not SKIPPED_FILES.fullmatch(path.name):
            yield path


def _place(document: tuple[str, str]) -> str:
    return hashlib.sha256(document[0].encode()).hexdigest()
