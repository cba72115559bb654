"""What a GPU would refuse or wait for, found without one (see tests.common.fake_gpu)."""

import os

import pytest
import torch

from tests.common.fake_gpu import run_on_fake_gpu

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None, reason="needs a torch without CUDA; tests/gpu asks the real thing"
)

# Of choices that make tensors of their own; models of the last three show it in one layer.
MODEL_KINDS = ("block", "attention", "router", "positional embedding", "rope scaling")
OPTIONS = ("grouped heads", "sliding window", "isolated documents", "soft prompt")
STEPS = {
    "tensor and sequence parallel, experts": {
        "sequence_parallel": True, "moe_num_experts": 4, "moe_top_k": 2, "moe_aux_loss_coeff": 0.01,
        "checkpoint_activations": True, "partition_activations": True, "contiguous_checkpointing": True,
    },
    "offloaded states, reports": {
        "log_gradient_noise_scale": True, "log_grad_norm": True, "log_interval": 1,
        "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
    },
}  # fmt: skip


def rows_of_models() -> list:
    from tests.grid.rows import rows

    # That the branches may be parallel makes no difference here.
    return [
        row
        for row in rows()
        if row.name in OPTIONS or row.kind in MODEL_KINDS and "gpt_j_residual" not in row.name
    ]


def everything() -> dict[str, dict]:
    """models: row of the grid -> what its model met, "" for nothing; steps: name in STEPS -> waits and strays."""
    from tests.common.fake_gpu.gpu import FakeGPU

    gpu = FakeGPU(world_size=2)
    gpu.start()
    stand_in_for_kernels()
    return {
        "models": {str(row): met_by(gpu, row) for row in rows_of_models()},
        "steps": {name: take_steps(gpu, settings) for name, settings in STEPS.items()},
    }


def stand_in_for_kernels() -> None:
    """In place of what is compiled for a GPU: looks at what it is given, and gives as much as was asked for."""
    from megatron.model.attention import flex
    from megatron.model.rwkv import kernel

    def attend(query, key, value, score_mod, block_mask, scale, enable_gqa):
        place = [torch.zeros(1, dtype=torch.int32, device=query.device) for _ in range(4)]
        assert block_mask.mask_mod(*place).is_cuda and block_mask.kv_indices.is_cuda
        score = torch.zeros(1, device=query.device)
        assert score_mod is None or score_mod(score, *place).is_cuda
        return query + key.mean() + value.mean()

    def scan(q, k, v, w, state, rows=False, backwards=False):
        assert all(tensor.is_cuda and tensor.dtype == torch.float32 for tensor in (q, k, v, w, state))
        return torch.empty_like(q), torch.empty_like(state)

    flex._compiled = lambda: attend
    kernel.WKV6.run = staticmethod(scan)
    kernel.usable = lambda r: r.is_cuda


def met_by(gpu, row) -> str:
    gpu.waits.clear()
    try:
        return ", ".join(use_model(gpu, row))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def use_model(gpu, row) -> list[str]:
    """A training pass in bf16, then generation. Returns: where training waited."""
    from megatron.engine.setup import get_model
    from megatron.neox_arguments.features import refusals
    from megatron.registry import lookup

    args = arguments(row.config("single") | settings_for_kernels(row))
    with gpu:
        model = get_model(args).to(args.params_dtype)
        objective = lookup("objective", args.train_impl)(args)
        text = torch.zeros(2, args.seq_length + 1, dtype=torch.int64, device="cuda")
        inputs, targets = objective.collate({"text": text})
        objective.loss(model(inputs), targets).value.backward()
        assert {p.grad.device.type for p in model.parameters() if p.grad is not None} == {"cuda"}
        waits = list(gpu.waits)
        cached = not list(refusals(args, cached=True))
        model.eval().inference_mode(use_cache=cached)
        with torch.no_grad():
            for first, last in ((0, 6), (6, 7)) if cached else ((0, 7),):
                positions = torch.arange(first, last, device="cuda").expand(2, -1)
                assert model((text[:, first:last], positions)).is_cuda
    return waits


def settings_for_kernels(row) -> dict:
    """With which FlexAttention takes part: heads of 16 features, blocks of 16 positions."""
    if row.kind == "rope scaling":  # whose examples fit smaller heads
        return {"num_layers": 1}
    if row.kind in ("router", "positional embedding"):
        return {"hidden_size": 64, "num_layers": 1}
    layout = row.settings.get("sparsity_config", {})
    return {"hidden_size": 64, **({"sparsity_config": {**layout, "block": 16}} if "block" in layout else {})}


def take_steps(gpu, settings: dict) -> dict[str, list[str]]:
    """Two steps through DeepSpeed, as the first of two tensor-parallel processes."""
    from megatron.common.timers import Timers
    from megatron.initialize import initialize_megatron
    from megatron.training import setup_model_and_optimizer, train_step
    from tests.distributed.layouts import BASE, SEQUENCE

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    parallel = {"num_layers": 1, "model_parallel_size": 2, "global_num_gpus": 2}
    args = arguments({**BASE, **parallel, **settings})
    with gpu:
        initialize_megatron(args)
        engine, optimizer, scheduler, _ = setup_model_and_optimizer(args)
        engine.train()
        text = torch.zeros(args.train_micro_batch_size_per_gpu, SEQUENCE + 1, dtype=torch.int64)
        batches, timers = iter([{"text": text}] * 2), Timers()
        gpu.waits.clear()
        gpu.strays.clear()
        for _ in range(2):
            train_step(args, timers, batches, engine, optimizer, scheduler)
        return {"waits": list(gpu.waits), "strays": list(gpu.strays)}


def arguments(settings: dict):
    from megatron.neox_arguments import NeoXArgs

    args = NeoXArgs.from_dict({**settings, "precision": "bfloat16"})
    args.configure_distributed_args()
    args.build_tokenizer()
    return args


@pytest.fixture(scope="module")
def met(tmp_path_factory) -> dict[str, dict]:
    return run_on_fake_gpu(everything, tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("row", [str(row) for row in rows_of_models()])
def test_a_model_keeps_to_its_device_and_training_it_waits_for_nothing(row, met):
    assert met["models"][row] == ""


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_gives_nccl_only_what_is_on_the_gpu(name, met):
    assert met["steps"][name]["strays"] == []


def test_a_training_step_waits_for_the_norm_of_its_gradients_alone(met):
    waits = met["steps"]["tensor and sequence parallel, experts"]["waits"]
    assert len(waits) == 2 and all(wait.startswith("deepspeed/") for wait in waits)
