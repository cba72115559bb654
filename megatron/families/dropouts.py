"""Dropout of families that have other rates for the embeddings and for the residual stream than we can have."""

from collections.abc import Mapping
from typing import Any

from megatron.common.console import warn


def read_dropout(config: Mapping[str, Any], residual: str, embedding: str | None = None) -> dict[str, float]:
    """Our hidden_dropout, which is that of the residual stream and of the embeddings.

    Args: residual, embedding: their keys of the two; None for embeddings of which they drop nothing.
    """
    rate = float(config[residual])
    theirs = float(config[embedding]) if embedding else 0.0
    if theirs != rate:
        warn(
            f"hidden_dropout={rate}, from {residual}, drops of the embeddings as well, of which "
            f"{config['model_type']} drops {theirs}; it is about training only, and you can change it in the config"
        )
    return {"hidden_dropout": rate}
