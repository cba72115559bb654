"""Samples of a live server, which draws them from the model in training, say.

docs/serving.md describes the messages.
"""

import os
import time
from collections import deque
from typing import Any

import numpy as np

from megatron import mpu
from megatron.common.console import warn_of_rank
from megatron.common.errors import ConfigError, DataError
from megatron.common.messages import SAMPLE_TOKEN, MessageError, connect
from megatron.data.packing import IGNORED_LABEL
from megatron.registry import register

PADDING_TOKEN = 0
REPLY_BYTES = 1 << 28
BASELINE_PROMPTS = 100
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
LARGEST_TOKEN = 2**31 - 1


@register("dataset", "online")
class OnlineDataset:
    """Asks the server of this data-parallel rank for samples whenever it has none left.

    Which samples come is for the server to say, so the index has no meaning and a resumed run sees others. To be read
    in one process, in the order of training.

    Args: num_samples: length; leave_one_out: the baseline of a reward is the mean of the prompt's other rewards (0 if
    there are none), instead of the mean of the last 100 prompts' means (0 before the first); data_split: what the
    server is asked for; dataserver_ips, dataserver_ports: one for all, or a list by data-parallel rank; timeout:
    seconds in which samples have to come.

    Item: text int64 [seq_length + 1], prefix and completion, padded with 0; label, the same with -100 for what is not
    of the completion; reward float32 [1], the reward less its baseline; raw_reward float32 [1].
    """

    live = True

    def __init__(
        self,
        num_samples: int,
        seq_length: int,
        leave_one_out: bool = False,
        data_split: str = "train",
        dataserver_ips: str | list[str] = "localhost",
        dataserver_ports: int | list[int] = 10000,
        timeout: float = 300.0,
    ):
        self.num_samples, self.seq_length, self.leave_one_out = num_samples, seq_length, leave_one_out
        self.data_split, self.timeout = data_split, timeout
        self.rank = mpu.get_data_parallel_rank()
        self.host = _of_rank("online_dataserver_ips", dataserver_ips, self.rank)
        self.port = _of_rank("online_dataserver_ports", dataserver_ports, self.rank)
        self._waiting: deque[dict[str, np.ndarray]] = deque()
        self._means: deque[float] = deque(maxlen=BASELINE_PROMPTS)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Raises: DataError if no samples come in time."""
        if not self._waiting:
            self._fetch()
        return self._waiting.popleft()

    def _fetch(self) -> None:
        deadline, pause, told = time.monotonic() + self.timeout, FIRST_PAUSE, ""
        while not self._waiting:
            try:
                self._take(self._ask(deadline - time.monotonic()))
            except (OSError, MessageError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                if time.monotonic() + pause > deadline:
                    raise DataError(
                        f"no {self.data_split} samples from {self.host}:{self.port} for {self.timeout:g} s ({reason}): "
                        "start the sample server, or correct online_dataserver_ips and online_dataserver_ports"
                    ) from None
                if reason != told:
                    warn_of_rank(f"sample server {self.host}:{self.port}: {reason}; asking again")
                    told = reason
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _ask(self, seconds: float) -> Any:
        channel = connect(self.host, self.port, max(0.1, seconds))
        try:
            request = {
                "split": self.data_split,
                "rank": self.rank,
                "world_size": mpu.get_data_parallel_world_size(),
            }
            if token := os.environ.get(SAMPLE_TOKEN):
                request["token"] = token
            channel.send(request)
            return channel.receive(REPLY_BYTES, max(0.1, seconds))
        finally:
            channel.close()

    def _take(self, reply: Any) -> None:
        """Add the samples of a reply. Raises: MessageError if it is of another shape or has none that fits."""
        if reply is None:
            raise MessageError("it closed the connection without a reply")
        if isinstance(reply, dict) and isinstance(reply.get("error"), str):
            raise MessageError(f"it refuses: {reply['error'][:200]}")
        if not isinstance(reply, list):
            raise MessageError("the reply is no list of samples")
        for group in reply:
            _check(group)
        too_long = 0
        for group in reply:
            advantages = self.advantages(group["rewards"])
            for completion, reward, advantage in zip(
                group["completions"], group["rewards"], advantages, strict=True
            ):
                # Such a sample has nothing to learn from.
                if len(group["prefix"]) > self.seq_length or not completion:
                    too_long += 1
                    continue
                self._waiting.append(self._sample(group["prefix"], completion, reward, advantage))
        if too_long:
            warn_of_rank(
                f"sample server {self.host}:{self.port}: {too_long} samples without a completion within seq_length"
                f"={self.seq_length} are left out"
            )
        if not self._waiting:
            raise MessageError("the reply has no usable sample")

    def advantages(self, rewards: list[float]) -> list[float]:
        """The rewards of one prompt's completions less their baselines; the moving mean takes note of them."""
        total, count = sum(rewards), len(rewards)
        if self.leave_one_out:
            return [reward - (total - reward) / max(1, count - 1) for reward in rewards]
        baseline = sum(self._means) / max(1, len(self._means))
        self._means.append(total / count)
        return [reward - baseline for reward in rewards]

    def _sample(self, prefix: list[int], completion: list[int], reward: float, advantage: float) -> dict:
        length = self.seq_length + 1
        tokens = np.array([*prefix, *completion][:length], dtype=np.int64)
        text = np.full(length, PADDING_TOKEN, dtype=np.int64)
        label = np.full(length, IGNORED_LABEL, dtype=np.int64)
        text[: len(tokens)] = tokens
        label[len(prefix) : len(tokens)] = tokens[len(prefix) :]
        return {
            "text": text,
            "label": label,
            "reward": np.array([advantage], dtype=np.float32),
            "raw_reward": np.array([reward], dtype=np.float32),
        }


def _of_rank(key: str, value: Any, rank: int) -> Any:
    if not isinstance(value, list):
        return value
    if rank >= len(value):
        raise ConfigError(f"{key} has {len(value)} entries and none for data-parallel rank {rank}")
    return value[rank]


def _check(group: Any) -> None:
    """Raises: MessageError for anything but a prompt's prefix, completions and rewards."""
    if not isinstance(group, dict) or not {"prefix", "completions", "rewards"} <= set(group):
        raise MessageError("a sample that is no object of prefix, completions and rewards")
    completions, rewards = group["completions"], group["rewards"]
    if not isinstance(completions, list) or not isinstance(rewards, list) or len(completions) != len(rewards):
        raise MessageError("a sample whose completions and rewards are not two lists of the same length")
    if not completions or not all(map(_is_reward, rewards)):
        raise MessageError("a sample without completions, or with a reward that is no number")
    if not all(map(_is_text, [group["prefix"], *completions])):
        raise MessageError("a sample whose prefix or completion is no list of token numbers")


def _is_reward(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _is_text(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(token) is int and 0 <= token <= LARGEST_TOKEN for token in value
    )
