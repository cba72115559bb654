"""Autoregressive decoding of a batch of prompts, one token per row and step.

All rows of a batch stand at the same position. Decoding begins behind the shortest prompt; a longer prompt keeps its
own tokens until the position has passed them, and only then takes what the sampler chooses. Positions at which no row
is left to choose for are passed over.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from megatron.common.errors import ConfigError, DataError
from megatron.engine.inference import InferenceModel, as_inference_model
from megatron.generation.sampling import Sampler, SamplingOptions, row_seed

NOTHING = -1

# Every call without seeds draws anew; a new run of the program draws the same again.
_numbers = itertools.count()


def pad_batch(
    context_tokens: list[list[int]], pad_id: int, pad_len: int, truncate: bool = False
) -> tuple[list[list[int]], list[int]]:
    """Bring token lists to one length, in place.

    Args: truncate: cut longer ones at the end instead of refusing them.
    Returns: (the lists, their lengths before padding).
    Raises: ValueError (DataError) for a list longer than `pad_len`.
    """
    lengths = []
    for tokens in context_tokens:
        if len(tokens) > pad_len:
            if not truncate:
                raise PromptTooLongError(f"a prompt of {len(tokens)} tokens does not fit into {pad_len}")
            del tokens[pad_len:]
        lengths.append(len(tokens))
        tokens.extend([pad_id] * (pad_len - len(tokens)))
    return context_tokens, lengths


class PromptTooLongError(DataError, ValueError):
    """A prompt has more tokens than the model can take."""


def stop_sequences(stop_tokens) -> list[list[int]]:
    """Stop tokens as given by a caller (None, a list of ids, or a list of sequences) as sequences; a new list."""
    if not stop_tokens:
        return []
    if all(isinstance(token, int) for token in stop_tokens):
        return [list(stop_tokens)]
    sequences = [[stop] if isinstance(stop, int) else list(stop) for stop in stop_tokens]
    return [sequence for sequence in sequences if sequence]


def matched_stop(stops: list[list[int]], generated: Sequence[int]) -> int:
    """Length of the stop sequence that `generated` (new tokens only) ends with; 0 if none."""
    return next((len(stop) for stop in stops if list(generated[-len(stop) :]) == stop), 0)


@dataclass
class Batch:
    """State of a decoding batch. b rows; positions count from 0.

    Attributes:
        tokens: int64 [b, seq_length], filled up with the end-of-document token.
        start: int64 [b], length of each prompt: where its new tokens begin.
        end: int64 [b], position of the last new token that counts (end marks and stop sequences do not); -1: none.
        done: bool [b], an end mark or a stop sequence was produced.
        closed: by row, whether it is done, or out of its budget of new tokens.
        logits: float32 [b, maximum_tokens, V] of the new tokens as the model gave them, or None.
    """

    tokens: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor
    done: torch.Tensor
    closed: list[bool]
    logits: torch.Tensor | None


@dataclass(frozen=True)
class DecodingOptions:
    """What is decoded and when it ends.

    Attributes:
        sampling: how tokens are chosen.
        maximum_tokens: new tokens of each row; None: seq_length - longest prompt - 1.
        eos_token_id: end mark; None: the tokenizer's end-of-document token.
        stop_tokens: one token sequence or several that end a row.
        recompute: run the whole sequence for each token instead of keeping keys and values.
        return_logits: keep the logits of all new tokens.
    """

    sampling: SamplingOptions = SamplingOptions()
    maximum_tokens: int | None = 64
    eos_token_id: int | None = None
    stop_tokens: list | None = None
    recompute: bool = False
    return_logits: bool = False

    def __post_init__(self):
        if self.maximum_tokens is not None and self.maximum_tokens < 0:
            raise ConfigError(f"maximum_tokens={self.maximum_tokens} must not be negative")


class Decoder:
    """Decodes one batch; collective over the ranks of a replica, which all hold the same Batch.

    Args: prompts: at least one token each; row_seeds: see Sampler.
    """

    def __init__(
        self,
        neox_args,
        model: InferenceModel,
        prompts: list[list[int]],
        options: DecodingOptions,
        row_seeds: list[int],
    ):
        self.model, self.options = model, options
        self.length = neox_args.seq_length
        eod = neox_args.tokenizer.eod
        self.eos = eod if options.eos_token_id is None else options.eos_token_id
        self.stops = stop_sequences(options.stop_tokens)
        self.sampler = Sampler(options.sampling, neox_args.tokenizer.vocab_size, row_seeds)
        self.generated: list[list[int]] = [[] for _ in prompts]
        padded, self.starts = pad_batch([list(prompt) for prompt in prompts], eod, self.length)
        if min(self.starts) == 0:
            raise DataError("a prompt has no tokens: give at least one, such as the end-of-document token")
        self.position = min(self.starts)
        self.budget = options.maximum_tokens
        if self.budget is None:
            self.budget = max(0, self.length - max(self.starts) - 1)
        self.batch = self._new_batch(padded, neox_args.padded_vocab_size)
        self._positions = torch.arange(self.length, device=model.device).expand(len(prompts), -1)

    def _new_batch(self, padded: list[list[int]], vocabulary: int) -> Batch:
        target, rows = self.model.device, len(padded)
        start = torch.tensor(self.starts, device=target)
        logits = None
        if self.options.return_logits:
            logits = torch.zeros(rows, self.budget, vocabulary, device=target)
        return Batch(
            tokens=torch.tensor(padded, device=target),
            start=start,
            end=torch.full_like(start, NOTHING),
            done=torch.zeros(rows, dtype=torch.bool, device=target),
            closed=[first >= self.length or self.budget == 0 for first in self.starts],
            logits=logits,
        )

    def run(self) -> Iterator[Batch]:
        """Yield the (same, updated) batch after every step until all rows are closed."""
        self.model.inference_mode(use_cache=not self.options.recompute)
        seen = 0  # positions already in the cache
        while not all(self.batch.closed):
            # Once the shorter prompts are done, the rest of a longer one is taken in one piece.
            rows = zip(self.starts, self.batch.closed, strict=True)
            self.position = max(self.position, min(start for start, closed in rows if not closed))
            first = 0 if self.options.recompute else seen
            logits = self._forward(first)
            seen = self.position
            self._advance(self._choose(logits), logits)
            yield self.batch
        self.model.clear_cache()

    def _forward(self, first: int) -> torch.Tensor:
        """Logits [b, V] of the next position on the last stage; elsewhere an empty tensor."""
        new = slice(first, self.position)
        logits = self.model(self.batch.tokens[:, new], self._positions[:, new], last_only=True)
        return torch.empty(0, device=self.model.device) if logits is None else logits[:, -1].float()

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.model.is_sampler:
            return self.model.share(torch.empty_like(self.batch.start))
        # A row that still stands in its prompt draws nothing, or its text would depend on the rows beside it.
        return self.model.share(self.sampler(logits, [first <= self.position for first in self.starts]))

    def _advance(self, chosen: torch.Tensor, logits: torch.Tensor) -> None:
        """Write the chosen tokens at the current position, and see which rows end there."""
        batch, position = self.batch, self.position
        rows = enumerate(zip(self.starts, batch.closed, strict=True))
        active = [row for row, (first, closed) in rows if first <= position and not closed]
        if batch.logits is not None:
            self._keep_logits(active, logits)
        if active:
            where = slice(None) if len(active) == len(self.starts) else active
            batch.tokens[where, position] = chosen[where]
            batch.end[where] = position
        values = chosen.tolist()  # the only time that a step waits for the device
        for row in active:
            generated = self.generated[row]
            generated.append(values[row])
            left_out = 1 if values[row] == self.eos else matched_stop(self.stops, generated)
            if left_out:
                last = position - left_out
                batch.end[row] = last if last >= self.starts[row] else NOTHING
                batch.done[row] = True
            batch.closed[row] = bool(left_out) or len(generated) >= self.budget or position + 1 >= self.length
        self.position += 1

    def _keep_logits(self, active: list[int], logits: torch.Tensor) -> None:
        kept = self.batch.logits
        values = kept.new_empty(len(self.starts), kept.shape[-1])
        if self.model.is_sampler:
            values.copy_(logits)
        self.model.share(values)
        kept[active, [len(self.generated[row]) for row in active]] = values[active]


def stream_tokens(
    neox_args,
    model,
    context_tokens: list[list[int]],
    eos_token_id: int | None = None,
    maximum_tokens: int | None = None,
    recompute: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    stop_tokens: list | None = None,
    seeds: list[int] | None = None,
    return_logits: bool = True,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[tuple]:
    """Decode a batch of token lists, yielding after every step.

    Args:
        model: InferenceModel, or the module or engine to be wrapped into one.
        context_tokens: b prompts of at least one and at most seq_length tokens; left alone.
        seeds: one for each row; None draws anew with every call.
        should_stop: asked after every step, on all ranks with the same answer; True ends the decoding.
        The rest: see DecodingOptions and SamplingOptions.
    Yields: (tokens [b, seq_length], start [b], end [b], logits [b, maximum_tokens, V] or None, done [b]), see Batch.
    Raises: DataError for an empty or too long prompt, ConfigError for impossible options.
    """
    options = DecodingOptions(
        SamplingOptions(temperature, top_k, top_p),
        maximum_tokens,
        eos_token_id,
        stop_tokens,
        recompute,
        return_logits,
    )
    if seeds is None:
        number = next(_numbers)
        seeds = [row_seed(neox_args.seed, f"call {number} row {row}") for row in range(len(context_tokens))]
    decoder = Decoder(neox_args, as_inference_model(model, neox_args), context_tokens, options, seeds)
    for batch in decoder.run():
        yield batch.tokens, batch.start, batch.end, batch.logits, batch.done
        if should_stop is not None and should_stop():
            return
