"""Rules for the servers of weights and of samples: one for all ranks, or one each."""

from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments.steps import Steps

RULES = Steps()
rule = RULES.reading

HIGHEST_PORT = 65535


@rule(
    "serve_model_weights",
    "weight_server_port",
    "dataset_impl",
    "online_dataserver_ips",
    "online_dataserver_ports",
    "global_num_gpus",
)
def _servers(args: Any) -> Iterator[str]:
    if args.serve_model_weights:
        yield from _ports("weight_server_port", args.weight_server_port)
        ranks = int(args.global_num_gpus or 1)
        yield from _enough("weight_server_port", args.weight_server_port, ranks, "processes")
        if isinstance(args.weight_server_port, int) and args.weight_server_port + ranks - 1 > HIGHEST_PORT:
            yield f"weight_server_port={args.weight_server_port} leaves no port for the last of {ranks} processes"
    if args.dataset_impl == "online":
        yield from _ports("online_dataserver_ports", args.online_dataserver_ports)
        for key in ("online_dataserver_ips", "online_dataserver_ports"):
            yield from _enough(key, getattr(args, key), args.data_parallel_size, "data-parallel ranks")


def _ports(key: str, value: int | list[int]) -> Iterator[str]:
    ports = value if isinstance(value, list) else [value]
    if not all(1 <= port <= HIGHEST_PORT for port in ports):
        yield f"{key}={value} must lie between 1 and {HIGHEST_PORT}"


def _enough(key: str, value: Any, count: int, of_what: str) -> Iterator[str]:
    if isinstance(value, list) and len(value) < count:
        yield f"{key} has {len(value)} entries and the job {count} {of_what}: list one for each"
