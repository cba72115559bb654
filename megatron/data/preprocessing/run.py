"""One preprocessing run: plan, tokenise, keep a journal, publish."""

import hashlib
import itertools
import json
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from megatron.common.console import Progress, human_bytes, human_duration, info
from megatron.common.documents import find_inputs, read_blocks
from megatron.common.documents.blocks import BLOCK_BYTES, Cutter
from megatron.common.errors import ConfigError, DataError
from megatron.common.files import atomic_write_text, make_folder
from megatron.data.indexed_dataset import best_fitting_dtype
from megatron.data.preprocessing.encode import EncodedBlock, EncodeJob, Encoder
from megatron.data.preprocessing.workers import encode_blocks
from megatron.data.preprocessing.writer import TokenWriter
from megatron.tokenizer.splitting import PIECE_BYTES

JOURNAL_VERSION = 1
JOURNAL_SECONDS = 10.0
TERMINATED = 143


@dataclass(frozen=True)
class Totals:
    """What a run has done; `skipped` counts invalid records, `consumed` bytes of the input files."""

    blocks: int = 0
    documents: int = 0
    tokens: int = 0
    skipped: int = 0
    characters: int = 0
    consumed: int = 0

    def plus(self, block: EncodedBlock) -> "Totals":
        return Totals(
            self.blocks + 1,
            self.documents + block.documents,
            self.tokens + len(block.outputs[0][0]),
            self.skipped + block.skipped,
            self.characters + block.characters,
            max(self.consumed, block.consumed),
        )


@dataclass(frozen=True)
class PreprocessPlan:
    """A run as the user asked for it.

    Attributes: inputs: files or folders, comma separated or listed; output_prefix: each output NAME of the job goes to
    PREFIX_NAME_document.bin and .idx; impl: "mmap", "cached" or "lazy"; num_docs: expected documents, for the progress
    only; log_interval: documents between two updates of the progress; resume: go on with an interrupted run of the
    same plan.
    """

    inputs: str | list[str]
    output_prefix: str
    job: EncodeJob
    impl: str = "mmap"
    workers: int = 1
    num_docs: int | None = None
    log_interval: int = 100
    resume: bool = True


def preprocess(plan: PreprocessPlan) -> Totals:
    """Tokenise all documents of the inputs.

    An interrupted or failed run leaves no data set, only PREFIX*.part files and a journal, from which the same call
    goes on. Memory does not depend on the size of the input.
    Raises: DataError for bad input, ConfigError and TokenizerError for bad settings.
    """
    if plan.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {plan.workers}")
    files = find_inputs(plan.inputs)
    tokenizer = plan.job.tokenizer.build()
    compact = plan.impl == "mmap" and plan.job.mask_before is None
    dtype = best_fitting_dtype(tokenizer.vocab_size if compact else None)
    job = replace(plan.job, dtype=dtype.__name__)
    encoder = Encoder(job, tokenizer)
    with _until_terminated():
        return _Run(plan, job, files).execute(encoder)


class _Run:
    def __init__(self, plan: PreprocessPlan, job: EncodeJob, files: list[Path]):
        self.plan, self.job, self.files = plan, job, files
        self.total_bytes = sum(path.stat().st_size for path in files)
        self.journal = Path(f"{plan.output_prefix}.preprocessing.json")
        self.prefixes = [f"{plan.output_prefix}_{name}_document" for name, _ in job.outputs()]
        self.writers: list[TokenWriter] = []
        # Totals and the writers' positions after the last whole block: replaced together, so that an interruption at
        # any moment finds both in step.
        self.done: tuple[Totals, list[dict]] = (Totals(), [])

    @property
    def totals(self) -> Totals:
        return self.done[0]

    def execute(self, encoder: Encoder) -> Totals:
        started = time.monotonic()
        self._open()
        before = self.totals
        count = f"{len(self.files)} file" + "s" * (len(self.files) != 1)
        info(f"tokenising {count} ({human_bytes(self.total_bytes)}) with {self.plan.workers} worker(s)")
        if before.blocks:
            info(f"going on with the run that was interrupted after {before.documents:,} documents")
        blocks = itertools.islice(read_blocks(self.files, self._cutter(encoder)), before.blocks, None)
        try:
            with closing(encode_blocks(blocks, self.job, encoder, self.plan.workers)) as encoded:
                self._write(encoded)
        except BaseException:
            self._keep()
            raise
        self._publish()
        self._report(time.monotonic() - started, self.totals.characters - before.characters)
        return self.totals

    def _cutter(self, encoder: Encoder) -> Cutter:
        # Labels look for their pattern in whole documents.
        return encoder.cutter if self.job.mask_before is None else (lambda text: None)

    def _open(self) -> None:
        make_folder(Path(self.plan.output_prefix).resolve().parent, "--output-prefix")
        marks = self._take_over() if self.plan.resume else []
        for place, (prefix, (_, dtype)) in enumerate(zip(self.prefixes, self.job.outputs(), strict=True)):
            self.writers.append(TokenWriter(prefix, dtype, marks[place] if marks else None))

    def _take_over(self) -> list[dict]:
        """The writers' positions of an interrupted run of this very plan, whose totals become this run's."""
        try:
            found = json.loads(self.journal.read_text(encoding="utf-8"))
            fingerprint, totals, marks = found["fingerprint"], Totals(**found["totals"]), found["outputs"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        if fingerprint != self.fingerprint:
            info(f"{self.journal} belongs to a run with other inputs or settings: starting afresh")
            return []
        if not all(TokenWriter.can_resume(*pair) for pair in zip(self.prefixes, marks, strict=True)):
            return []
        self.done = (totals, marks)
        return marks

    @cached_property
    def fingerprint(self) -> str:
        """Changes with anything that decides the ids or where blocks end."""
        tokenizer_files = [path for path in self.job.tokenizer[1:] if path and Path(path).is_file()]
        facts = {
            "version": [JOURNAL_VERSION, BLOCK_BYTES, PIECE_BYTES],
            "inputs": [
                (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files
            ],
            "job": {**asdict(self.job), "skip_invalid": None},
            "tokenizer": [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in tokenizer_files],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _write(self, encoded: Iterable[EncodedBlock]) -> None:
        shown = self.totals
        saved = time.monotonic()
        with Progress(self.total_bytes - shown.consumed, "B", "tokenising") as progress:
            for block in encoded:
                for writer, (flat, lengths) in zip(self.writers, block.outputs, strict=True):
                    writer.append(flat, lengths, block.begins, block.ends)
                self.done = (self.totals.plus(block), [writer.mark() for writer in self.writers])
                if self.totals.documents - shown.documents >= self.plan.log_interval or not block.ends:
                    progress.update(self.totals.consumed - shown.consumed, self._note())
                    shown = self.totals
                if time.monotonic() - saved >= JOURNAL_SECONDS:
                    self._save_journal()
                    saved = time.monotonic()
            progress.update(self.total_bytes - shown.consumed, self._note())

    def _note(self) -> str:
        expected = f" of {self.plan.num_docs:,}" if self.plan.num_docs else ""
        return f"{self.totals.documents:,}{expected} documents, {self.totals.tokens:,} tokens"

    def _save_journal(self) -> None:
        totals, marks = self.done
        for writer in self.writers:
            writer.sync()
        record = {"fingerprint": self.fingerprint, "totals": asdict(totals), "outputs": marks}
        atomic_write_text(self.journal, json.dumps(record))

    def _keep(self) -> None:
        """After an interruption or an error: what is done stays for the next run."""
        if not self.totals.blocks:
            self._discard()
            return
        try:
            self._save_journal()
            info(f"stopped after {self.totals.documents:,} documents; the same command goes on from there")
        except DataError:  # the disk is full: an earlier journal, if any, still holds
            info("stopped; what was done since the last journal entry could not be kept")
        for writer in self.writers:
            writer.close()

    def _discard(self) -> None:
        for writer in self.writers:
            writer.discard()
        self.journal.unlink(missing_ok=True)

    def _publish(self) -> None:
        if not self.totals.documents:
            self._discard()
            raise DataError(f"the input holds no document: {', '.join(map(str, self.files[:3]))}")
        for writer in self.writers:
            writer.publish(self.plan.impl)
        self.journal.unlink(missing_ok=True)

    def _report(self, seconds: float, characters: int) -> None:
        totals = self.totals
        rate = human_bytes(characters / max(seconds, 1e-9))
        took = human_duration(seconds)
        info(f"{totals.documents:,} documents, {totals.tokens:,} tokens in {took} ({rate}/s of text)")
        if totals.skipped:
            info(f"{totals.skipped:,} invalid records were left out")
        for prefix in self.prefixes:
            info(f"wrote {prefix}.bin and .idx")


@contextmanager
def _until_terminated() -> Iterator[None]:
    """SIGTERM ends the run like Ctrl-C does: journal kept, workers stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number, frame):
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
