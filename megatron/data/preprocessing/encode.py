"""From a block of documents to token ids; what a preprocessing worker does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megatron.common.documents import Block
from megatron.common.documents.blocks import BLOCK_BYTES
from megatron.common.documents.long_records import LongText
from megatron.tokenizer.abstract import AbstractTokenizer
from megatron.tokenizer.build import TokenizerSpec
from megatron.tokenizer.splitting import TextCutter, strip_wrapping

IGNORED_LABEL = -100


@dataclass(frozen=True)
class EncodeJob:
    """How documents become ids.

    Attributes: keys: record fields, each an output of its own; append_eod: end every document with the tokenizer's
    EOD; ftfy: mend broken Unicode first; mask_before: ids of a pattern: a label output follows each text output, equal
    to it but -100 up to and including the first occurrence of the pattern; dtype: of the text outputs.
    """

    tokenizer: TokenizerSpec
    keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    ftfy: bool = False
    skip_invalid: bool = False
    mask_before: tuple[int, ...] | None = None
    dtype: str = "int32"

    def outputs(self) -> list[tuple[str, str]]:
        """(name, dtype) of each output; a single text's labels are named "label" alone."""
        if self.mask_before is None:
            return [(key, self.dtype) for key in self.keys]
        names = ["label"] if len(self.keys) == 1 else [f"{key}_label" for key in self.keys]
        pairs = zip(self.keys, names, strict=True)
        return [output for key, label in pairs for output in ((key, self.dtype), (label, "int32"))]


@dataclass(frozen=True)
class EncodedBlock:
    """Ids of a block: per output all ids in a row, and the number of ids of each document (int64).

    begins, ends: whether the first document starts and the last one ends here; documents: how many end here.
    """

    outputs: list[tuple[np.ndarray, np.ndarray]]
    begins: bool
    ends: bool
    documents: int
    skipped: int
    characters: int
    consumed: int


class Piece(NamedTuple):
    """Text of document `owner`; begins, ends: whether it is the first, the last of its document."""

    owner: int
    text: str
    begins: bool
    ends: bool


class Encoder:
    """Applies a job to blocks. Documents without ids are left out; of several keys, those where every text is empty."""

    def __init__(self, job: EncodeJob, tokenizer: AbstractTokenizer | None = None):
        self.job = job
        self.tokenizer = tokenizer or job.tokenizer.build()
        self.cutter = TextCutter(self.tokenizer)
        self._eod = self.tokenizer.eod if job.append_eod else None
        self._clean = _fix_text() if job.ftfy else None

    def __call__(self, block: Block) -> EncodedBlock:
        found = block.texts(self.job.keys, self.job.skip_invalid)
        whole = block.begins and block.ends
        rows = [row for row in found.rows if any(row)] if whole else found.rows
        outputs: list[tuple[np.ndarray, np.ndarray]] = []
        for column in range(len(self.job.keys)):
            flat, lengths = self._encode([row[column] for row in rows], block.begins, block.ends)
            if len(self.job.keys) == 1 and whole:
                lengths = lengths[lengths > 0]
            flat, lengths = self._end_documents(flat, lengths, block.ends)
            outputs.append((flat.astype(self.job.dtype, copy=False), lengths))
            if self.job.mask_before is not None:
                outputs.append((mask_labels(flat, lengths, self.job.mask_before), lengths))
        return EncodedBlock(
            outputs=outputs,
            begins=block.begins,
            ends=block.ends,
            documents=len(outputs[0][1]) - (not block.ends),
            skipped=found.skipped,
            characters=sum(len(text) for row in rows for text in row),
            consumed=block.consumed,
        )

    def _encode(self, texts: list[str | LongText], begins: bool, ends: bool) -> tuple[np.ndarray, np.ndarray]:
        """Ids and lengths of texts, of which the first may be the rest, the last the start of a document."""
        if begins and ends and sum(map(len, texts)) <= BLOCK_BYTES:
            flat, counts = self.tokenizer.tokenize_flat([self._cleaned(str(text)) for text in texts])
            return flat, np.asarray(counts, dtype=np.int64)
        lengths = np.zeros(len(texts), dtype=np.int64)
        parts: list[np.ndarray] = []
        for batch in _batches(self._pieces(texts, begins, ends)):
            flat, counts = self.tokenizer.tokenize_flat([piece.text for piece in batch])
            end = 0
            for piece, count in zip(batch, counts, strict=True):
                start, end = end, end + count
                before, after = strip_wrapping(self.tokenizer, piece.begins, piece.ends)
                parts.append(flat[start + before : end - after].astype(self.job.dtype))
                lengths[piece.owner] += count - before - after
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32), lengths

    def _pieces(self, texts: list[str | LongText], begins: bool, ends: bool) -> Iterator[Piece]:
        for owner, text in enumerate(texts):
            parts = text.parts() if isinstance(text, LongText) else [text]
            pieces = self.cutter.split_parts(map(self._cleaned, parts))
            piece, first = next(pieces), begins or owner > 0
            for following in pieces:
                yield Piece(owner, piece, first, False)
                piece, first = following, False
            yield Piece(owner, piece, first, ends or owner < len(texts) - 1)

    def _cleaned(self, text: str) -> str:
        return self._clean(text) if self._clean is not None else text

    def _end_documents(
        self, flat: np.ndarray, lengths: np.ndarray, ends: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._eod is None or not len(lengths):
            return flat, lengths
        ended = len(lengths) if ends else len(lengths) - 1
        lengths = lengths.copy()
        flat = np.insert(flat, np.cumsum(lengths)[:ended], self._eod)
        lengths[:ended] += 1
        return flat, lengths


def _fix_text() -> Callable[[str], str]:
    import ftfy

    return ftfy.fix_text


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Groups of about a block each, so that the tokenizer never holds more than that at once."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BLOCK_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def mask_labels(flat: np.ndarray, lengths: np.ndarray, pattern: Sequence[int]) -> np.ndarray:
    """Labels (int32) of documents laid out as `flat` and `lengths`: -100 through the first `pattern` of each.

    A document without the pattern keeps all its ids as labels.
    """
    labels = flat.astype(np.int32)
    width = len(pattern)
    hits = np.ones(max(len(flat) - width + 1, 0), dtype=bool)
    for place, number in enumerate(pattern):
        hits &= flat[place : place + len(hits)] == number
    starts = np.flatnonzero(hits)
    ends = np.cumsum(lengths)
    for begin, end in zip(ends - lengths, ends, strict=True):
        place = np.searchsorted(starts, begin)
        if place < len(starts) and starts[place] + width <= end:
            labels[begin : starts[place] + width] = IGNORED_LABEL
    return labels
