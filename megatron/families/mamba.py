"""MambaForCausalLM: Mamba."""

import math

from megatron.common.errors import ConfigError
from megatron.families.base import Family
from megatron.families.options import BIAS_KEYS
from megatron.families.rules import SAME, Rule, linear, norm
from megatron.neox_arguments.block_sizes import mamba_channels
from megatron.registry import register

# It knows no longest text, but a run has one; this is the length that Mamba was trained with.
_LENGTH = 2048
_CHANNEL_FACTOR = 2


@register("family", "mamba", "MambaForCausalLM")
class Mamba(Family):
    """No attention, no MLP, no positions. residual_in_fp32 is about rounding only and is not taken over: our residual
    stream has the precision of the run."""

    model_type = "mamba"
    architecture = "MambaForCausalLM"
    prefix = "backbone."
    same = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "rms_norm_epsilon": "layer_norm_epsilon",
        "mamba_use_bias_in_conv": "use_conv_bias",
    }
    # With biases, ours have one in x_proj as well, which would be trained and could not be given back.
    fixed = {"norm": "rmsnorm", "pos_emb": "none", "mamba_use_bias_in_linears": False}
    expressed = (
        *("attention_config", "no_weight_tying"),
        # Without effect where no layer has attention or an MLP, and RMSNorm has no bias.
        *(*BIAS_KEYS, "head_dim", "sliding_window_width", "attention_softmax_scale", "use_qk_layernorm"),
        *("activation", "bias_gelu_fusion", "use_bias_in_mlp", "use_bias_in_norms"),
        *("gpt_j_residual", "gpt_j_tied"),
    )
    demands = {
        "state_size": (16,),
        "conv_kernel": (4,),
        "hidden_act": ("silu", "swish"),
        "use_bias": (False,),
    }

    def read(self, config):
        rank = math.ceil(config["hidden_size"] / 16)
        if config["time_step_rank"] != rank:
            raise ConfigError(
                f"{self.architecture}: time_step_rank={config['time_step_rank']} cannot be had here, only "
                f"hidden_size / 16 rounded up, {rank}"
            )
        return {
            # Required of every config, without effect here.
            "num_attention_heads": 1,
            "attention_config": [[["mamba"], config["num_hidden_layers"]]],
            "expansion_factor": None if config["expand"] == _CHANNEL_FACTOR else float(config["expand"]),
            "max_position_embeddings": _LENGTH,
            "no_weight_tying": not config["tie_word_embeddings"],
        }

    def write(self, args):
        if set(args.attention_config) != {"mamba"}:
            raise ConfigError("attention_config with other layers than mamba")
        return {
            "expand": whole_expansion(args),
            "residual_in_fp32": False,
            "tie_word_embeddings": not args.no_weight_tying,
        }

    def rules(self, args):
        last = args.num_layers + 3
        yield from linear("0.word_embeddings", "backbone.embeddings")
        for number in range(args.num_layers):
            ours, theirs = f"{number + 2}.mixer.", f"backbone.layers.{number}.mixer."
            for name in ("in_proj", "conv1d", "dt_proj", "out_proj"):
                yield from linear(ours + name, theirs + name)
            yield Rule(f"{ours}x_proj.weight", (f"{theirs}x_proj.weight",), SAME)
            for name in ("A_log", "D"):
                yield Rule(ours + name, (theirs + name,), SAME)
            yield from norm(f"{number + 2}.norm", f"backbone.layers.{number}.norm")
        yield from norm(f"{last}.norm", "backbone.norm_f")
        yield from linear(f"{last + 1}.final_linear", "lm_head")


def whole_expansion(args) -> int:
    """Channels of a block as a multiple of hidden_size. Raises: ConfigError if they are none."""
    channels = mamba_channels(args)
    if channels % args.hidden_size:
        raise ConfigError(
            f"mamba blocks of {channels} channels (only a multiple of hidden_size={args.hidden_size})"
        )
    return channels // args.hidden_size
