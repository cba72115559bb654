"""From logits to the next token."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron.common.errors import ConfigError


def filter_logits(
    logits: torch.Tensor, top_k: int = 0, top_p: float = 0.0, filter_value: float = float("-inf")
) -> torch.Tensor:
    """Set the logits of unlikely tokens to `filter_value`, in place.

    Args:
        logits: floating point [..., V].
        top_k: keep the k largest, ties with the k-th included; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose mass exceeds p (arXiv:1904.09751): a token goes
            when the tokens before it already exceed p, so the likeliest one always stays; 0 keeps all.
    Returns: `logits`.
    """
    if top_k > 0:
        smallest_kept = torch.topk(logits, min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits.masked_fill_(logits < smallest_kept, filter_value)
    if top_p > 0.0:
        ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        mass = torch.softmax(ordered.float(), dim=-1)
        before = mass.cumsum(dim=-1) - mass
        excess = before > top_p
        excess[..., 0] = False
        logits.masked_fill_(torch.zeros_like(excess).scatter(-1, order, excess), filter_value)
    return logits


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token, whatever the other two say.
        top_k, top_p: see filter_logits.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self):
        problems = []
        if self.temperature < 0:
            problems.append(f"temperature={self.temperature} must not be negative (0 is greedy)")
        if self.top_k < 0:
            problems.append(f"top_k={self.top_k} must not be negative (0 keeps all tokens)")
        if not 0.0 <= self.top_p <= 1.0:
            problems.append(f"top_p={self.top_p} must lie between 0 and 1 (0 keeps all tokens)")
        if problems:
            raise ConfigError(problems)


class Sampler:
    """Chooses one token for each row of a batch; every row draws from a generator of its own.

    So what a row gets depends on (seed, row number) and its logits alone: not on the rows beside it, the layout of
    the job, or the device.

    Args:
        options: how to choose.
        vocab_size: true size of the vocabulary; the padding rows behind it are never chosen.
        row_seeds: one seed for each row of the batch.
    """

    def __init__(self, options: SamplingOptions, vocab_size: int, row_seeds: list[int]):
        self.options = options
        self.vocab_size = vocab_size
        # On the CPU on every machine, because each kind of device draws other numbers from the same seed.
        self._generators = [torch.Generator().manual_seed(seed) for seed in row_seeds]

    def __call__(self, logits: torch.Tensor, wanted: Sequence[bool] | None = None) -> torch.Tensor:
        """logits [b, V] -> tokens int64 [b]. The logits are left alone.

        wanted: the rows whose tokens will be used; the others' generators stay where they are.
        """
        logits = logits[:, : self.vocab_size].float()
        if self.options.temperature == 0.0:
            return logits.argmax(dim=-1)
        filtered = filter_logits(logits / self.options.temperature, self.options.top_k, self.options.top_p)
        draws = [
            torch.rand(1, generator=generator, dtype=torch.float64)
            if used
            else torch.zeros(1, dtype=torch.float64)
            for generator, used in zip(self._generators, wanted or itertools.repeat(True), strict=False)
        ]
        return pick(torch.softmax(filtered.double(), dim=-1), torch.cat(draws).to(logits.device))


def pick(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The token at the point `draws` (in [0, 1)) of each row's cumulative distribution.

    Args: probabilities: float64 [b, V]; draws: float64 [b].
    Returns: int64 [b]; never a token of probability 0.
    """
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(draws * total, below_total)
    return torch.searchsorted(cumulative, threshold.unsqueeze(-1), right=True).squeeze(-1)


def row_seed(seed: int, name: int | str) -> int:
    """The generator seed of the sample called `name` in a run; unrelated for neighbouring seeds and names."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")
