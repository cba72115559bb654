"""GPT2LMHeadModel: GPT-2, DistilGPT-2, Cerebras-GPT, GPT-2-like models of Megatron and Mistral."""

from megatron.common.errors import ConfigError
from megatron.families.base import Family
from megatron.families.dropouts import read_dropout
from megatron.families.forms import fused_transposed
from megatron.families.options import (
    BIAS_KEYS,
    mlp_width,
    plain_heads,
    read_activation,
    same_attention_biases,
    write_activation,
)
from megatron.families.rules import TRANSPOSED, linear, norm
from megatron.registry import register


@register("family", "gpt2", "GPT2LMHeadModel")
class GPT2(Family):
    """Matrices stand as [in, out]; those of q, k, v as one, all q before all k before all v."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    computed = (".attn.bias", ".attn.masked_bias")
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
    fixed = {"norm": "layernorm", "pos_emb": "learned"}
    expressed = (
        *BIAS_KEYS,
        "activation",
        "bias_gelu_fusion",
        "no_weight_tying",
        "head_dim",
        "attention_softmax_scale",
    )
    demands = {"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)}

    def read(self, config):
        return {
            **read_activation(config["activation_function"]),
            **read_dropout(config, "resid_pdrop", "embd_pdrop"),
            "ffn_hidden_size": config["n_inner"] or 4 * config["n_embd"],
            "attention_softmax_scale": None if config["scale_attn_weights"] else 1.0,
            "no_weight_tying": not config["tie_word_embeddings"],
        }

    def write(self, args):
        plain_heads(args)
        if not same_attention_biases(args):
            raise ConfigError("attention without biases")
        if args.attention_softmax_scale not in (None, 1.0):
            raise ConfigError(f"attention_softmax_scale={args.attention_softmax_scale} (only None or 1.0)")
        return {
            "activation_function": write_activation(args),
            "embd_pdrop": args.hidden_dropout,
            "n_inner": mlp_width(args),
            "scale_attn_weights": args.attention_softmax_scale is None,
            "tie_word_embeddings": not args.no_weight_tying,
        }

    def rules(self, args):
        last = args.num_layers + 3
        yield from linear("0.word_embeddings", "transformer.wte")
        yield from linear("0.position_embeddings", "transformer.wpe")
        for number in range(args.num_layers):
            ours, theirs = f"{number + 2}.", f"transformer.h.{number}."
            yield from linear(
                ours + "attention.query_key_value",
                theirs + "attn.c_attn",
                form=fused_transposed(args.num_attention_heads),
            )
            yield from linear(ours + "attention.dense", theirs + "attn.c_proj", form=TRANSPOSED)
            yield from linear(ours + "mlp.linear1", theirs + "mlp.c_fc", form=TRANSPOSED)
            yield from linear(ours + "mlp.linear2", theirs + "mlp.c_proj", form=TRANSPOSED)
            yield from norm(ours + "input_layernorm", theirs + "ln_1")
            yield from norm(ours + "post_attention_layernorm", theirs + "ln_2")
        yield from norm(f"{last}.norm", "transformer.ln_f")
        yield from linear(f"{last + 1}.final_linear", "lm_head")
