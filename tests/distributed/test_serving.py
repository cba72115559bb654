"""Live samples and served weights are the same in every layout.

The sample server of these tests fetches the weights whenever it is asked: training rests meanwhile, so that the
iteration is known, and the weights of two layouts can be compared.
"""

import pytest
import torch

from megatron.serving.client import fetch_model
from megatron.serving.samples import SampleServer
from tests.common.distributed import run_distributed
from tests.common.ports import quiet_ports
from tests.distributed.layouts import BASE, GLOBAL_BATCH, VOCABULARY, samples

STEPS = 3
PREFIX = 8


def online_losses(settings: dict, world_size: int) -> list[dict]:
    """Train on what the sample server sends, and serve the weights; the losses of the steps and one validation."""
    from megatron.common.timers import Timers
    from megatron.data.data_utils import build_train_valid_test_data_loaders, shift_and_wrap_data_loaders
    from megatron.engine.serving import served_weights
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import evaluate, forward_step, setup_model_and_optimizer, train_step

    changes = {"data_path": None, "num_layers": 2, "train_iters": STEPS, "dataset_impl": "online"}
    neox_args = NeoXArgs.from_dict({**BASE, **changes, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    loaders = build_train_valid_test_data_loaders(neox_args)
    train_data, valid_data, _ = shift_and_wrap_data_loaders(neox_args, loaders)
    engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
    engine.train()
    found = []
    with served_weights(neox_args, engine):
        for _ in range(STEPS):
            metrics, _ = train_step(neox_args, Timers(), train_data, engine, optimizer, scheduler)
            found.append({name: float(value) for name, value in metrics.items()})
        found.append(evaluate(neox_args, forward_step, valid_data, engine))
    return found


class Watcher:
    """Answers with the same global batches whatever the number of replicas, and notes the weights before each."""

    def __init__(self, replicas: int, places: list[tuple[str, int]]):
        self._share, self._places = GLOBAL_BATCH // replicas, places
        self._calls: dict[tuple[str, int], int] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def answer(self, split: str, rank: int) -> list[dict]:
        call = self._calls[split, rank] = self._calls.get((split, rank), -1) + 1
        if rank == 0 and split == "train":
            iteration, weights = fetch_model(self._places)
            assert iteration == call
            self.weights[iteration] = weights
        first = call * GLOBAL_BATCH + rank * self._share + (1000 if split == "valid" else 0)
        rows = samples(first, self._share).tolist()
        return [
            {"prefix": row[:PREFIX], "completions": [row[PREFIX:]], "rewards": [number % 5]}
            for number, row in enumerate(rows, first)
        ]


def run(settings: dict, world_size: int, replicas: int = 1) -> tuple[list[dict], dict]:
    """(what `online_losses` gives, {iteration: weights})"""
    ports = quiet_ports(world_size)
    watcher = Watcher(replicas, [("127.0.0.1", port) for port in ports])
    with SampleServer(watcher.answer, port=0) as server:
        settings = {
            "serve_model_weights": True,
            # Where a gradient is nothing but rounding, as of a key's bias, Adam must not make it large.
            "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "eps": 1e-4}},
            "weight_server_port": ports,
            "online_dataserver_ports": [server.port] * replicas,
            "online_dataserver_timeout": 60.0,
            **settings,
        }
        ranks = run_distributed(online_losses, world_size, settings, world_size, timeout=60)
    assert all(rank == ranks[0] for rank in ranks)
    return ranks[0], watcher.weights


@pytest.fixture(scope="module")
def alone():
    return run({}, 1)


@pytest.mark.parametrize(
    ("settings", "world_size", "replicas"),
    [
        ({"model_parallel_size": 2, "pipe_parallel_size": 2, "gradient_accumulation_steps": 2}, 4, 1),
        ({"zero_optimization": {"stage": 3}}, 2, 2),
    ],
    ids=["tp2 pp2", "dp2 zero 3"],
)
def test_losses_and_served_weights_are_those_of_one_process(alone, settings, world_size, replicas):
    losses, weights = run(settings, world_size, replicas)
    # A pipeline's evaluation has no metrics but the loss; replicas have baselines of their own.
    step_names = ("lm_loss", "reward") if replicas > 1 else ("lm_loss", "reward", "advantage")
    for ours, theirs in zip(losses, alone[0], strict=True):
        for name in ("lm_loss",) if "lm_loss_ppl" in theirs else step_names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    assert sorted(weights) == list(range(STEPS)) and set(weights[0]) == set(alone[1][0])
    for iteration, found in weights.items():
        for name, value in found.items():
            torch.testing.assert_close(value, alone[1][iteration][name], rtol=1e-4, atol=1e-5, msg=name)
    moved = weights[0]["2.mlp.linear1.weight"] != weights[STEPS - 1]["2.mlp.linear1.weight"]
    assert moved.any()


def test_mean_rewards_and_advantages_are_logged(alone):
    rewards = [number % 5 for number in range(STEPS * GLOBAL_BATCH)]
    advantages = [r - (sum(rewards[:n]) / n if n else 0) for n, r in enumerate(rewards)]
    for name, values in (("reward", rewards), ("advantage", advantages)):
        means = [
            sum(values[n : n + GLOBAL_BATCH]) / GLOBAL_BATCH for n in range(0, len(values), GLOBAL_BATCH)
        ]
        assert [step[name] for step in alone[0][:STEPS]] == pytest.approx(means, rel=1e-5)
