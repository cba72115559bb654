"""Samples of a live server become items of one length; what is no sample is refused, reported and asked for again."""

import socket
import threading

import numpy as np
import pytest

from megatron.common.errors import ConfigError, DataError
from megatron.data.online_dataset import OnlineDataset
from megatron.serving.samples import SampleServer
from tests.common.ports import quiet_ports

GROUP = {"prefix": [5, 6], "completions": [[7, 8], [9]], "rewards": [1.0, 0.0]}


def dataset(port: int, **settings) -> OnlineDataset:
    return OnlineDataset(
        **{"num_samples": 100, "seq_length": 5, "dataserver_ports": port, "timeout": 5.0, **settings}
    )


class RawServer:
    """Sends the given bytes, one of them for each connection, and closes."""

    def __init__(self, *replies: bytes):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, args=(replies,), daemon=True)
        self._thread.start()

    def _serve(self, replies) -> None:
        for reply in replies:
            connection, _ = self._socket.accept()
            with connection:
                self.requests.append(connection.recv(4096))
                connection.sendall(reply)

    def __enter__(self) -> "RawServer":
        return self

    def __exit__(self, *problem) -> None:
        self._socket.close()


def test_items_hold_prefix_and_completion_padded_or_cut_to_one_length():
    groups = [GROUP, {"prefix": [1], "completions": [list(range(10, 30))], "rewards": [2]}]
    with SampleServer(lambda split, rank: groups, port=0) as server:
        data = dataset(server.port)
        first, second, third = (data[0] for _ in range(3))
    assert first["text"].tolist() == [5, 6, 7, 8, 0, 0] and first["text"].dtype == np.int64
    assert first["label"].tolist() == [-100, -100, 7, 8, -100, -100] and first["label"].dtype == np.int64
    assert second["text"].tolist() == [5, 6, 9, 0, 0, 0]
    assert third["text"].tolist() == [1, 10, 11, 12, 13, 14] and third["label"].tolist()[0] == -100
    assert first["raw_reward"].tolist() == [1.0] and first["reward"].dtype == np.float32
    assert len(data) == 100


def test_the_baseline_is_the_mean_of_the_other_rewards_or_of_the_last_hundred_prompts():
    alone = dataset(1, leave_one_out=True)
    assert alone.advantages([1, 0, 2]) == [0, -1.5, 1.5]  # spec 8.17
    assert alone.advantages([0.5]) == [0.5], "one completion has no others, and no NaN"
    moving = dataset(1)
    assert moving.advantages([1.0, 3.0]) == [1.0, 3.0]
    assert moving.advantages([4.0, 4.0]) == [2.0, 2.0]
    assert moving.advantages([0.0]) == [-3.0]
    for _ in range(100):
        moving.advantages([7.0])
    assert moving.advantages([7.0]) == [0.0], "older prompts are forgotten"


def test_the_server_of_the_rank_is_asked_for_the_split_and_only_when_samples_are_needed():
    asked = []

    def answer(split, rank):
        asked.append((split, rank))
        return [GROUP]

    with SampleServer(answer, port=0) as server:
        data = dataset(server.port, data_split="valid", dataserver_ips=["127.0.0.1"])
        assert asked == []
        for expected in (1, 1, 2):
            assert data[0]["text"].shape == (6,)
            assert asked == [("valid", 0)] * expected
    with pytest.raises(
        ConfigError, match="online_dataserver_ports has 0 entries and none for data-parallel rank 0"
    ):
        dataset(server.port, dataserver_ports=[])


def test_a_plain_server_that_closes_after_its_reply_is_enough():
    with RawServer(b'[{"prefix": [], "completions": [[3]], "rewards": [0.5]}]') as server:
        assert dataset(server.port)[0]["text"].tolist() == [3, 0, 0, 0, 0, 0]
    assert server.requests == [b'{"split": "train", "rank": 0, "world_size": 1}\n']


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (b"", "it closed the connection without a reply"),
        (b"\x80\x04\x95(cos\nsystem\n", "a message that is no JSON"),
        (b'[{"prefix": [1], "completions": [[2]], "rewards"', "a message that is no JSON"),
        (b'{"samples": []}', "the reply is no list of samples"),
        (b"[]", "the reply has no usable sample"),
        (b"[3]", "a sample that is no object of prefix, completions and rewards"),
        (b'[{"prefix": [1], "completions": [[2]], "rewards": [1, 2]}]', "two lists of the same length"),
        (b'[{"prefix": [1], "completions": [], "rewards": []}]', "a sample without completions"),
        (b'[{"prefix": [1], "completions": [[2]], "rewards": [true]}]', "a reward that is no number"),
        (b'[{"prefix": [1], "completions": [[2]], "rewards": [NaN]}]', "a message that is no JSON"),
        (b'[{"prefix": [1.5], "completions": [[2]], "rewards": [1]}]', "no list of token numbers"),
        (b'[{"prefix": [1], "completions": [[-2]], "rewards": [1]}]', "no list of token numbers"),
        (b'[{"prefix": [1,1,1,1,1,1], "completions": [[2]], "rewards": [1]}]', "no usable sample"),
        (b'{"ok": false, "error": "busy"}', "it refuses: busy"),
    ],
)
def test_a_bad_reply_is_reported_in_a_line_and_samples_are_asked_for_again(reply, what, capfd, monkeypatch):
    monkeypatch.setattr("megatron.data.online_dataset.FIRST_PAUSE", 0.01)
    good = b'[{"prefix": [1], "completions": [[2]], "rewards": [1]}]\n'
    with RawServer(reply, good) as server:
        assert dataset(server.port)[0]["text"].tolist() == [1, 2, 0, 0, 0, 0]
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "left out" not in line]
    assert line.startswith(f"warning: rank 0: sample server localhost:{server.port}: ") and what in line
    assert line.endswith("; asking again")


def test_an_oversized_reply_is_not_read_to_its_end(monkeypatch, capfd):
    monkeypatch.setattr("megatron.data.online_dataset.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("megatron.data.online_dataset.REPLY_BYTES", 1000)
    with RawServer(b"1" * 5000, b'[{"prefix": [1], "completions": [[2]], "rewards": [1]}]') as server:
        assert dataset(server.port)[0]["text"][0] == 1
    assert "a message of more than 1,000 bytes; asking again" in capfd.readouterr().err


def test_a_server_that_starts_late_is_found(capfd):
    (port,) = quiet_ports(1)
    started = []
    timer = threading.Timer(0.4, lambda: started.append(SampleServer(lambda *request: [GROUP], port)))
    timer.start()
    assert dataset(port)[0]["text"][0] == 5
    started[0].close()
    assert capfd.readouterr().err.count("Connection refused; asking again") == 1


def test_where_nothing_serves_the_error_names_the_place_and_what_to_do(capfd):
    (port,) = quiet_ports(1)
    with pytest.raises(DataError) as caught:
        dataset(port, timeout=0.3)[0]
    assert str(caught.value) == (
        f"no train samples from localhost:{port} for 0.3 s (Connection refused): start the sample server, or correct "
        "online_dataserver_ips and online_dataserver_ports"
    )


def test_a_server_with_a_token_wants_it_and_may_then_be_reached_from_elsewhere(monkeypatch, capfd):
    with pytest.raises(ConfigError, match="--address='0.0.0.0' can be reached .* NEOX_SAMPLE_TOKEN"):
        SampleServer(lambda *request: [GROUP], 0, "0.0.0.0")
    with SampleServer(lambda *request: [GROUP], 0, "0.0.0.0", token="secret") as server:
        with pytest.raises(
            DataError, match="it refuses: the token is not that of the server's NEOX_SAMPLE_TOKEN"
        ):
            dataset(server.port, timeout=0.2)[0]
        monkeypatch.setenv("NEOX_SAMPLE_TOKEN", "secret")
        assert dataset(server.port)[0]["text"][0] == 5
