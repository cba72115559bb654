"""Rules: how one parameter is made of tensors of another program, and taken apart into them.

Everything here is about logical tensors, of one process. Legend: h hidden size, n query heads, kv key/value heads,
d head size, f inner width of an MLP, E experts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Form(NamedTuple):
    """Two functions that undo each other: their tensors -> our tensor, our tensor -> their tensors."""

    join: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    split: Callable[[torch.Tensor], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Rule:
    """One parameter.

    Attributes:
        native: logical name, `<layer>.<path>`; blocks start with layer 2.
        theirs: names of the tensors it is made of; none for a parameter that they do not have.
        form: how it is made of them.
        fill: the value of a parameter that they do not have.
        unused: such a parameter plays no part in the model, so that any value of it may be dropped.
    """

    native: str
    theirs: tuple[str, ...]
    form: Form
    fill: float = 0.0
    unused: bool = False


SAME = Form(lambda parts: parts[0], lambda whole: [whole])
# Linear layers that keep their matrix as [in, out].
TRANSPOSED = Form(lambda parts: parts[0].t(), lambda whole: [whole.t()])

# Vectors that are rows of ours.
ROWS = Form(torch.stack, lambda whole: whole.unbind())


def stacked(count: int) -> Form:
    """`count` tensors of the same size below each other: the halves (up, gate) of a gated MLP; experts."""
    return Form(torch.cat, lambda whole: whole.chunk(count))


def stacked_transposed(count: int) -> Form:
    """The same for matrices [h, f] that we keep as [f, h]."""
    return Form(
        lambda parts: torch.cat([part.t() for part in parts]),
        lambda whole: [part.t() for part in whole.chunk(count)],
    )


def query_key_value(heads: int, kv_heads: int) -> Form:
    """Three matrices or biases q [n d, ...], k and v [kv d, ...], each with its heads in order.

    Ours: per head q|k|v; with fewer key/value heads than query heads, all q, all k, all v.
    """
    if heads == kv_heads:
        return Form(
            lambda parts: torch.stack([part.unflatten(0, (heads, -1)) for part in parts], 1).flatten(0, 2),
            lambda whole: [part.flatten(0, 1) for part in whole.unflatten(0, (heads, 3, -1)).unbind(1)],
        )

    def split(whole: torch.Tensor) -> Sequence[torch.Tensor]:
        size = whole.shape[0] // (heads + 2 * kv_heads)
        return whole.split([heads * size, kv_heads * size, kv_heads * size])

    return Form(torch.cat, split)


def linear(native: str, *theirs: str, form: Form = SAME, bias_form: Form | None = None) -> Iterator[Rule]:
    """Weight and, if the model has it, bias of linear layers; `bias_form` where it differs from that of the weights."""
    yield Rule(f"{native}.weight", tuple(f"{name}.weight" for name in theirs), form)
    yield Rule(f"{native}.bias", tuple(f"{name}.bias" for name in theirs), bias_form or form)


def norm(native: str, theirs: str) -> Iterator[Rule]:
    """A LayerNorm (weight, bias) or RMSNorm (our scale is their weight)."""
    yield Rule(f"{native}.weight", (f"{theirs}.weight",), SAME)
    yield Rule(f"{native}.bias", (f"{theirs}.bias",), SAME)
    yield Rule(f"{native}.scale", (f"{theirs}.weight",), SAME)


def without_counterpart(native: str, fill: float, unused: bool = False) -> Rule:
    """A parameter that only our model has, with the value that makes no difference."""
    return Rule(native, (), Form(lambda parts: parts[0], lambda whole: []), fill, unused)
