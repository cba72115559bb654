"""GPTJForCausalLM: GPT-J-6B."""

import math

from megatron.common.errors import ConfigError
from megatron.families.base import Family
from megatron.families.dropouts import read_dropout
from megatron.families.forms import rotated_in_pairs
from megatron.families.options import (
    BIAS_KEYS,
    attention_biases,
    mlp_width,
    plain_heads,
    read_activation,
    write_activation,
)
from megatron.families.rules import linear, norm, without_counterpart
from megatron.neox_arguments.attention_sizes import head_size
from megatron.registry import register


@register("family", "gptj", "gpt_j", "gpt-j", "GPTJForCausalLM")
class GPTJ(Family):
    """Both branches of a block from one norm, so that our second one stands idle; the output has a bias."""

    model_type = "gptj"
    architecture = "GPTJForCausalLM"
    prefix = "transformer."
    computed = (".attn.bias", ".attn.masked_bias", ".attn.embed_positions")
    same = {
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "layernorm_epsilon": "layer_norm_epsilon",
        "attention_dropout": "attn_pdrop",
        "hidden_dropout": "resid_pdrop",
        "init_method_std": "initializer_range",
    }
    fixed = {
        "norm": "layernorm",
        "pos_emb": "rotary",
        "rotary_emb_base": 10000,
        "gpt_j_residual": True,
        "gpt_j_tied": True,
        "no_weight_tying": True,
        "use_bias_in_output": True,
    }
    expressed = (*BIAS_KEYS, "activation", "bias_gelu_fusion", "head_dim", "rotary_pct")
    demands = {"tie_word_embeddings": (False,)}

    def read(self, config):
        head, rotated = config["n_embd"] // config["n_head"], config["rotary_dim"]
        if not rotated or rotated > head or rotated % 2:
            raise ConfigError(
                f"{self.architecture}: rotary_dim={rotated} cannot be had here, only an even number up to "
                f"the size of a head, {head}"
            )
        return {
            **read_activation(config["activation_function"]),
            **read_dropout(config, "resid_pdrop", "embd_pdrop"),
            "rotary_pct": _share(rotated, head),
            "ffn_hidden_size": config["n_inner"] or 4 * config["n_embd"],
            "use_bias_in_attn_linear": False,
        }

    def write(self, args):
        plain_heads(args)
        if any(attention_biases(args)):
            raise ConfigError(
                "biases in attention (use_bias_in_attn_linear, use_bias_in_attn_qkv, use_bias_in_attn_dense)"
            )
        return {
            "activation_function": write_activation(args),
            "embd_pdrop": args.hidden_dropout,
            "n_inner": mlp_width(args),
            "rotary_dim": _rotated(args),
            "tie_word_embeddings": False,
        }

    def rules(self, args):
        last = args.num_layers + 3
        yield from linear("0.word_embeddings", "transformer.wte")
        for number in range(args.num_layers):
            ours, theirs = f"{number + 2}.", f"transformer.h.{number}."
            yield from linear(
                ours + "attention.query_key_value",
                *(f"{theirs}attn.{letter}_proj" for letter in "qkv"),
                form=rotated_in_pairs(args.num_attention_heads, _rotated(args)),
            )
            yield from linear(ours + "attention.dense", theirs + "attn.out_proj")
            yield from linear(ours + "mlp.linear1", theirs + "mlp.fc_in")
            yield from linear(ours + "mlp.linear2", theirs + "mlp.fc_out")
            yield from norm(ours + "input_layernorm", theirs + "ln_1")
            yield without_counterpart(ours + "post_attention_layernorm.weight", 1.0, unused=True)
            yield without_counterpart(ours + "post_attention_layernorm.bias", 0.0, unused=True)
        yield from norm(f"{last}.norm", "transformer.ln_f")
        yield from linear(f"{last + 1}.final_linear", "lm_head")


def _rotated(args) -> int:
    return int(head_size(args) * args.rotary_pct)


def _share(rotated: int, head: int) -> float:
    """The number whose product with the size of a head, rounded down, is `rotated`."""
    share = rotated / head
    return share if int(head * share) == rotated else math.nextafter(share, 1.0)
