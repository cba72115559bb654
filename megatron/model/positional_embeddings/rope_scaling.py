"""Rotary positions stretched to longer texts than a model was trained on, as Hugging Face defines the kinds.

The fields of each kind are the keys of the config key `rope_scaling`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from megatron.model.positional_embeddings.frequencies import Frequencies, inverse_frequencies
from megatron.neox_arguments.rope_scaling import kind_of, options_of
from megatron.registry import lookup, register

SMALL = {"pos_emb": "rotary", "rotary_pct": 1.0}


def make_frequencies(dim: int, base: float, longest: int, scaling: Mapping | None) -> Frequencies:
    """The frequencies of a config.

    Args: longest: max_position_embeddings; scaling: rope_scaling, already checked.
    """
    if scaling is None:
        return Frequencies(dim, base, longest)
    options = options_of(dict(scaling))
    return lookup("rope scaling", kind_of(dict(scaling)))(dim, base, longest, **options)


@register("rope scaling", "linear", example={**SMALL, "rope_scaling": {"factor": 2.0}})
@dataclass(frozen=True)
class Linear(Frequencies):
    """Position interpolation (arXiv 2306.15595): all wavelengths times factor."""

    factor: float = 1.0

    def inverse(self, length, device=None):
        return super().inverse(length, device) / self.factor


@dataclass(frozen=True)
class _Extended(Frequencies):
    """What knows the length that the model was trained on: by itself max_position_embeddings."""

    original_max_position_embeddings: int | None = None

    @property
    def original(self) -> int:
        return self.original_max_position_embeddings or self.longest


@register(
    "rope scaling",
    "dynamic",
    lacks={"isolated documents": "its wavelengths follow the length of the whole sample"},
    example={**SMALL, "rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 16}},
)
@dataclass(frozen=True)
class Dynamic(_Extended):
    """NTK-aware: beyond the original length the base grows with the length of the sequence."""

    factor: float = 1.0

    def regime(self, length):
        return max(0, length - self.original)

    def inverse(self, length, device=None):
        stretch = self.factor * max(length, self.original) / self.original - (self.factor - 1)
        base = self.base * stretch ** (self.dim / (self.dim - 2))
        return inverse_frequencies(self.dim, base, device)


@register(
    "rope scaling",
    "yarn",
    example={**SMALL, "rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 16}},
)
@dataclass(frozen=True)
class Yarn(_Extended):
    """YaRN (arXiv 2309.00071): features that turn more than beta_fast times within the original length keep their
    wavelength, those that turn less than beta_slow times have it times factor, and a ramp lies between."""

    factor: float = 1.0
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @property
    def magnitude(self):
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    def _temperature(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0

    def _feature_turning(self, times: float) -> float:
        """The (fractional) pair of features that turns so often within the original length."""
        wavelength = self.original / (2 * math.pi * times)
        return self.dim * math.log(wavelength) / (2 * math.log(self.base))

    def inverse(self, length, device=None):
        first = self._feature_turning(self.beta_fast or 32)
        last = self._feature_turning(self.beta_slow or 1)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.dim - 1)
        width = last - first or 0.001  # a step where there is no room for a ramp
        feature = torch.arange(self.dim // 2, dtype=torch.float32, device=device)
        stretched = ((feature - first) / width).clamp(0, 1)
        plain = super().inverse(length, device)
        return plain / self.factor * stretched + plain * (1 - stretched)


@register(
    "rope scaling",
    "llama3",
    example={
        **SMALL,
        "rope_scaling": {
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
)
@dataclass(frozen=True)
class Llama3(_Extended):
    """Llama 3.1 (arXiv 2407.21783): as YaRN, with the ramp over the number of turns and no change of magnitude."""

    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def inverse(self, length, device=None):
        plain = super().inverse(length, device)
        turns = self.original * plain / (2 * math.pi)
        width = self.high_freq_factor - self.low_freq_factor
        kept = ((turns - self.low_freq_factor) / width).clamp(0, 1)
        return plain / self.factor * (1 - kept) + plain * kept


@register(
    "rope scaling",
    "longrope",
    lacks={"isolated documents": "its wavelengths follow the length of the whole sample"},
    example={
        **SMALL,
        "rope_scaling": {
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 1.5, 2.0, 2.5],
            "original_max_position_embeddings": 16,
        },
    },
)
@dataclass(frozen=True)
class LongRope(_Extended):
    """LongRoPE (arXiv 2402.13753): a factor for each wavelength, other ones beyond the original length."""

    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    factor: float | None = None
    attention_factor: float | None = None

    @property
    def magnitude(self):
        if self.attention_factor is not None:
            return self.attention_factor
        stretch = self.longest / self.original if self.factor is None else self.factor
        return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(self.original))

    def regime(self, length):
        return int(length > self.original)

    def inverse(self, length, device=None):
        factors = self.long_factor if self.regime(length) else self.short_factor
        return super().inverse(length, device) / torch.tensor(factors, dtype=torch.float32, device=device)
