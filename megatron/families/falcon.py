"""FalconForCausalLM: Falcon-7B (one key/value head, one norm), Falcon-40B and 180B (groups, two norms), Falcon2-11B."""

from megatron.common.errors import ConfigError
from megatron.families.base import Family
from megatron.families.dropouts import read_dropout
from megatron.families.forms import fused_groups
from megatron.families.options import (
    BIAS_KEYS,
    ROTARY_KEYS,
    mlp_width,
    read_activation,
    read_rotary,
    same_attention_biases,
    write_activation,
    write_rotary,
)
from megatron.families.rules import linear, norm, without_counterpart
from megatron.neox_arguments.attention_sizes import head_size, key_value_heads
from megatron.registry import register


@register("family", "falcon", "FalconForCausalLM")
class Falcon(Family):
    """Their three kinds of block: branches one after the other; side by side from one norm; side by side from two."""

    model_type = "falcon"
    architecture = "FalconForCausalLM"
    prefix = "transformer."
    computed = ("rotary_emb.inv_freq", "maybe_rotary.inv_freq")
    same = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "max_position_embeddings": "max_position_embeddings",
        "layernorm_epsilon": "layer_norm_epsilon",
        "attention_dropout": "attention_dropout",
        "hidden_dropout": "hidden_dropout",
        "init_method_std": "initializer_range",
    }
    fixed = {"norm": "layernorm"}
    expressed = (
        *ROTARY_KEYS,
        *BIAS_KEYS,
        "use_bias_in_mlp",
        "gpt_j_residual",
        "gpt_j_tied",
        "activation",
        "bias_gelu_fusion",
        "no_weight_tying",
        "head_dim",
    )

    def read(self, config):
        if config["alibi"]:
            raise ConfigError(
                f"{self.architecture}: alibi=True cannot be had here: it is divided by the root of a head's size and "
                "rounded to bfloat16, as ours is not"
            )
        heads = config["num_attention_heads"]
        groups = _groups(config)
        return {
            **read_rotary(config),
            **read_activation(config["activation"]),
            **read_dropout(config, "hidden_dropout"),
            **_read_block(config),
            "num_kv_heads": None if groups == heads else groups,
            "ffn_hidden_size": config["ffn_hidden_size"],
            "use_bias_in_attn_linear": config["bias"],
            "use_bias_in_mlp": config["bias"],
            "no_weight_tying": not config["tie_word_embeddings"],
        }

    def write(self, args):
        bias = same_attention_biases(args)
        if bias != args.use_bias_in_mlp:
            raise ConfigError(
                f"use_bias_in_mlp={args.use_bias_in_mlp} with biases in attention: {bias} (only the same)"
            )
        if head_size(args) * args.num_attention_heads != args.hidden_size:
            raise ConfigError(f"head_dim={args.head_dim} (only hidden_size / num_attention_heads)")
        return {
            **write_rotary(args),
            **_write_block(args),
            "activation": write_activation(args),
            "alibi": False,
            "ffn_hidden_size": mlp_width(args),
            "bias": bias,
            "tie_word_embeddings": not args.no_weight_tying,
        }

    def rules(self, args):
        last = args.num_layers + 3
        form = fused_groups(args.num_attention_heads, key_value_heads(args))
        yield from linear("0.word_embeddings", "transformer.word_embeddings")
        for number in range(args.num_layers):
            ours, theirs = f"{number + 2}.", f"transformer.h.{number}."
            yield from linear(
                ours + "attention.query_key_value", theirs + "self_attention.query_key_value", form=form
            )
            yield from linear(ours + "attention.dense", theirs + "self_attention.dense")
            yield from linear(ours + "mlp.linear1", theirs + "mlp.dense_h_to_4h")
            yield from linear(ours + "mlp.linear2", theirs + "mlp.dense_4h_to_h")
            yield from _norms(args, ours, theirs)
        yield from norm(f"{last}.norm", "transformer.ln_f")
        yield from linear(f"{last + 1}.final_linear", "lm_head")


def _norms(args, ours: str, theirs: str):
    first, second = ours + "input_layernorm", ours + "post_attention_layernorm"
    if args.gpt_j_residual and not args.gpt_j_tied:
        yield from norm(first, theirs + "ln_attn")
        yield from norm(second, theirs + "ln_mlp")
        return
    yield from norm(first, theirs + "input_layernorm")
    if args.gpt_j_residual:
        yield without_counterpart(second + ".weight", 1.0, unused=True)
        yield without_counterpart(second + ".bias", 0.0, unused=True)
    else:
        yield from norm(second, theirs + "post_attention_layernorm")


def _groups(config) -> int:
    if config["new_decoder_architecture"]:
        return config["num_kv_heads"]
    return 1 if config["multi_query"] else config["num_attention_heads"]


def _read_block(config) -> dict[str, bool]:
    new, parallel, norms = (
        config[key] for key in ("new_decoder_architecture", "parallel_attn", "num_ln_in_parallel_attn")
    )
    if new and not parallel:
        raise ConfigError("parallel_attn=False with new_decoder_architecture=True is no working model")
    if not new and parallel and norms == 2:
        raise ConfigError("num_ln_in_parallel_attn=2 without new_decoder_architecture is no working model")
    two = new and norms in (None, 2)
    return {"gpt_j_residual": parallel, "gpt_j_tied": parallel and not two}


def _write_block(args) -> dict:
    groups, heads = key_value_heads(args), args.num_attention_heads
    one_norm = args.gpt_j_residual and args.gpt_j_tied
    two_norms = args.gpt_j_residual and not args.gpt_j_tied
    new = two_norms or groups not in (1, heads)
    if new and not args.gpt_j_residual:
        raise ConfigError(
            f"num_kv_heads={groups} without gpt_j_residual (only 1 or num_attention_heads there)"
        )
    return {
        "new_decoder_architecture": new,
        "parallel_attn": args.gpt_j_residual,
        "num_ln_in_parallel_attn": 2 if two_norms else 1 if one_norm else None,
        "multi_query": groups == 1,
        "num_kv_heads": groups,
    }
