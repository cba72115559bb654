"""Weights are served whole, of the iteration that was asked for, and faulty clients harm nobody."""

import json
import os
import socket
import threading

import pytest
import torch

from megatron.common.errors import ConfigError, LaunchError
from megatron.model.weight_server import start_server
from megatron.serving.client import ServingError, WeightClient, addresses, fetch_model
from megatron.serving.server import WeightServer, place_of_rank
from megatron.serving.snapshots import Unavailable, WeightKeeper


class Training:
    """Two parameters that both hold the number of the iteration, changed one after the other."""

    def __init__(self):
        self.model = torch.nn.Linear(3, 4)
        self.iteration = 0
        self.keeper = WeightKeeper(self.model.named_parameters, lambda: self.iteration)
        self._fill(0)

    def _fill(self, value: float) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(value)

    def step(self) -> None:
        with self.keeper.changing():
            self._fill(self.iteration + 1)
            self.iteration += 1


@pytest.fixture
def training():
    return Training()


@pytest.fixture
def server(training):
    with WeightServer(training.keeper, place_of_rank(), 0) as server:
        yield server


def raw(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def read_all(connection) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def test_a_client_gets_names_shards_and_bits_of_what_it_asked_for(server, training):
    with WeightClient(port=server.port) as client:
        assert client.place["rank"] == 0 and client.place["tensor"] == [0, 1]
        assert client.choose() and client.version == 0
        assert client.table["weight"] | {"bytes": 0} == {
            "dtype": "float32", "shape": [4, 3], "logical_shape": [4, 3], "shard_dim": None, "blocks": [],
            "pieces": 1, "piece": 0, "bytes": 0,
        }  # fmt: skip
        training.step()
        # What was chosen stays, whatever training does.
        assert torch.equal(client.get(["weight"])["weight"], torch.zeros(4, 3))
        assert not client.choose(0)
        assert client.choose(1) and client.get(["bias"])["bias"].tolist() == [1.0] * 4
        with pytest.raises(ServingError, match="no parameter 'wrong'"):
            client.get(["wrong"])
        assert client.iteration() == 1


def test_16_bit_weights_arrive_as_they_are(training):
    training.model.bfloat16()
    with WeightServer(training.keeper, place_of_rank(), 0) as server:
        version, weights = fetch_model([("127.0.0.1", server.port)])
    assert version == 0 and weights["weight"].dtype == torch.bfloat16 and weights["weight"].shape == (4, 3)


def test_no_client_ever_sees_half_a_step_while_training_goes_on(server, training):
    stop, versions = threading.Event(), []

    def train():
        while not stop.is_set():
            training.step()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        with WeightClient(port=server.port) as client:
            for _ in range(20):
                assert client.choose()
                values = torch.cat([part.flatten() for part in client.get_all().values()])
                assert values.tolist() == [float(client.version)] * len(values)
                versions.append(client.version)
            ahead = client.iteration() + 2000
            assert client.choose(ahead) and client.version == ahead, "one to come is met exactly"
    finally:
        stop.set()
        thread.join()
    assert versions == sorted(versions) and versions[-1] > 0


def test_all_clients_share_the_copy_of_an_iteration_and_it_goes_with_the_last(training):
    first, second = training.keeper.after(None, 0), training.keeper.after(0, 0)
    assert first is second
    training.step()
    assert training.keeper.after(None, 0) is not first
    del first, second
    assert 0 not in training.keeper._copies


def test_who_waits_for_an_iteration_that_never_comes_is_told(training):
    waiting = threading.Timer(0.2, training.keeper.end)
    waiting.start()
    with pytest.raises(Unavailable, match="iteration 5: training has ended; now 0"):
        training.keeper.after(5, 30)
    waiting.join()


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a message that is no JSON"),
        (b'{"op": "hello"', "a message that is no JSON"),
        (b'["hello"]\n', "a message that is no object"),
        (b'{"op": "list"}\n', "a first message other than hello"),
        (b"[" * 200_000 + b"\n", "a message that is no JSON"),
        (b"x" * (1 << 21), "a message of more than 1,048,576 bytes"),
        (b'{"op": "hello"}\n{"op": "get", "names": "weight"}\n', "a get request without a list of names"),
        (b'{"op": "hello"}\n{"op": ["get"]}\n', "a request of an unknown kind"),
        (b'{"op": "hello"}\n{"op": "list", "version": NaN}\n', "a message that is no JSON"),
        (
            b'{"op": "hello"}\n{"op": "list", "version": true}\n',
            "a list request with a wrong version or wait",
        ),
    ],
)
def test_a_bad_message_ends_its_connection_with_one_line_and_nothing_else(server, message, what, capfd):
    with WeightClient(port=server.port) as bystander, raw(server) as connection:
        try:
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            answers = read_all(connection)
        except OSError:  # It closed before everything was sent.
            answers = b""
        assert b"tensors" not in answers
        assert bystander.choose() and set(bystander.get_all()) == {"weight", "bias"}
    line = f"warning: rank 0: weight server: {what} from 127.0.0.1; the connection is closed\n"
    assert capfd.readouterr().err == line


def test_connections_are_bounded_and_free_again_after_use(server):
    clients = [WeightClient(port=server.port) for _ in range(8)]
    with pytest.raises(ServingError, match="all 8 connections are in use"):
        WeightClient(port=server.port)
    for client in clients:
        client.close()
    for _ in range(100):
        try:
            WeightClient(port=server.port).close()
            return
        except ServingError:
            threading.Event().wait(0.05)
    raise AssertionError("no connection became free")


def test_other_interfaces_are_refused_without_a_token(training):
    with pytest.raises(
        ConfigError, match="weight_server_address='0.0.0.0' can be reached .*NEOX_WEIGHT_TOKEN"
    ):
        WeightServer(training.keeper, place_of_rank(), 0, "0.0.0.0")
    with pytest.raises(ConfigError, match="is no address of this machine"):
        WeightServer(training.keeper, place_of_rank(), 0, "no.such.host.invalid")


def test_with_a_token_only_who_has_it_is_served(training, capfd, monkeypatch):
    with WeightServer(training.keeper, place_of_rank(), 0, "0.0.0.0", "secret") as server:
        for wrong in (None, "Secret"):
            with pytest.raises(ServingError, match="refuses: the token is not that of the server"):
                WeightClient(port=server.port, token=wrong)
        for odd in (["secret"], "\ud800"):  # the second is half a character
            with raw(server) as connection:
                connection.sendall(json.dumps({"op": "hello", "token": odd}).encode() + b"\n")
                assert b'"ok": false' in read_all(connection)
        monkeypatch.setenv("NEOX_WEIGHT_TOKEN", "secret")
        assert fetch_model([("127.0.0.1", server.port)])[0] == 0
    told = capfd.readouterr().err
    assert told.count("a wrong token from 127.0.0.1") == told.count("\n") == 4


def test_a_port_in_use_is_one_line(server, training):
    with pytest.raises(
        LaunchError, match=f"weight_server_port: 127.0.0.1:{server.port} cannot be listened at"
    ):
        WeightServer(training.keeper, place_of_rank(), server.port)
    with pytest.raises(LaunchError, match="weight_server_port: 70000 is no port"):
        WeightServer(training.keeper, place_of_rank(), 70000)


def test_without_a_server_the_client_says_so_in_one_line(server):
    server.close()
    with pytest.raises(ServingError, match=f"no weight server at 127.0.0.1:{server.port}: "):
        fetch_model(addresses(port=server.port))


def test_any_model_is_served_under_the_name_that_users_know(training):
    server = start_server(training.model, ports=[0])
    try:
        version, weights = fetch_model([(server.address, server.port)])
    finally:
        server.close()
    assert version == 0 and torch.equal(weights["weight"], training.model.weight)
    assert os.environ.get("NEOX_WEIGHT_TOKEN") is None
