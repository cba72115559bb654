"""Keys that act only together with another one: set alone they are not refused, but the user is told."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from megatron.neox_arguments.block_sizes import has_mlp

# Key -> the key without which it does nothing.
NEEDED = {
    "checkpoint_in_cpu": "checkpoint_activations",
    "checkpoint_num_layers": "checkpoint_activations",
    "contiguous_checkpointing": "checkpoint_activations",
    "partition_activations": "checkpoint_activations",
    "profile_backward": "checkpoint_activations",
    "synchronize_each_layer": "checkpoint_activations",
    "finetune": "load",
    "iteration": "load",
    "no_load_optim": "load",
    "no_load_rng": "load",
    "gradient_noise_scale_n_batches": "log_gradient_noise_scale",
    "gradient_noise_scale_cpu_offload": "log_gradient_noise_scale",
    "memory_profiling_path": "memory_profiling",
    "qk_layernorm_per_head": "use_qk_layernorm",
    "param_sharing_style": "num_unique_layers",
    "weighted_sampler_alpha": "weight_by_num_documents",
    "weight_server_address": "serve_model_weights",
    "weight_server_port": "serve_model_weights",
    "wandb_group": "use_wandb",
    "wandb_host": "use_wandb",
    "wandb_init_all_ranks": "use_wandb",
    "wandb_project": "use_wandb",
    "wandb_run_name": "use_wandb",
    "wandb_team": "use_wandb",
    "comet_experiment_name": "use_comet",
    "comet_others": "use_comet",
    "comet_project": "use_comet",
    "comet_tags": "use_comet",
    "comet_workspace": "use_comet",
}


def _any_layer(kind: str) -> Callable[[Any], bool]:
    return lambda args: kind in args.attention_config


# (Keys, what they need, whether a config has it).
_PARTS: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (
        ("wsd_decay_fraction", "wsd_decay_style"),
        "lr_decay_style: wsd",
        lambda args: args.lr_decay_style == "wsd",
    ),
    (
        ("profile_step_start", "profile_step_stop"),
        "profile or memory_profiling",
        lambda args: args.profile or args.memory_profiling,
    ),
    (
        (
            "online_dataserver_ips",
            "online_dataserver_ports",
            "online_dataserver_timeout",
            "reinforce_leave_one_out",
        ),
        "dataset_impl: online",
        lambda args: args.dataset_impl == "online",
    ),
    (
        ("data_path", "train_data_paths", "valid_data_paths", "test_data_paths", "pack_impl", "num_workers"),
        "a dataset_impl that reads files",
        lambda args: args.dataset_impl != "online",
    ),
    (("rpe_num_buckets", "rpe_max_distance"), "pos_emb: rpe", lambda args: args.pos_emb == "rpe"),
    (
        ("rotary_pct", "rotary_emb_base", "rotary_save_freqs_buffer"),
        "pos_emb: rotary",
        lambda args: args.pos_emb == "rotary",
    ),
    (
        ("mup_rp_embedding_mult",),
        "pos_emb: learned or sinusoidal",
        lambda args: args.pos_emb in ("learned", "sinusoidal"),
    ),
    (
        ("moe_expert_interval", "moe_router_type", "moe_lbl_in_fp32"),
        "moe_num_experts above 1",
        lambda args: args.moe_num_experts > 1,
    ),
    (("comment", "account"), "launcher: slurm", lambda args: args.launcher == "slurm"),
    (
        (
            "num_kv_heads",
            "head_dim",
            "sliding_window_width",
            "use_qk_layernorm",
            "attention_softmax_scale",
        ),
        "attention layers in attention_config",
        has_mlp,
    ),
    (
        ("attention_dropout",),
        "attention, amlp or rwkv layers in attention_config",
        lambda args: not {"gmlp", "mamba"}.issuperset(args.attention_config),
    ),
    (("gmlp_attn_dim",), "amlp layers in attention_config", _any_layer("amlp")),
    (("fused_kernels_build_path",), "rwkv layers in attention_config", _any_layer("rwkv")),
    (
        (
            "mamba_selective_scan_fusion",
            "mamba_causal_conv_fusion",
            "mamba_inner_func_fusion",
            "mamba_selective_fp32_params",
            "mamba_use_bias_in_conv",
            "mamba_use_bias_in_linears",
        ),
        "mamba layers in attention_config",
        _any_layer("mamba"),
    ),
)


def idle_keys(args: Any) -> Iterator[str]:
    """One line for each key that was set and does nothing."""
    defaults = {declared.name: declared.default for declared in fields(args)}
    for key, needed in NEEDED.items():
        if getattr(args, key) != defaults[key] and not getattr(args, needed):
            yield f"{key}={getattr(args, key)!r} does nothing without {needed}"
    for keys, needed, found in _PARTS:
        for key in keys:
            if getattr(args, key) != defaults[key] and not found(args):
                yield f"{key}={getattr(args, key)!r} does nothing without {needed}"
    if args.pos_emb in ("rotary", "alibi", "rpe") and not has_mlp(args):
        yield f"pos_emb: {args.pos_emb} does nothing without attention layers in attention_config"
    if args.sequence_parallel and args.model_parallel_size == 1:
        yield "sequence_parallel does nothing with model_parallel_size: 1"
    if args.optimizer_type == "sm3" and args.weight_decay != defaults["weight_decay"]:
        yield "weight_decay does nothing with optimizer.type sm3; set optimizer.params.weight_decay"
    if args.gradient_predivide_factor != 1.0 and args.prescale_gradients:
        yield "gradient_predivide_factor does nothing with prescale_gradients: true, which divides before the sum"
