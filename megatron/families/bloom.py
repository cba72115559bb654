"""BloomForCausalLM: BLOOM, BLOOMZ."""

from megatron.common.errors import ConfigError
from megatron.families.base import Family
from megatron.families.dropouts import read_dropout
from megatron.families.options import BIAS_KEYS, mlp_width, plain_heads, same_attention_biases
from megatron.families.rules import linear, norm
from megatron.registry import register

# ALiBi knows no longest text, but a run has one; this is the length that BLOOM was trained with.
_LENGTH = 2048


@register("family", "bloom", "BloomForCausalLM")
class Bloom(Family):
    """ALiBi, and a norm behind the word embeddings. Rows of query_key_value stand as ours do."""

    model_type = "bloom"
    architecture = "BloomForCausalLM"
    prefix = "transformer."
    same = {
        "hidden_size": "hidden_size",
        "num_layers": "n_layer",
        "num_attention_heads": "n_head",
        "layernorm_epsilon": "layer_norm_epsilon",
        "attention_dropout": "attention_dropout",
        "hidden_dropout": "hidden_dropout",
        "init_method_std": "initializer_range",
    }
    fixed = {
        "norm": "layernorm",
        "pos_emb": "alibi",
        "embedding_layernorm": True,
        "activation": "gelu",
        "bias_gelu_fusion": True,
        # It multiplies what ALiBi adds.
        "apply_query_key_layer_scaling": False,
    }
    expressed = (*BIAS_KEYS, "no_weight_tying", "head_dim")
    demands = {"apply_residual_connection_post_layernorm": (False,)}

    def read(self, config):
        if config["slow_but_exact"] and config["pretraining_tp"] > 1:
            raise ConfigError(
                f"{self.architecture}: slow_but_exact=True cannot be had here with pretraining_tp above 1: "
                "transformers' model leaves biases out then"
            )
        return {
            **read_dropout(config, "hidden_dropout"),
            "max_position_embeddings": config.get("seq_length") or _LENGTH,
            "no_weight_tying": not config["tie_word_embeddings"],
        }

    def write(self, args):
        plain_heads(args)
        if not same_attention_biases(args):
            raise ConfigError("attention without biases")
        if mlp_width(args) != 4 * args.hidden_size:
            raise ConfigError(f"an MLP {mlp_width(args)} wide (only 4 * hidden_size)")
        return {"seq_length": args.max_position_embeddings, "tie_word_embeddings": not args.no_weight_tying}

    def rules(self, args):
        last = args.num_layers + 3
        yield from linear("0.word_embeddings", "transformer.word_embeddings")
        yield from norm("0.norm", "transformer.word_embeddings_layernorm")
        for number in range(args.num_layers):
            ours, theirs = f"{number + 2}.", f"transformer.h.{number}."
            for name in ("query_key_value", "dense"):
                yield from linear(f"{ours}attention.{name}", f"{theirs}self_attention.{name}")
            yield from linear(ours + "mlp.linear1", theirs + "mlp.dense_h_to_4h")
            yield from linear(ours + "mlp.linear2", theirs + "mlp.dense_4h_to_h")
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield from norm(ours + name, theirs + name)
        yield from norm(f"{last}.norm", "transformer.ln_f")
        yield from linear(f"{last + 1}.final_linear", "lm_head")
