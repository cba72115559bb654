"""The weight server of a training run."""

import contextlib
import os
from collections.abc import Iterator

import torch

from megatron.common.console import print_rank_0
from megatron.common.messages import WEIGHT_TOKEN
from megatron.engine.parts import around_step
from megatron.serving.server import WeightServer, place_of_rank, port_of_rank
from megatron.serving.snapshots import WeightKeeper


@contextlib.contextmanager
def served_weights(neox_args, engine) -> Iterator[WeightServer | None]:
    """With serve_model_weights serve this rank's weights within the block; else there is no server.

    Raises: see WeightServer.
    """
    if not neox_args.serve_model_weights:
        yield None
        return
    keeper = WeightKeeper(engine.module.logical_named_parameters, lambda: engine.global_steps)
    around_step(engine, keeper.changing)
    place = place_of_rank(partitioned=engine.zero_optimization_stage() == 3)
    port = port_of_rank(neox_args.weight_server_port, place["rank"])
    token = os.environ.get(WEIGHT_TOKEN)
    with WeightServer(keeper, place, port, neox_args.weight_server_address, token) as server:
        # Whoever hears of one rank's first step may ask all the others.
        torch.distributed.barrier()
        print_rank_0(f"the weights of rank 0 are served at {server.address}:{server.port}")
        yield server
