"""Fetches weights from the servers of a training job.

version, weights = fetch_model(addresses("node1", 6000, ranks=2))
"""

import contextlib
import os
from collections.abc import Iterable

import torch

from megatron.common.errors import NeoXError
from megatron.common.messages import WEIGHT_TOKEN, Channel, MessageError, connect
from megatron.common.optional import require
from megatron.mpu import ParameterSpec, merge_slices
from megatron.serving.server import PROTOCOL

TABLE_BYTES = 1 << 28
BATCH_BYTES = 1 << 28
AHEAD = (0, 1, 4, 16, 64, 0)


class ServingError(NeoXError):
    """A server cannot be reached, or does not give what it was asked for."""


class WeightClient:
    """A connection to the server of one rank.

    Args: token: default is that of the environment; seconds: longest wait for an answer.
    Attributes: place: of its rank in the job: rank, world_size; pipe, data and tensor ([rank, size] each).
    Raises: ServingError, as all methods do.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 6000, token: str | None = None, seconds: float = 60.0
    ):
        self._where, self._seconds = f"{host}:{port}", seconds
        try:
            self._channel: Channel = connect(host, port)
        except OSError as error:
            raise ServingError(f"no weight server at {self._where}: {error.strerror or error}") from None
        token = token or os.environ.get(WEIGHT_TOKEN)
        self.place, _ = self._ask({"op": "hello", **({"token": token} if token else {})})
        if self.place.get("protocol") != PROTOCOL:
            raise ServingError(f"{self._where} speaks another protocol than {PROTOCOL}")
        self.version: int | None = None
        self.table: dict[str, dict] = {}

    def __enter__(self) -> "WeightClient":
        return self

    def __exit__(self, *problem) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def iteration(self) -> int:
        """The last iteration that the rank has finished."""
        return self._ask({"op": "hello"})[0]["iteration"]

    def choose(self, version: int | None = None) -> bool:
        """Have the weights after an iteration, by default the last finished one, kept for this connection.

        `version` and `table` ({parameter: what the rank has of it}) tell of them. Returns: False if the iteration has
        passed or will not come.
        """
        self.demand(version)
        return self.settled()

    def demand(self, version: int | None) -> None:
        """The first half of `choose`, which waits for nothing."""
        self._send({"op": "list", "version": version, "wait": self._seconds})

    def settled(self) -> bool:
        """The second half."""
        answer, _ = self._answer(may_fail=True)
        if answer["ok"]:
            self.version, self.table = answer["version"], answer["tensors"]
        return answer["ok"]

    def get(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """This rank's parts, all of the same iteration."""
        answer, body = self._ask({"op": "get", "names": list(names)})
        self.version = answer["version"]
        return require("safetensors.torch", "hf", "the weight client").load(body)

    def get_all(self) -> dict[str, torch.Tensor]:
        """All parts of what was chosen, in requests of a bearable size."""
        parts: dict[str, torch.Tensor] = {}
        batch: list[str] = []
        size = 0
        for name, row in self.table.items():
            if batch and size + row["bytes"] > BATCH_BYTES:
                parts |= self.get(batch)
                batch, size = [], 0
            batch.append(name)
            size += row["bytes"]
        return parts | self.get(batch)

    def _ask(self, request: dict) -> tuple[dict, bytes]:
        self._send(request)
        return self._answer()

    def _send(self, request: dict) -> None:
        # A server that refuses says so before it closes: that is to be read.
        with contextlib.suppress(OSError):
            self._channel.send(request)

    def _answer(self, may_fail: bool = False) -> tuple[dict, bytes]:
        try:
            answer = self._channel.receive(TABLE_BYTES, self._seconds + 10)
            body = self._channel.receive_body(answer.get("bytes", 0)) if isinstance(answer, dict) else b""
        except (OSError, MessageError) as error:
            raise ServingError(f"the weight server at {self._where} does not answer: {error}") from None
        if not isinstance(answer, dict) or not (answer.get("ok") or may_fail):
            why = answer.get("error") if isinstance(answer, dict) else "the connection was closed"
            raise ServingError(f"the weight server at {self._where} refuses: {why}")
        return answer, body


def addresses(host: str = "127.0.0.1", port: int = 6000, ranks: int = 1) -> list[tuple[str, int]]:
    """(host, port) of the ranks of a job on one machine."""
    return [(host, port + rank) for rank in range(ranks)]


def fetch_model(
    places: Iterable[tuple[str, int]], token: str | None = None, seconds: float = 60.0
) -> tuple[int, dict[str, torch.Tensor]]:
    """The whole model, put together of all tensor-parallel and pipeline ranks while they train on.

    Args: places: (host, port) of every rank; those of further replicas are not asked for what the first one has.
    Returns: (iteration, {logical name: tensor}), all of the same iteration.
    Raises: ServingError.
    """
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(WeightClient(host, port, token, seconds)) for host, port in places]
        clients = [c for c in clients if c.place["partitioned"] or c.place["data"][0] == 0]
        version = _agree(clients)
        return version, _assembled(clients)


def _agree(clients: list[WeightClient]) -> int:
    """Make all ranks keep the same iteration: one that is about to come, or the last one where training rests."""
    for ahead in AHEAD:
        wanted = max(client.iteration() for client in clients) + ahead
        for client in clients:
            client.demand(wanted)
        if all([client.settled() for client in clients]):
            return wanted
    raise ServingError("the ranks had no weights of the same iteration: are they all of one job?")


def _assembled(clients: list[WeightClient]) -> dict[str, torch.Tensor]:
    """Merge what the ranks have: ZeRO-3's pieces first, then tensor-parallel slices."""
    tables: dict[str, dict] = {}
    found: dict[str, dict[int, dict[int, torch.Tensor]]] = {}  # name -> tensor rank -> piece -> part
    for client in clients:
        tables |= client.table
        for name, part in client.get_all().items():
            slices = found.setdefault(name, {}).setdefault(client.place["tensor"][0], {})
            slices[client.table[name]["piece"]] = part
    size = clients[0].place["tensor"][1]
    return {name: _merged(name, tables[name], parts, size) for name, parts in found.items()}


def _merged(name: str, row: dict, parts: dict[int, dict[int, torch.Tensor]], size: int) -> torch.Tensor:
    slices = []
    for rank in range(size):
        pieces = parts.get(rank, {})
        if len(pieces) != row["pieces"]:
            raise ServingError(f"{name}: parts are missing; name the servers of all ranks")
        if row["pieces"] == 1:
            slices.append(pieces[0])
            continue
        flat = torch.cat([pieces[number].flatten() for number in range(row["pieces"])])
        shape = torch.Size(row["shape"])
        slices.append(flat[: shape.numel()].view(shape))
    spec = ParameterSpec(
        tuple(row["logical_shape"]), torch.Tensor.zero_, row["shard_dim"], tuple(row["blocks"])
    )
    return merge_slices(slices, spec)
