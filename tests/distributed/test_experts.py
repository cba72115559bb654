"""Experts train in every engine on the loss with the auxiliary losses added, spelled out in one process."""

import functools

import pytest
import torch

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, GLOBAL_BATCH, VOCABULARY, samples, train_in_layout

BALANCE, Z_LOSS = 0.5, 0.05
EXPERTS = {
    "num_layers": 2,
    "ffn_hidden_size": 32,
    "moe_num_experts": 4,
    "moe_top_k": 2,
    "moe_router_type": "topk",
    "moe_aux_loss_coeff": BALANCE,
    "moe_z_loss_coeff": Z_LOSS,
}
TENSOR, PIPE, HALVES = (
    {"model_parallel_size": 2},
    {"pipe_parallel_size": 2},
    {"train_micro_batch_size_per_gpu": 2},
)
LAYOUTS = {
    "one micro-batch": {},
    "two micro-batches": HALVES,
    "two replicas": {"processes": 2},
    "tensor parallel": {"processes": 2, **TENSOR},
    "sequence parallel, two micro-batches": {"processes": 2, **TENSOR, "sequence_parallel": True, **HALVES},
    "pipeline, two micro-batches": {"processes": 2, **PIPE, **HALVES},
    "recomputed": {"checkpoint_activations": True},
    "fp16 pipeline, two micro-batches": {
        "processes": 2, **PIPE, **HALVES, "precision": "fp16", "fp16": {"enabled": True, "initial_scale_power": 10},
    },
    "bfloat16, two replicas": {"processes": 2, "precision": "bfloat16"},
}  # fmt: skip


@functools.cache
def explicit_gradients(micro_batches: int) -> dict[str, torch.Tensor]:
    """Gradients of the mean over micro-batches of cross entropy + coefficients x auxiliary losses, without engines."""
    from megatron.model import build_sequential
    from megatron.model.moe import ParallelDroplessMoE
    from megatron.neox_arguments import NeoXArgs

    without = {"moe_aux_loss_coeff": 0.0, "moe_z_loss_coeff": 0.0, "global_num_gpus": 1}
    neox_args = NeoXArgs.from_dict({**BASE, **EXPERTS, **without})
    neox_args.padded_vocab_size = VOCABULARY
    model = build_sequential(neox_args)
    routings = []
    for module in model.modules():
        if isinstance(module, ParallelDroplessMoE):
            module.router.register_forward_hook(lambda _module, _inputs, routing: routings.append(routing))
    for text in samples(0, GLOBAL_BATCH).chunk(micro_batches):
        routings.clear()
        tokens, labels = text[:, :-1], text[:, 1:]
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        loss = torch.nn.functional.cross_entropy(model((tokens, positions)).flatten(0, 1), labels.flatten())
        for routing in routings:
            share = torch.nn.functional.one_hot(routing.experts, 4).float().mean((0, 1))
            probability = routing.logits.softmax(-1).mean(0)
            loss = loss + BALANCE * 4 * (share * probability).sum()
            loss = loss + Z_LOSS * routing.logits.logsumexp(-1).square().mean()
        (loss / micro_batches).backward()
    return {
        name: parameter.grad
        for name, parameter in model.logical_named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_the_explicit_sum_of_losses(layout):
    settings = LAYOUTS[layout]
    expected = explicit_gradients(2 if HALVES.items() <= settings.items() else 1)
    own = train_in_layout({**EXPERTS, **settings}, steps=1)["gradients"]
    half = "precision" in settings
    # A 16-bit engine may show its gradients multiplied by the loss scale: the output layer's, which no auxiliary loss
    # reaches, says by how much.
    unit = next(name for name in expected if "final_linear" in name)
    scale = (own[unit].norm() / expected[unit].norm()).item() if half else 1.0
    routers = [name for name in expected if "router" in name]
    assert len(routers) == 2
    for name, gradient in expected.items():
        error = (own[name] / scale - gradient).norm() / gradient.norm()
        assert error < (0.05 if half else 1e-5), f"gradient of {name} differs by {error:.2e}"


def metrics_of_two_steps(settings: dict, world_size: int) -> dict[str, float]:
    from megatron.common.timers import Timers
    from megatron.initialize import initialize_megatron
    from megatron.logging.experts import balance_metrics
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer, train_step
    from tests.distributed.layouts import batches

    neox_args = NeoXArgs.from_dict({**BASE, **EXPERTS, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
    engine.train()
    iterator = batches(neox_args)
    for _ in range(2):
        train_step(neox_args, Timers(), iterator, engine, optimizer, scheduler)
    return balance_metrics(neox_args, engine)


def test_the_logged_balance_is_that_of_all_layers_in_every_layout():
    single = run_distributed(metrics_of_two_steps, 1, {}, 1)[0]
    assert set(single) == {"moe balance loss", "moe z loss", "moe max load"}
    assert 1.0 <= single["moe balance loss"] < 4.0 and 1.0 <= single["moe max load"] <= 4.0
    for layout in (PIPE, TENSOR):
        ranks = run_distributed(metrics_of_two_steps, 2, layout, 2)
        for rank in ranks:
            assert rank == pytest.approx(single, rel=1e-4)
