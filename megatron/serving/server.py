"""Serves the weights of this rank over TCP. docs/serving.md describes the messages."""

from collections.abc import Callable
from typing import Any

import torch

from megatron import mpu
from megatron.common.errors import ConfigError
from megatron.common.listener import Listener, refuse
from megatron.common.messages import WEIGHT_TOKEN, Channel, MessageError, check_exposure, same_token
from megatron.common.optional import require
from megatron.serving.snapshots import Snapshot, Unavailable, WeightKeeper

PROTOCOL = 1
LOOPBACK = "127.0.0.1"
HELLO_SECONDS = 10.0
IDLE_SECONDS = 600.0
LONGEST_WAIT_SECONDS = 3600.0


def place_of_rank(partitioned: bool = False) -> dict[str, Any]:
    """What a client is told of this rank, [rank, size] of each axis. partitioned: replicas hold different pieces."""
    place: dict[str, Any] = {"rank": 0, "world_size": 1, "partitioned": partitioned}
    if torch.distributed.is_initialized():
        place["rank"], place["world_size"] = torch.distributed.get_rank(), torch.distributed.get_world_size()
    grid = {"pipe": [0, 1], "data": [0, 1], "tensor": [0, 1]}
    if mpu.model_parallel_is_initialized():
        grid["pipe"] = [mpu.get_pipe_parallel_rank(), mpu.get_pipe_parallel_world_size()]
        grid["data"] = [mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()]
        grid["tensor"] = [mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()]
    return {**place, **grid}


def port_of_rank(ports: int | list[int], rank: int) -> int:
    """Ports are listed, or count up from that of rank 0."""
    return ports[rank] if isinstance(ports, list) else ports + rank


class WeightServer:
    """Listens from its construction to `close`.

    Args: keeper: of the weights; place: what a client is told of this rank; token: what clients have to send.
    Raises: ConfigError for an address that others can reach without a token; LaunchError for a port that is not free.
    """

    def __init__(
        self,
        keeper: WeightKeeper,
        place: dict[str, Any],
        port: int,
        address: str = LOOPBACK,
        token: str | None = None,
    ):
        if problem := check_exposure(address, token, "weight_server_address", WEIGHT_TOKEN):
            raise ConfigError(problem)
        # Missing packages are to be known of before training begins.
        self._tensors_to_bytes = require("safetensors.torch", "hf", "serve_model_weights").save
        self._keeper, self._place, self._token = keeper, place, token
        self._listener = Listener("weight server", "weight_server_port", address, port, self._converse)
        self.address, self.port = self._listener.address, self._listener.port

    def __enter__(self) -> "WeightServer":
        return self

    def __exit__(self, *problem) -> None:
        self.close()

    def no_more_steps(self) -> None:
        """The weights stay as they are from now on."""
        self._keeper.end()

    def close(self) -> None:
        """Stop listening, and end all connections."""
        self._keeper.end()
        self._listener.close()

    def _converse(self, channel: Channel) -> None:
        hello = _request(channel.receive(seconds=HELLO_SECONDS))
        if hello is None:
            return
        if hello.get("op") != "hello":
            raise MessageError("a first message other than hello")
        if not same_token(hello.get("token"), self._token):
            refuse(channel, f"the token is not that of the server's {WEIGHT_TOKEN}")
            raise MessageError("a wrong token")
        channel.send({"ok": True, "protocol": PROTOCOL, "iteration": self._keeper.iteration, **self._place})
        visit = _Visit(self._keeper, self._tensors_to_bytes)
        while (request := _request(channel.receive(seconds=IDLE_SECONDS))) is not None:
            channel.send(*visit.answer(request))


class _Visit:
    """One client's requests, all of them to the same copy of the weights until it asks for another."""

    def __init__(self, keeper: WeightKeeper, tensors_to_bytes: Callable[[dict], bytes]):
        self._keeper, self._tensors_to_bytes = keeper, tensors_to_bytes
        self._snapshot: Snapshot | None = None

    def answer(self, request: dict) -> tuple[dict, bytes]:
        """Raises: MessageError for a request that is none."""
        answers = {"hello": self._hello, "list": self._list, "get": self._get}
        operation = request.get("op")
        if not isinstance(operation, str) or operation not in answers:
            raise MessageError("a request of an unknown kind")
        try:
            return answers[operation](request)
        except Unavailable as error:
            return {"ok": False, "error": str(error), "iteration": self._keeper.iteration}, b""

    def _hello(self, request: dict) -> tuple[dict, bytes]:
        return {"ok": True, "iteration": self._keeper.iteration}, b""

    def _list(self, request: dict) -> tuple[dict, bytes]:
        version, seconds = request.get("version"), request.get("wait", 60.0)
        if not (version is None or _is_number(version, int)) or not _is_number(seconds, (int, float)):
            raise MessageError("a list request with a wrong version or wait")
        self._snapshot = None  # Two copies for one client would be one too many.
        found = self._keeper.after(version, min(max(0.0, seconds), LONGEST_WAIT_SECONDS))
        self._snapshot = found
        return {"ok": True, "version": found.iteration, "tensors": found.table}, b""

    def _get(self, request: dict) -> tuple[dict, bytes]:
        names = request.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise MessageError("a get request without a list of names")
        if self._snapshot is None:
            self._list({})
        found = self._snapshot
        assert found is not None
        if unknown := [name for name in names if name not in found.tensors]:
            raise Unavailable(f"this rank has no parameter {unknown[0]!r}")
        body = self._tensors_to_bytes({name: found.tensors[name] for name in names})
        return {"ok": True, "version": found.iteration, "bytes": len(body)}, body


def _request(message: Any) -> dict | None:
    if message is not None and not isinstance(message, dict):
        raise MessageError("a message that is no object")
    return message


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
