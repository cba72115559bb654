"""A run's state as the checkpoint tree that GPT-NeoX on DeepSpeed writes."""

import random
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from tests.common.neox.training import Run, Tensors, decays

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCALE = 512.0
LEGACY = {"mlp.linear1": "mlp.dense_h_to_4h", "mlp.linear2": "mlp.dense_4h_to_h"}


@dataclass(frozen=True)
class Form:
    """How a tree is written.

    Attributes: pp: 0 for a plain model; zero: stage 0 or 1; legacy: old names, `total_iters`, saved rotary tables;
    elastic: DeepSpeed's `elastic_checkpoint`; fused: Adam counts its steps per group; rng: random states are kept.
    """

    precision: str = "fp32"
    zero: int = 0
    dp: int = 1
    tp: int = 1
    pp: int = 0
    legacy: bool = False
    elastic: bool = False
    fused: bool = False
    rng: bool = True

    def name(self, name: str) -> str:
        for new, old in LEGACY.items():
            name = name.replace(new, old) if self.legacy else name
        return name


def write_tree(folder: Path, run: Run, form: Form, iteration: int | None = None) -> Path:
    """Write the tree of `run` into folder/global_stepN and point `latest` at it."""
    iteration = run.steps if iteration is None else iteration
    directory = Path(folder, f"global_step{iteration}")
    (directory / "configs").mkdir(parents=True)
    (directory / "configs" / "run.yml").write_text('{"num-layers": 2}')
    stages = _stages(run, max(1, form.pp))
    for stage, names in enumerate(stages):
        for rank in range(form.tp):
            _write_model_rank(directory, run, form, iteration, names, rank, stage * form.tp + rank)
    if form.pp:
        for rank in range(form.tp):
            _write_layers(directory, run, form, rank)
    (Path(folder) / "latest").write_text(directory.name)
    if form.zero:
        (Path(folder) / "zero_to_fp32.py").write_text(
            "raise SystemExit('a recovery script, never run by anybody')\n"
        )
    return directory


def _stages(run: Run, count: int) -> list[list[str]]:
    """Names of the stages' parameters: the layers in equal shares."""
    layers = sorted({int(name.split(".")[0]) for name in run.weights})
    share = -(-len(layers) // count)
    return [
        [
            name
            for name in run.weights
            if int(name.split(".")[0]) in layers[stage * share : (stage + 1) * share]
        ]
        for stage in range(count)
    ]


def rank_part(
    run: Run, name: str, value: torch.Tensor, form: Form, rank: int, is_weight: bool
) -> torch.Tensor:
    """What tensor rank `rank` keeps of a parameter or of a state of it."""
    if form.tp == 1:
        return value
    path = name.split(".", 1)[1]
    if path in ("attention.dense.weight", "mlp.linear2.weight"):
        return value.chunk(form.tp, 1)[rank].contiguous()
    if path.startswith(("attention.query_key_value", "mlp.linear1", "word_embeddings", "final_linear")):
        return value.chunk(form.tp, 0)[rank].contiguous()
    if path in ("attention.dense.bias", "mlp.linear2.bias") and run.parallel_residual and is_weight:
        # Each rank adds a bias of its own; only their sum is seen.
        return value / 4 if rank else value - value / 4 * (form.tp - 1)
    # Replicas that have drifted apart a little.
    return value + 1e-3 * rank if is_weight else value


def _state_dict(run: Run, form: Form, names: list[str], rank: int) -> Tensors:
    state = {}
    for name in names:
        value = rank_part(run, name, run.weights[name], form, rank, is_weight=True)
        state[form.name(name)] = value.to(DTYPES[form.precision])
        if form.legacy and name.endswith("attention.query_key_value.bias"):
            state[name.replace("query_key_value.bias", "rotary_emb.inv_freq")] = torch.ones(
                2, dtype=torch.float16
            )
    return state


def _write_layers(directory: Path, run: Run, form: Form, rank: int) -> None:
    layers: dict[int, dict] = {}
    for name, value in _state_dict(run, form, list(run.weights), rank).items():
        index, path = name.split(".", 1)
        layers.setdefault(int(index), {})[path] = value
    for index, state in layers.items():
        torch.save(OrderedDict(state), directory / f"layer_{index:02d}-model_{rank:02d}-model_states.pt")


def _write_model_rank(directory, run: Run, form: Form, iteration, names, rank: int, number: int) -> None:
    groups = [[name for name in names if decays(name)], [name for name in names if not decays(name)]]
    prefix = "" if form.pp else "sequential."
    module = {f"{prefix}{name}": value for name, value in _state_dict(run, form, names, rank).items()}
    shapes = [
        OrderedDict(
            (prefix + form.name(name), rank_part(run, name, run.weights[name], form, rank, True).shape)
            for name in group
        )
        for group in groups
    ]
    state = {
        "module": None if form.pp else OrderedDict(module),
        "buffer_names": [name for name in module if name.endswith("inv_freq")],
        "optimizer": None if form.zero else _whole_optimizer(run, form, groups, rank),
        "param_shapes": shapes if form.zero else None,
        "frozen_param_shapes": None,
        "lr_scheduler": _schedule(run),
        "skipped_steps": iteration - run.steps,
        "global_steps": iteration,
        "global_samples": iteration * 8,
        "dp_world_size": form.dp,
        "mp_world_size": form.tp,
        "ds_config": {"train_batch_size": 8},
        "ds_version": "0.19.8",
        "total_iters" if form.legacy else "iteration": iteration,
        "args": _args(run, form),
    }
    torch.save(
        state | (random_states(number) if form.rng else {}),
        directory / f"mp_rank_{number:02d}_model_states.pt",
    )
    for partition in range(form.dp if form.zero else 0):
        inner = _partition(run, form, groups, rank, partition)
        content = {"optimizer_state_dict": inner, "ds_config": {}, "ds_version": "0.19.8"}
        start = "bf16_" if form.precision == "bf16" else ""
        torch.save(
            content, directory / f"{start}zero_pp_rank_{partition}_mp_rank_{number:02d}_optim_states.pt"
        )


def _args(run: Run, form: Form) -> dict:
    return {
        "num_layers": run.sizes.layers,
        "hidden_size": run.sizes.hidden,
        "num_attention_heads": run.sizes.heads,
        "max_position_embeddings": run.sizes.length,
        "make_vocab_size_divisible_by": 128,
        "padded_vocab_size": run.sizes.vocabulary,
        "tokenizer_type": "CharLevelTokenizer",
        "model_parallel_size": form.tp,
    }


def _schedule(run: Run) -> dict:
    return {
        "start_lr": run.lr,
        "warmup_iter": run.warmup * run.length,
        "num_iters": run.steps,
        "decay_style": "cosine",
        "end_iter": run.length,
        "min_lr": run.min_lr,
    }


def random_states(number: int) -> dict:
    """Random states of a model rank that runs on a CPU."""
    generator = torch.Generator().manual_seed(number)
    return {
        "random_rng_state": random.Random(number).getstate(),
        "np_rng_state": numpy.random.RandomState(number).get_state(),
        "torch_rng_state": generator.get_state(),
        "cuda_rng_state": generator.get_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.Generator().manual_seed(number + 100).get_state()},
    }


def _param_groups(run: Run, form: Form, members: list[list[int]]) -> list[dict]:
    shared = {"lr": 0.123, "betas": run.betas, "eps": run.eps, "bias_correction": True}
    if form.fused:
        shared["step"] = run.steps
    named = (("weight_decay_params", run.weight_decay), ("no_weight_decay_params", 0.0))
    return [
        {**shared, "name": name, "weight_decay": decay, "params": params}
        for (name, decay), params in zip(named, members, strict=True)
    ]


def _states_of(run: Run, form: Form, m: torch.Tensor, v: torch.Tensor) -> dict:
    step = {} if form.fused else {"step": torch.tensor(float(run.steps))}
    return {**step, "exp_avg": m, "exp_avg_sq": v}


def _flat(
    run: Run, form: Form, group: list[str], rank: int, values: Tensors, is_weight: bool
) -> torch.Tensor:
    """The parameters of a group end to end, filled up to a multiple of two elements per data-parallel rank."""
    parts = [rank_part(run, name, values[name], form, rank, is_weight).flatten() for name in group]
    flat = torch.cat(parts)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % (2 * form.dp)))


def _whole_optimizer(run: Run, form: Form, groups: list[list[str]], rank: int) -> dict:
    """Without ZeRO: torch's form in fp32, flat groups with their copies of the weights in fp16."""
    if form.precision == "fp32":
        names = [name for group in groups for name in group]
        numbers = {name: number for number, name in enumerate(names)}
        state = {
            numbers[name]: _states_of(
                run,
                form,
                rank_part(run, name, run.exp_avg[name], form, rank, False),
                rank_part(run, name, run.exp_avg_sq[name], form, rank, False),
            )
            for name in names
        }
        members = [[numbers[name] for name in group] for group in groups]
        return {"state": state, "param_groups": _param_groups(run, form, members)}
    masters, m, v = (
        [_flat(run, form, group, rank, values, values is run.weights) for group in groups]
        for values in (run.weights, run.exp_avg, run.exp_avg_sq)
    )
    state = {number: _states_of(run, form, *pair) for number, pair in enumerate(zip(m, v, strict=True))}
    return {
        "dynamic_loss_scale": True,
        "cur_scale": SCALE,
        "cur_iter": run.steps,
        "last_overflow_iter": -1,
        "scale_factor": 2.0,
        "scale_window": 1000,
        "optimizer_state_dict": {"state": state, "param_groups": _param_groups(run, form, [[0], [1]])},
        "fp32_groups_flat": masters,
        "clip_grad": run.clipping,
    }


def _partition(run: Run, form: Form, groups: list[list[str]], rank: int, partition: int) -> dict:
    """ZeRO-1: one data-parallel rank's part of the flat groups; the copies of the weights are kept without padding."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    masters, states, paddings = [], [], []
    for group in groups:
        flats = [
            _flat(run, form, group, rank, values, values is run.weights).chunk(form.dp)[partition].clone()
            for values in (run.weights, run.exp_avg, run.exp_avg_sq)
        ]
        size = sum(rank_part(run, name, run.weights[name], form, rank, True).numel() for name in group)
        padding = -size % (2 * form.dp) if partition == form.dp - 1 else 0
        masters.append(flats[0][: flats[0].numel() - padding].clone())
        trimmed = [flat[: flat.numel() - padding].clone() if form.elastic else flat for flat in flats[1:]]
        states.append(_states_of(run, form, *trimmed))
        paddings.append(padding)
    inner = {
        "loss_scaler": DynamicLossScaler(SCALE, 2.0, 1000, 1.0, 1, False),
        "dynamic_loss_scale": True,
        "overflow": False,
        "clip_grad": run.clipping,
        "base_optimizer_state": states,
        "base_optimizer_state_step": run.steps,
        "single_partition_of_fp32_groups": masters,
        "zero_stage": ZeroStageEnum.optimizer_states,
        "group_paddings": paddings,
        "partition_count": [form.dp, form.dp],
        "ds_version": "0.19.8",
        "param_slice_mappings": _slice_mappings(groups),
    }
    if not form.elastic:
        base = {"state": dict(enumerate(states)), "param_groups": _param_groups(run, form, [[0], [1]])}
        inner |= {"base_optimizer_state": base}
        del inner["base_optimizer_state_step"]
    return inner


def _slice_mappings(groups: list[list[str]]) -> list[OrderedDict]:
    from deepspeed.utils.tensor_fragment import fragment_address

    return [OrderedDict({group[0]: fragment_address(numel=1, start=0)}) for group in groups]
