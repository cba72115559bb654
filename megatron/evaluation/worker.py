"""What every rank computes for an evaluation. Collective over all ranks of the job."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron import mpu
from megatron.engine.exchange import all_gather_json
from megatron.engine.inference import InferenceModel
from megatron.evaluation.plan import Row
from megatron.generation.decoding import Decoder, DecodingOptions
from megatron.generation.sampling import SamplingOptions, row_seed
from megatron.mpu import collectives


@dataclass(frozen=True)
class Continuations:
    """A round of texts to be continued.

    Attributes: prompts: token ids of each; numbers: of the requests, which their random draws depend on; until: texts
    that end a continuation and are cut off; temperature: 0 takes the likeliest token.
    """

    prompts: list[list[int]]
    numbers: list[int]
    until: list[str]
    max_gen_toks: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.0


class Worker:
    """This rank's part.

    Args: use_cache: keep keys and values while a text is continued.
    """

    def __init__(self, model: InferenceModel, neox_args, use_cache: bool = True):
        self.model, self.neox_args, self.use_cache = model, neox_args, use_cache
        self.replicas, self.replica = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
        # With its parameters spread over the replicas, all must run the same passes at the same time.
        zero = neox_args.zero_optimization or {}
        self.in_step = self.replicas > 1 and zero.get("stage") == 3

    def score(self, rounds: list[list[Row]]) -> torch.Tensor:
        """float32 [wanted log-probabilities of all rounds, 2]: (log-probability, 1 where no token was likelier)."""
        self.model.inference_mode(use_cache=False)
        total = sum(len(row.targets) for rows in rounds for row in rows)
        answers = torch.zeros(total, 2, device=self.model.device)
        first = 0
        for rows in rounds:
            starts = []
            for row in rows:
                starts.append(first)
                first += len(row.targets)
            # A replica without a row runs one all the same, for the sake of those that wait for it.
            own, places = rows[self.replica :: self.replicas], starts[self.replica :: self.replicas]
            found = self._score_batch(own or rows[:1])
            if found is not None and own:
                spread = [
                    place + n for place, row in zip(places, own, strict=True) for n in range(len(row.targets))
                ]
                answers[torch.tensor(spread, device=answers.device)] = found
        self.model.share(answers)
        if self.replicas > 1:
            dist.all_reduce(answers, group=mpu.get_data_parallel_group())
        return answers.cpu()

    def _score_batch(self, rows: list[Row]) -> torch.Tensor | None:
        """[wanted, 2] on the last stage, None on the others."""
        tokens = torch.zeros(len(rows), max(len(row.inputs) for row in rows), dtype=torch.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row.inputs)] = torch.tensor(row.inputs)
        where = [(number, position) for number, row in enumerate(rows) for position in row.positions]
        batch, column = torch.tensor(where).to(self.model.device).unbind(-1)
        targets = torch.tensor([token for row in rows for token in row.targets]).to(self.model.device)
        tokens = tokens.to(self.model.device)
        position_ids = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens).contiguous()
        logits = self.model.logits_at(tokens, position_ids, batch, column)
        if logits is None:
            return None
        log_probabilities = -mpu.vocab_parallel_cross_entropy(logits, targets)
        return torch.stack([log_probabilities, (likeliest(logits) == targets).float()], dim=-1)

    def generate(self, work: Continuations) -> list[str]:
        """The continuation of every prompt, on all ranks."""
        if self.in_step or self.replicas == 1:
            return self._continue(work, range(len(work.prompts)))
        own = self._continue(work, range(self.replica, len(work.prompts), self.replicas))
        parts = all_gather_json(own, mpu.get_data_parallel_group())
        return [parts[n % self.replicas][n // self.replicas] for n in range(len(work.prompts))]

    def _continue(self, work: Continuations, own: range) -> list[str]:
        if not own:
            return []
        options = DecodingOptions(
            SamplingOptions(work.temperature, work.top_k, work.top_p),
            maximum_tokens=work.max_gen_toks,
            recompute=not self.use_cache,
        )
        seeds = [row_seed(self.neox_args.seed, f"request {work.numbers[n]}") for n in own]
        prompts = [work.prompts[n] for n in own]
        decoder = Decoder(self.neox_args, self.model, prompts, options, seeds)
        until, tokenizer = [end for end in work.until if end], self.neox_args.tokenizer
        marks = (decoder.eos, tokenizer.pad_id)  # no part of a text, here as in the harness's own model

        def text_of(row: int) -> str:
            return tokenizer.detokenize([token for token in decoder.generated[row] if token not in marks])

        for batch in decoder.run():
            for row, closed in enumerate(batch.closed):
                # However the characters of an end fall into tokens. All ranks of a replica hold the same ones.
                if not closed and decoder.generated[row]:
                    text = text_of(row)
                    batch.closed[row] = any(end in text for end in until)
        return [cut(text_of(row), until) for row in range(len(prompts))]


def cut(text: str, until: list[str]) -> str:
    """What stands before the first of the ends."""
    return min((text.split(end, 1)[0] for end in until), key=len, default=text)


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The token with the largest logit, int64 [n], of logits [n, V/tp] cut over the tensor-parallel ranks."""
    values, tokens = logits.max(dim=-1)
    ranks = mpu.get_model_parallel_world_size()
    if ranks == 1:
        return tokens
    tokens = tokens + mpu.get_model_parallel_rank() * logits.shape[-1]
    largest = collectives.all_reduce(values, op=dist.ReduceOp.MAX)
    none = torch.full_like(tokens, logits.shape[-1] * ranks)
    return collectives.all_reduce(torch.where(values == largest, tokens, none), op=dist.ReduceOp.MIN)
