"""Training of one small model in any layout, on synthetic samples that are a function of their number."""

import torch

from tests.common.distributed import run_distributed

SEQUENCE, VOCABULARY, GLOBAL_BATCH = 32, 128, 4

BASE = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": SEQUENCE,
    "max_position_embeddings": SEQUENCE,
    "pos_emb": "rotary",
    "rotary_pct": 0.5,
    "no_weight_tying": True,
    "gpt_j_residual": True,
    "init_method": "small_init",
    "output_layer_init_method": "wang_init",
    "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-8}},
    "weight_decay": 0.1,
    "gradient_clipping": 1.0,
    "train_batch_size": GLOBAL_BATCH,
    "train_iters": 100,
    "lr_decay_iters": 100,
    "lr_decay_style": "cosine",
    "warmup": 0.05,
    "tokenizer_type": "CharLevelTokenizer",
    "data_path": "none",
    "log_interval": 1000,
    "eval_iters": 1,
}


def samples(first: int, count: int) -> torch.Tensor:
    """Samples first..first+count-1, int64 [count, s+1]: a fixed successor rule with noise, something to learn."""
    rows = []
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(1000 + number)
        noise = torch.rand(SEQUENCE + 1, generator=generator) < 0.2
        row = torch.randint(VOCABULARY, (SEQUENCE + 1,), generator=generator)
        for position in range(1, SEQUENCE + 1):
            if not noise[position]:
                row[position] = (row[position - 1] * 5 + 7) % VOCABULARY
        rows.append(row)
    return torch.stack(rows)


def batches(neox_args):
    """This rank's micro-batches: the global batch is the same whatever the layout."""
    from megatron import mpu

    micro, replicas = neox_args.train_micro_batch_size_per_gpu, mpu.get_data_parallel_world_size()
    position = mpu.get_data_parallel_rank() * micro
    while True:
        yield {"text": samples(position, micro)}
        position += micro * replicas


def train_steps(settings: dict, steps: int, world_size: int, with_gradients: bool = True) -> dict:
    """Train on this rank: losses of all steps, and {logical name: (gradient slice, spec)} of the first step."""
    from megatron import mpu
    from megatron.common.timers import Timers
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer, train_step

    neox_args = NeoXArgs.from_dict({**BASE, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
    gradients = {}
    if with_gradients:
        capture_first_gradients(engine, gradients)
    iterator, timers, losses = batches(neox_args), Timers(), []
    engine.train()
    for _ in range(steps):
        metrics, _ = train_step(neox_args, timers, iterator, engine, optimizer, scheduler)
        losses.append(float(metrics["lm_loss"]))
    return {
        "losses": losses,
        "gradients": gradients,
        "tensor_rank": mpu.get_model_parallel_rank(),
        "data_rank": mpu.get_data_parallel_rank(),
    }


def capture_first_gradients(engine, gradients: dict) -> None:
    """Record every parameter's averaged gradient just before the first optimizer step."""
    from deepspeed.utils import safe_get_full_grad

    take_step = engine._take_model_step

    def capture_then_step(*args, **kwargs):
        if not gradients:
            for name, parameter in engine.module.logical_named_parameters():
                hooked = hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")
                gradient = safe_get_full_grad(parameter) if hooked else parameter.grad
                if gradient is None:  # a part of the checkpoint format that this model leaves unused
                    gradient = torch.zeros_like(parameter)
                spec = parameter.spec
                gradients[name] = (
                    gradient.detach().float().cpu().clone(),
                    spec.shard_dim,
                    spec.blocks,
                    spec.logical_shape,
                )
        return take_step(*args, **kwargs)

    engine._take_model_step = capture_then_step


def train_in_layout(settings: dict, steps: int = 20, with_gradients: bool = True) -> dict:
    """Train with real processes. Returns losses and the merged logical gradients of the first step."""
    world_size = settings.pop("processes", 1)
    ranks = run_distributed(train_steps, world_size, settings, steps, world_size, with_gradients, timeout=240)
    for rank in ranks[1:]:
        assert rank["losses"] == ranks[0]["losses"], "ranks report different losses"
    return {"losses": ranks[0]["losses"], "gradients": merge_gradients(ranks)}


def merge_gradients(ranks: list[dict]) -> dict[str, torch.Tensor]:
    """Logical gradients from all ranks' slices; replicas must agree."""
    from megatron.mpu import ParameterSpec, merge_slices

    slices: dict[str, dict[int, torch.Tensor]] = {}
    specs = {}
    for rank in ranks:
        for name, (gradient, shard_dim, blocks, logical_shape) in rank["gradients"].items():
            specs[name] = ParameterSpec(logical_shape, None, shard_dim, blocks)
            known = slices.setdefault(name, {}).setdefault(rank["tensor_rank"], gradient)
            assert torch.equal(known, gradient), f"replicas of {name} have different gradients"
    merged = {}
    for name, by_rank in slices.items():
        ordered = [by_rank[rank] for rank in sorted(by_rank)]
        if specs[name].shard_dim is None:
            for other in ordered[1:]:
                torch.testing.assert_close(other, ordered[0], rtol=1e-6, atol=1e-9)
        merged[name] = merge_slices(ordered, specs[name])
    return merged
