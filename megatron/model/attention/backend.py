"""What computes softmax(q k^T) v, and which back-end an attention layer gets."""

from dataclasses import dataclass
from typing import Protocol

import torch

from megatron.common.errors import ConfigError
from megatron.registry import capabilities, lookup


@dataclass(frozen=True)
class Capabilities:
    """What a back-end supports: grouped keys and values, a limited window of keys, a linear score bias."""

    gqa: bool = False
    sliding_window: bool = False
    alibi: bool = False


class Backend(Protocol):
    """Causal attention. The queries are the last s of the t positions that keys and values cover."""

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

        scale multiplies the scores; dropout is the probability of dropping a softmax weight. positions, int64 [b, t],
        count from 0 at the start of every document: a query sees its own document only; None isolates nothing.
        """


def make_backend(neox_args, kind: str) -> Backend:
    """The back-end for an attention layer of this kind.

    Raises: ConfigError naming the config keys that the back-end cannot serve.
    """
    name = lookup("attention", kind)(neox_args)
    able = capabilities("attention back-end", name)
    wanted = {
        "gqa": ("num_kv_heads", neox_args.num_kv_heads not in (None, neox_args.num_attention_heads)),
        "sliding_window": ("sliding_window_width", neox_args.sliding_window_width is not None),
        "alibi": ("pos_emb: alibi", neox_args.pos_emb == "alibi"),
    }
    missing = [key for ability, (key, asked) in wanted.items() if asked and not getattr(able, ability)]
    if missing:
        raise ConfigError(
            f"attention type {kind!r} is computed by {name!r}, which lacks {', '.join(missing)}"
        )
    return lookup("attention back-end", name)()
