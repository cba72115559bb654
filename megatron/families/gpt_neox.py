"""GPTNeoXForCausalLM: GPT-NeoX-20B, Pythia, Polyglot, StableLM-alpha, RedPajama, Dolly."""

from megatron.families.base import Family
from megatron.families.options import (
    BIAS_KEYS,
    ROTARY_KEYS,
    mlp_width,
    plain_heads,
    read_activation,
    read_rotary,
    same_attention_biases,
    write_activation,
    write_rotary,
)
from megatron.families.rules import linear, norm
from megatron.registry import register


@register("family", "gpt_neox", "neox", "GPTNeoXForCausalLM")
class GPTNeoX(Family):
    """Rows of query_key_value stand as ours do."""

    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    prefix = "gpt_neox."
    computed = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")
    same = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "max_position_embeddings": "max_position_embeddings",
        "layernorm_epsilon": "layer_norm_eps",
        "gpt_j_residual": "use_parallel_residual",
        "attention_dropout": "attention_dropout",
        "hidden_dropout": "hidden_dropout",
        "init_method_std": "initializer_range",
    }
    fixed = {"norm": "layernorm"}
    expressed = (*ROTARY_KEYS, *BIAS_KEYS, "activation", "bias_gelu_fusion", "no_weight_tying", "head_dim")

    def read(self, config):
        return {
            **read_rotary(config, partial=True),
            **read_activation(config["hidden_act"]),
            "ffn_hidden_size": config["intermediate_size"],
            "use_bias_in_attn_linear": config["attention_bias"],
            "no_weight_tying": not config["tie_word_embeddings"],
        }

    def write(self, args):
        plain_heads(args)
        return {
            **write_rotary(args, partial=True),
            "hidden_act": write_activation(args),
            "intermediate_size": mlp_width(args),
            "attention_bias": same_attention_biases(args),
            "tie_word_embeddings": not args.no_weight_tying,
        }

    def rules(self, args):
        last = args.num_layers + 3
        yield from linear("0.word_embeddings", "gpt_neox.embed_in")
        for number in range(args.num_layers):
            ours, theirs = f"{number + 2}.", f"gpt_neox.layers.{number}."
            for name in ("attention.query_key_value", "attention.dense"):
                yield from linear(ours + name, theirs + name)
            yield from linear(ours + "mlp.linear1", theirs + "mlp.dense_h_to_4h")
            yield from linear(ours + "mlp.linear2", theirs + "mlp.dense_4h_to_h")
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield from norm(ours + name, theirs + name)
        yield from norm(f"{last}.norm", "gpt_neox.final_layer_norm")
        yield from linear(f"{last + 1}.final_linear", "embed_out")
