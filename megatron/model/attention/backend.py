"""What computes softmax(q k^T) v, and which back-end an attention layer gets."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from megatron.model.attention.pattern import OnDevice, Pattern, RelativeBias
from megatron.registry import lookup, names


@dataclass(frozen=True)
class Demands:
    """What a back-end must bring beside the pattern.

    Attributes: head_size: features; dtype: of queries, keys and values; dropout: attention dropout in training;
    isolated: documents of a sample do not see each other.
    """

    head_size: int
    dtype: torch.dtype
    dropout: float = 0.0
    isolated: bool = False


class Backend(Protocol):
    """Attention by a pattern. The queries are the last s of the t positions that keys and values cover."""

    preference: int  # of those that can serve, the one with the lowest is taken

    def __init__(self, pattern: Pattern): ...

    @staticmethod
    def serves(pattern: Pattern, demands: Demands) -> bool:
        """Whether it computes just that, on the devices of this run."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        dropout: float,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query [b, n, s, d]; key, value [b, kv, t, d] with kv dividing n; views are fine -> [b, n, s, d].

        scale multiplies the scores, before the pattern adds to them; dropout is the probability of dropping a softmax
        weight. positions, int64 [b, t], count from 0 at the start of every document: a query sees its own document
        only; None isolates nothing.
        """


def make_backend(pattern: Pattern, demands: Demands) -> Backend:
    """The preferred back-end of those that can serve; `blockwise` always can."""
    kinds = (lookup("attention back-end", name) for name in names("attention back-end"))
    able = [kind for kind in kinds if kind.serves(pattern, demands)]
    return min(able, key=lambda kind: kind.preference)(pattern)


def pattern_of_layer(neox_args, layer_number: int, in_scores: torch.Tensor | RelativeBias | None) -> Pattern:
    """What the config says about a layer. in_scores: see PositionScheme.in_scores."""
    pattern: Pattern = lookup("attention", neox_args.attention_config[layer_number])(neox_args, layer_number)
    width = neox_args.sliding_window_width
    if width is not None:
        pattern = replace(pattern, window=min(width, pattern.window or width))
    if isinstance(in_scores, torch.Tensor):
        pattern = replace(pattern, slopes=OnDevice(in_scores))
    elif in_scores is not None:
        pattern = replace(pattern, bias=in_scores)
    # The option divides scores by the layer number and multiplies them by it inside an fp32 softmax. Back-ends keep
    # scores in fp32 throughout, where the two cancel; what is added in between is only multiplied.
    if neox_args.apply_query_key_layer_scaling:
        pattern = replace(pattern, bias_factor=float(max(1, layer_number)))
    return pattern
