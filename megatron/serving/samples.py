"""A server of samples for `dataset_impl: online`."""

from collections.abc import Callable
from typing import Any

from megatron.common.errors import ConfigError
from megatron.common.listener import Listener, refuse
from megatron.common.messages import SAMPLE_TOKEN, Channel, MessageError, check_exposure, same_token

REQUEST_SECONDS = 10.0


class SampleServer:
    """Answers each request for samples by a function, from its construction to `close`; several at once.

    Args: answer: (split, data-parallel rank) -> list of {"prefix": [int], "completions": [[int]], "rewards": [float]},
    one for each prompt; port: 0 for any free one; token: what trainers have to send.
    Attributes: address, port: where it listens.
    Raises: ConfigError for an address that others can reach without a token; LaunchError for a port that is not free.
    """

    def __init__(
        self,
        answer: Callable[[str, int], list[dict]],
        port: int = 10000,
        address: str = "127.0.0.1",
        token: str | None = None,
    ):
        if problem := check_exposure(address, token, "--address", SAMPLE_TOKEN):
            raise ConfigError(problem)
        self._answer, self._token = answer, token
        self._listener = Listener("sample server", "--port", address, port, self._converse)
        self.address, self.port = self._listener.address, self._listener.port

    def __enter__(self) -> "SampleServer":
        return self

    def __exit__(self, *problem) -> None:
        self.close()

    def close(self) -> None:
        self._listener.close()

    def _converse(self, channel: Channel) -> None:
        request: Any = channel.receive(seconds=REQUEST_SECONDS)
        if request is None:
            return
        if not isinstance(request, dict) or not isinstance(request.get("split"), str):
            raise MessageError("a request without a split")
        if type(rank := request.get("rank", 0)) is not int:
            raise MessageError("a request with a wrong rank")
        if not same_token(request.get("token"), self._token):
            refuse(channel, f"the token is not that of the server's {SAMPLE_TOKEN}")
            raise MessageError("a wrong token")
        channel.send(self._answer(request["split"], rank))
