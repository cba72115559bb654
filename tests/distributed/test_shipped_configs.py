"""Every shipped model config trains: what makes its architecture, at a width that fits a laptop."""

import json
from dataclasses import fields
from functools import cache

import pytest
import torch

from megatron.neox_arguments.block_sizes import has_heads
from megatron.neox_arguments.fields.model_blocks import NeoXArgsModel
from megatron.neox_arguments.fields.other import NeoXArgsMoE
from tests.common.distributed import run_distributed
from tests.common.shipped import load, models, with_training
from tests.distributed.layouts import VOCABULARY, batches, train_in_layout

SMALL = {
    "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 32, "max_position_embeddings": 32,
    "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "train_batch_size": None, "train_iters": 20,
    "lr_decay_iters": 20, "warmup_iters": None, "warmup_tokens": None, "pipe_parallel_size": 1,
    "model_parallel_size": 1, "global_num_gpus": 1, "hostfile": None, "num_gpus": None, "launcher": "pdsh",
    "deepspeed_slurm": False, "tokenizer_type": "CharLevelTokenizer", "vocab_file": None, "merge_file": None,
    "data_path": "none", "train_data_paths": None, "valid_data_paths": None, "test_data_paths": None, "save": None,
    "load": None, "checkpoint_factor": None, "extra_save_iters": None, "finetune": False, "log_dir": None,
    "tensorboard_dir": None,
}  # fmt: skip
# Keys that tell one architecture from another: not numbers alone, nor switches of kernels that change nothing on a CPU.
NUMBERS = {"init_method_std", "rotary_emb_base", "make_vocab_size_divisible_by", "rms_norm_epsilon"}
ARCHITECTURE = {
    field.name
    for group in (NeoXArgsModel, NeoXArgsMoE)
    for field in fields(group)
    if field.name not in NUMBERS and (field.name == "bias_gelu_fusion" or not field.name.endswith("fusion"))
}
# What these need besides runs on a GPU; without it they are the architectures of 1-3B.yml and 125M.yml.
PACKAGES = {"1-3B-transformer-engine.yml": "transformer_engine", "bnb_125M.yml": "bitsandbytes"}
STEPS, PARTS = 6, 3


def reduced(names: list[str]) -> dict:
    """Values that take a config to a small size, and leave it everything that is its own but size."""
    args = load(names, data_path="none", train_data_paths=None, valid_data_paths=None, test_data_paths=None)
    values = dict(SMALL)
    kinds = args.attention_config
    values["attention_config"] = [kinds[0], kinds[1] if len(kinds) > 1 else kinds[0]]
    values["max_position_embeddings"] += args.opt_pos_emb_offset
    if args.num_kv_heads is not None and has_heads(args):
        values["num_kv_heads"] = (
            min(args.num_kv_heads, 2) if args.num_kv_heads < args.num_attention_heads else 4
        )
    scaled = {
        "head_dim": 16,
        "ffn_hidden_size": 48,
        "embedding_size": 16,
        "sliding_window_width": 8,
        "rope_scaling": {**(args.rope_scaling or {}), "original_max_position_embeddings": 16},
        "sparsity_config": {**(args.sparsity_config or {}), "window": 8},
    }
    values |= {key: value for key, value in scaled.items() if getattr(args, key) is not None}
    if "num_local_blocks" in (args.sparsity_config or {}):
        values["sparsity_config"] = {"block": 4, "num_local_blocks": 2}
    return values


@cache
def architectures() -> list[list[str]]:
    """Files of configs, one for each architecture that they come down to at the small size."""
    found: dict[str, list[str]] = {}
    for names in [*map(with_training, models()), ["125M.yml", "sparse.yml"]]:
        if names[0] not in PACKAGES:
            args = load(names, **reduced(names))
            own = {key: getattr(args, key) for key in sorted(ARCHITECTURE)}
            found.setdefault(json.dumps([own, args.optimizer_type], default=str), names)
    return list(found.values())


def losses_of(cases: list[list[str]]) -> dict[str, list[float]]:
    """Losses of a few steps of every config, one after another in one process."""
    from megatron.common.timers import Timers
    from megatron.initialize import initialize_megatron
    from megatron.training import setup_model_and_optimizer, train_step

    found = {}
    for names in cases:
        neox_args = load(names, **reduced(names))
        neox_args.configure_distributed_args()
        neox_args.build_tokenizer()
        neox_args.padded_vocab_size = VOCABULARY
        initialize_megatron(neox_args)
        engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
        engine.train()
        iterator, timers = batches(neox_args), Timers()
        steps = [train_step(neox_args, timers, iterator, engine, optimizer, scheduler) for _ in range(STEPS)]
        found[" ".join(names)] = [float(losses["lm_loss"]) for losses, _ in steps]
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_every_architecture_trains_at_reduced_width(part):
    cases = architectures()[part::PARTS]
    assert len(cases) > 8
    results = run_distributed(losses_of, 1, cases, timeout=400)[0]
    assert len(results) == len(cases)
    for name, losses in results.items():
        assert max(losses) < 6.0, (name, losses)
        assert losses[-1] < losses[0] + 0.1, (name, losses)


def test_opt_divides_the_sum_of_gradients_in_two_steps_and_trains_the_same():
    opt = load(["opt/125M.yml"], data_path="none")
    recipe = {
        key: getattr(opt, key) for key in ("zero_optimization", "pos_emb", "activation", "no_weight_tying")
    }
    once = train_in_layout({**recipe, "processes": 1}, steps=2)
    twice = train_in_layout({**recipe, "gradient_predivide_factor": 1.5, "processes": 2}, steps=2)
    assert twice["losses"] == pytest.approx(once["losses"], rel=1e-5)
    for name, gradient in once["gradients"].items():
        torch.testing.assert_close(twice["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
