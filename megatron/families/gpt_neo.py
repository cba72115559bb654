"""GPTNeoForCausalLM: GPT-Neo."""

from megatron.common.errors import ConfigError
from megatron.families.base import Family
from megatron.families.dropouts import read_dropout
from megatron.families.options import (
    BIAS_KEYS,
    attention_biases,
    mlp_width,
    plain_heads,
    read_activation,
    write_activation,
)
from megatron.families.rules import linear, norm, query_key_value
from megatron.neox_arguments.sparsity import sparsity_options
from megatron.registry import register

_WHOLE = ("global", "flash")


@register("family", "gpt_neo", "gpt-neo", "GPTNeoForCausalLM")
class GPTNeo(Family):
    """Some layers see the last keys only; scores are not scaled; of attention only the output has a bias."""

    model_type = "gpt_neo"
    architecture = "GPTNeoForCausalLM"
    prefix = "transformer."
    computed = (".attn.attention.bias", ".attn.attention.masked_bias")
    same = {
        "hidden_size": "hidden_size",
        "num_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "max_position_embeddings": "max_position_embeddings",
        "layernorm_epsilon": "layer_norm_epsilon",
        "attention_dropout": "attention_dropout",
        "hidden_dropout": "resid_dropout",
        "init_method_std": "initializer_range",
    }
    fixed = {"norm": "layernorm", "pos_emb": "learned", "attention_softmax_scale": 1.0}
    expressed = (
        *BIAS_KEYS,
        "activation",
        "bias_gelu_fusion",
        "no_weight_tying",
        "head_dim",
        "attention_config",
        "sparsity_config",
    )

    def read(self, config):
        kinds = list(config["attention_layers"])
        keys = {"attention_config": kinds, "sparsity_config": {"window": config["window_size"]}}
        return {
            **read_activation(config["activation_function"]),
            **read_dropout(config, "resid_dropout", "embed_dropout"),
            **(keys if "local" in kinds else {}),
            "ffn_hidden_size": config["intermediate_size"] or 4 * config["hidden_size"],
            "use_bias_in_attn_qkv": False,
            "no_weight_tying": not config["tie_word_embeddings"],
        }

    def write(self, args):
        plain_heads(args)
        qkv, dense = attention_biases(args)
        if qkv:
            raise ConfigError("use_bias_in_attn_qkv=True")
        if not dense:
            raise ConfigError("use_bias_in_attn_dense=False")
        return {
            **_write_kinds(args),
            "activation_function": write_activation(args),
            "embed_dropout": args.hidden_dropout,
            "intermediate_size": mlp_width(args),
            "tie_word_embeddings": not args.no_weight_tying,
        }

    def rules(self, args):
        last, heads = args.num_layers + 3, args.num_attention_heads
        yield from linear("0.word_embeddings", "transformer.wte")
        yield from linear("0.position_embeddings", "transformer.wpe")
        for number in range(args.num_layers):
            ours, theirs = f"{number + 2}.", f"transformer.h.{number}."
            yield from linear(
                ours + "attention.query_key_value",
                *(f"{theirs}attn.attention.{letter}_proj" for letter in "qkv"),
                form=query_key_value(heads, heads),
            )
            yield from linear(ours + "attention.dense", theirs + "attn.attention.out_proj")
            yield from linear(ours + "mlp.linear1", theirs + "mlp.c_fc")
            yield from linear(ours + "mlp.linear2", theirs + "mlp.c_proj")
            yield from norm(ours + "input_layernorm", theirs + "ln_1")
            yield from norm(ours + "post_attention_layernorm", theirs + "ln_2")
        yield from norm(f"{last}.norm", "transformer.ln_f")
        yield from linear(f"{last + 1}.final_linear", "lm_head")


def _write_kinds(args) -> dict:
    """Their keys of which layers see how much."""
    kinds = ["global" if kind in _WHOLE else kind for kind in args.attention_config]
    if odd := sorted(set(kinds) - {"global", "local"}):
        raise ConfigError(f"attention_config with {', '.join(odd)} (only global, flash, local)")
    written = {"attention_types": [[[kind], 1] for kind in kinds]}
    if "local" not in kinds:
        return written
    window = sparsity_options("local", args.sparsity_config)["window"]
    if window is None:
        raise ConfigError("sparsity_config without window, that is local layers of whole blocks")
    return written | {"window_size": window}
