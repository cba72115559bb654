"""Keys that act only together with another one: set alone they are not refused, but the user is told."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

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
    "weighted_sampler_alpha": "weight_by_num_documents",
}


def idle_keys(args: Any) -> Iterator[str]:
    """One line for each key that was set and does nothing."""
    defaults = {declared.name: declared.default for declared in fields(args)}
    for key, needed in NEEDED.items():
        if getattr(args, key) != defaults[key] and not getattr(args, needed):
            yield f"{key}={getattr(args, key)!r} does nothing without {needed}"
    if args.fused_kernels_build_path is not None and "rwkv" not in args.attention_config:
        yield "fused_kernels_build_path does nothing without rwkv layers in attention_config"
    if args.sequence_parallel and args.model_parallel_size == 1:
        yield "sequence_parallel does nothing with model_parallel_size: 1"
    if args.optimizer_type == "sm3" and args.weight_decay != defaults["weight_decay"]:
        yield "weight_decay does nothing with optimizer.type sm3; set optimizer.params.weight_decay"
    if args.gradient_predivide_factor != 1.0 and args.prescale_gradients:
        yield "gradient_predivide_factor does nothing with prescale_gradients: true, which divides before the sum"
    for key in ("wsd_decay_fraction", "wsd_decay_style"):
        if getattr(args, key) != defaults[key] and args.lr_decay_style != "wsd":
            yield f"{key}={getattr(args, key)!r} does nothing without lr_decay_style: wsd"
