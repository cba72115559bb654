"""Records out: what was asked, what came, how long it took; one JSON object per prompt, in prompt order."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron import mpu
from megatron.common.console import Progress, warn
from megatron.common.errors import ConfigError, DataError
from megatron.common.files import check_writable
from megatron.engine.exchange import all_gather_json
from megatron.engine.inference import InferenceModel
from megatron.generation.decoding import Batch, Decoder, DecodingOptions
from megatron.generation.sampling import row_seed


@dataclass
class Record:
    """One prompt and its continuation.

    Attributes:
        context: the prompt as given, "" for an unconditional sample.
        text: the new tokens as text, None if there are none or they have no text.
        length: number of new tokens, without end mark and stop sequence.
        finished: an end mark or a stop sequence was produced.
        message: why there is no text, or less of it than maximum_tokens allows; else None.
        duration_seconds: wall time from the start of the prompt's batch to its last token.
        logits: float [length or one more for the end mark][V], or None if not asked for.
    """

    context: str
    text: str | None = None
    length: int = 0
    finished: bool = False
    message: str | None = None
    duration_seconds: float = 0.0
    logits: list | None = None

    def as_dict(self) -> dict:
        """The fields in their order in the file; logits only if there are any."""
        fields = asdict(self)
        if self.logits is None:
            del fields["logits"]
        return fields


def generate_records(
    neox_args, model: InferenceModel, prompts: list[str], options: DecodingOptions, label: str = "sampling"
) -> Iterator[list[dict]]:
    """Continue all prompts; yields the records of one round after the other, in prompt order, on all ranks.

    A round is one micro-batch on every data-parallel replica. Collective over all ranks of the job.
    """
    replicas, replica = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
    rows = max(1, neox_args.train_micro_batch_size_per_gpu or 1)
    with Progress(len(prompts), "prompts", label, enabled=is_writer()) as progress:
        for first in range(0, len(prompts), rows * replicas):
            begin = first + replica * rows
            own = list(enumerate(prompts[begin : begin + rows], start=begin))
            records = [record.as_dict() for record in _continue_batch(neox_args, model, own, options)]
            group = mpu.get_data_parallel_group() if replicas > 1 else None
            gathered = all_gather_json(records, group) if replicas > 1 else [records]
            finished = [record for part in gathered for record in part]
            progress.update(len(finished))
            yield finished


def is_writer() -> bool:
    """Whether this process is the one that writes files: global rank 0."""
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0


def _continue_batch(
    neox_args, model, numbered: list[tuple[int, str]], options: DecodingOptions
) -> list[Record]:
    """Records of one batch of (number, prompt)."""
    tokenizer = neox_args.tokenizer
    records = [Record(context=prompt) for _, prompt in numbered]
    tokens = [tokenizer.tokenize(prompt) if prompt else [tokenizer.eod] for _, prompt in numbered]
    if options.maximum_tokens == 0:
        for record in records:
            record.message = "no new token is asked for: maximum_tokens is 0"
        return records
    fitting = [row for row, prompt in enumerate(tokens) if _fits(prompt, records[row], neox_args.seq_length)]
    if not fitting:
        return records
    seeds = [row_seed(neox_args.seed, numbered[row][0]) for row in fitting]
    start = time.monotonic()
    decoder = Decoder(neox_args, model, [tokens[row] for row in fitting], options, seeds)
    batch, seconds = decoder.batch, [0.0] * len(fitting)
    for batch in decoder.run():
        elapsed = time.monotonic() - start
        seconds = [known or elapsed * closed for known, closed in zip(seconds, batch.closed, strict=True)]
    for place, row in enumerate(fitting):
        records[row].duration_seconds = seconds[place]
        _fill(records[row], batch, place, tokenizer)
        _tell_of_the_end(records[row], len(tokens[row]), options.maximum_tokens, neox_args.seq_length)
    return records


def _fits(tokens: list[int], record: Record, seq_length: int) -> bool:
    """Whether a prompt leaves room for a new token; says in the record why not."""
    if not tokens:
        record.message = "the tokenizer makes no tokens of this prompt: nothing generated"
    elif len(tokens) >= seq_length:
        record.message = (
            f"the prompt has {len(tokens)} tokens and seq_length is {seq_length}: no room for a new token, "
            "nothing generated; shorten the prompt"
        )
    elif len(tokens) >= seq_length // 2:
        warn(f"a prompt takes {len(tokens)} of {seq_length} tokens (seq_length), which leaves little room")
    if record.message:
        warn(record.message)
    return record.message is None


def _fill(record: Record, batch: Batch, place: int, tokenizer) -> None:
    first, last = int(batch.start[place]), int(batch.end[place])
    record.finished = bool(batch.done[place])
    generated = batch.tokens[place, first : last + 1].tolist() if last >= first else []
    record.length = len(generated)
    if generated:
        try:
            record.text = tokenizer.detokenize(generated)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            record.message = f"the tokenizer has no text for some of the new tokens ({error}): {generated}"
    if batch.logits is not None:
        record.logits = batch.logits[place, : record.length + int(record.finished)].tolist()


def _tell_of_the_end(record: Record, prompt: int, maximum_tokens: int | None, seq_length: int) -> None:
    """Say in the record that its text ends only because the sequence is full. prompt: tokens."""
    if record.finished or maximum_tokens is None or prompt + maximum_tokens <= seq_length or record.message:
        return
    record.message = (
        f"cut off: {prompt} tokens of the prompt and {record.length} new ones fill seq_length={seq_length}, so that "
        f"maximum_tokens={maximum_tokens} was out of reach"
    )


def check_output(neox_args) -> None:
    """Find out before the model is loaded whether the samples can be written.

    Raises: ConfigError for the file of prompts, or a folder, as sample_output_file; NeoXError for a folder that cannot
    be made or written into.
    """
    if neox_args.text_gen_type not in ("unconditional", "input-file") or neox_args.sample_output_file is None:
        return
    output, prompts = Path(neox_args.sample_output_file), neox_args.sample_input_file
    if prompts is not None and output.resolve() == Path(prompts).resolve():
        raise ConfigError(
            f"sample_output_file={output} is sample_input_file too, and would take its place: choose another"
        )
    if output.is_dir():
        raise ConfigError(f"sample_output_file={output} is a folder: name a file in it")
    check_writable(output.parent, "sample_output_file")


class RecordFile:
    """JSON lines written by global rank 0 alone, record by record, so that an interrupted run leaves what it had.

    Args: path: None writes nothing.
    Raises: DataError when the file cannot be written.
    """

    def __init__(self, path: str | Path | None):
        self.path = path
        self._file = None

    def __enter__(self) -> "RecordFile":
        if self.path is not None and is_writer():
            try:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "w", encoding="utf-8")
            except OSError as error:
                raise DataError(
                    f"sample_output_file={self.path} cannot be written: {error.strerror}"
                ) from error
        return self

    def __exit__(self, kind, value, trace) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, records: list[dict]) -> None:
        """Append records."""
        if self._file is not None:
            self._file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            self._file.flush()
