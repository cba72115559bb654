"""Serving a model's weights, under the name that GPT-NeoX has for it."""

import os

import torch

from megatron.common.messages import WEIGHT_TOKEN
from megatron.serving.server import LOOPBACK, WeightServer, place_of_rank, port_of_rank
from megatron.serving.snapshots import WeightKeeper


def start_server(
    model: torch.nn.Module, ports: int | list[int] = 6000, address: str = LOOPBACK
) -> WeightServer:
    """Serve this rank's weights until `close` is called: as they are at each request, for nothing tells of steps.

    Args: ports: one per rank, or the port of rank 0. Raises: see WeightServer.
    """
    named = getattr(model, "logical_named_parameters", model.named_parameters)
    place, token = place_of_rank(), os.environ.get(WEIGHT_TOKEN)
    return WeightServer(WeightKeeper(named), place, port_of_rank(ports, place["rank"]), address, token)
