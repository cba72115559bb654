"""OPTForCausalLM: OPT, Galactica."""

from megatron.common.errors import ConfigError
from megatron.families.base import Family
from megatron.families.dropouts import read_dropout
from megatron.families.options import (
    BIAS_KEYS,
    mlp_width,
    plain_heads,
    read_activation,
    same_attention_biases,
    write_activation,
)
from megatron.families.rules import linear, norm, query_key_value
from megatron.registry import register

_OFFSET = 2
_NORMS = {True: "layernorm", False: "non_parametric_layernorm"}


@register("family", "opt", "OPTForCausalLM")
class OPT(Family):
    """Positions start with the third row of their table. In the 350M model norms stand behind the branches and word
    embeddings are narrower than the rest."""

    model_type = "opt"
    architecture = "OPTForCausalLM"
    prefix = "model."
    same = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "attention_dropout": "attention_dropout",
        "hidden_dropout": "dropout",
        "init_method_std": "init_std",
    }
    fixed = {"pos_emb": "learned", "opt_pos_emb_offset": _OFFSET, "layernorm_epsilon": 1e-5}
    expressed = (
        *BIAS_KEYS,
        "use_bias_in_mlp",
        "activation",
        "bias_gelu_fusion",
        "no_weight_tying",
        "head_dim",
        "norm",
        "norm_placement",
        "embedding_size",
    )
    demands = {"layerdrop": (0.0,)}

    def read(self, config):
        if config["do_layer_norm_before"] and config.get("_remove_final_layer_norm"):
            raise ConfigError(
                f"{self.architecture}: _remove_final_layer_norm=True cannot be had here with norms before the branches"
            )
        width, hidden = config["word_embed_proj_dim"], config["hidden_size"]
        return {
            **read_activation(config["activation_function"]),
            **read_dropout(config, "dropout"),
            "max_position_embeddings": config["max_position_embeddings"] + _OFFSET,
            "seq_length": config["max_position_embeddings"],
            "ffn_hidden_size": config["ffn_dim"],
            "norm": _NORMS[config["layer_norm_elementwise_affine"]],
            "norm_placement": "pre" if config["do_layer_norm_before"] else "post",
            "embedding_size": None if width == hidden else width,
            "use_bias_in_attn_linear": config["enable_bias"],
            "use_bias_in_mlp": config["enable_bias"],
            "no_weight_tying": not config["tie_word_embeddings"],
        }

    def write(self, args):
        plain_heads(args)
        bias = same_attention_biases(args)
        if bias != args.use_bias_in_mlp:
            raise ConfigError(
                f"use_bias_in_mlp={args.use_bias_in_mlp} with biases in attention: {bias} (only the same)"
            )
        if args.norm not in _NORMS.values():
            raise ConfigError(f"norm={args.norm!r} (only {' or '.join(_NORMS.values())})")
        return {
            "activation_function": write_activation(args),
            "max_position_embeddings": args.max_position_embeddings - _OFFSET,
            "ffn_dim": mlp_width(args),
            "layer_norm_elementwise_affine": args.norm == _NORMS[True],
            "do_layer_norm_before": args.norm_placement == "pre",
            "word_embed_proj_dim": args.embedding_size or args.hidden_size,
            "enable_bias": bias,
            "tie_word_embeddings": not args.no_weight_tying,
        }

    def rules(self, args):
        last, heads, outside = args.num_layers + 3, args.num_attention_heads, "model.decoder."
        yield from linear("0.word_embeddings", outside + "embed_tokens")
        yield from linear("0.position_embeddings", outside + "embed_positions")
        yield from linear("0.project_in", outside + "project_in")
        for number in range(args.num_layers):
            ours, theirs = f"{number + 2}.", f"{outside}layers.{number}."
            yield from linear(
                ours + "attention.query_key_value",
                *(f"{theirs}self_attn.{letter}_proj" for letter in "qkv"),
                form=query_key_value(heads, heads),
            )
            yield from linear(ours + "attention.dense", theirs + "self_attn.out_proj")
            yield from linear(ours + "mlp.linear1", theirs + "fc1")
            yield from linear(ours + "mlp.linear2", theirs + "fc2")
            yield from norm(ours + "input_layernorm", theirs + "self_attn_layer_norm")
            yield from norm(ours + "post_attention_layernorm", theirs + "final_layer_norm")
        yield from norm(f"{last}.norm", outside + "final_layer_norm")
        yield from linear(f"{last}.project_out", outside + "project_out")
        yield from linear(f"{last + 1}.final_linear", "lm_head")
