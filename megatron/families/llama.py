"""LlamaForCausalLM (LLaMA 1, 2 and 3, CodeLlama, and the many of the same form), and what its relatives share."""

from collections.abc import Iterator

from megatron.common.errors import ConfigError
from megatron.families.base import Family
from megatron.families.options import (
    BIAS_KEYS,
    ROTARY_KEYS,
    attention_biases,
    mlp_width,
    read_gate,
    read_heads,
    read_rotary,
    same_attention_biases,
    write_gate,
    write_heads,
    write_rotary,
)
from megatron.families.rules import Rule, linear, norm, query_key_value, stacked
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.attention_sizes import key_value_heads
from megatron.registry import register


def attention(args: NeoXArgs, ours: str, theirs: str) -> Iterator[Rule]:
    """The projections of a block: q, k and v apart, and the way out."""
    form = query_key_value(args.num_attention_heads, key_value_heads(args))
    separate = (f"{theirs}self_attn.{letter}_proj" for letter in "qkv")
    yield from linear(f"{ours}attention.query_key_value", *separate, form=form)
    yield from linear(f"{ours}attention.dense", f"{theirs}self_attn.o_proj")


def gated_mlp(ours: str, theirs: str) -> Iterator[Rule]:
    """linear1 is up_proj above gate_proj."""
    yield from linear(f"{ours}mlp.linear1", f"{theirs}mlp.up_proj", f"{theirs}mlp.gate_proj", form=stacked(2))
    yield from linear(f"{ours}mlp.linear2", f"{theirs}mlp.down_proj")


class LlamaLike(Family):
    """The names that LLaMA and its relatives share."""

    prefix = "model."
    same = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "max_position_embeddings": "max_position_embeddings",
        "rms_norm_epsilon": "rms_norm_eps",
        "attention_dropout": "attention_dropout",
        "init_method_std": "initializer_range",
    }
    fixed = {"norm": "rmsnorm"}
    expressed = (
        *ROTARY_KEYS,
        *BIAS_KEYS,
        *("activation", "head_dim", "no_weight_tying", "use_bias_in_mlp"),
        # Without effect: RMSNorm has no bias, and only GELU without a gate has an approximation.
        *("use_bias_in_norms", "bias_gelu_fusion"),
    )
    partly_rotary = False
    width = staticmethod(mlp_width)

    def read(self, config):
        return {
            **read_rotary(config, partial=self.partly_rotary),
            **read_heads(config),
            "activation": read_gate(config["hidden_act"]),
            "ffn_hidden_size": config["intermediate_size"],
            "no_weight_tying": not config["tie_word_embeddings"],
        }

    def write(self, args):
        return {
            **write_rotary(args, partial=self.partly_rotary),
            **write_heads(args),
            "hidden_act": write_gate(args),
            "intermediate_size": self.width(args),
            "tie_word_embeddings": not args.no_weight_tying,
        }

    def mlp(self, args: NeoXArgs, ours: str, theirs: str) -> Iterator[Rule]:
        """The feed-forward half of a block."""
        return gated_mlp(ours, theirs)

    def rules(self, args):
        last = args.num_layers + 3
        yield from linear("0.word_embeddings", "model.embed_tokens")
        for number in range(args.num_layers):
            ours, theirs = f"{number + 2}.", f"model.layers.{number}."
            yield from attention(args, ours, theirs)
            yield from self.mlp(args, ours, theirs)
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield from norm(ours + name, theirs + name)
        yield from norm(f"{last}.norm", "model.norm")
        yield from linear(f"{last + 1}.final_linear", "lm_head")


@register("family", "llama", "LlamaForCausalLM")
class Llama(LlamaLike):
    model_type = "llama"
    architecture = "LlamaForCausalLM"

    def read(self, config):
        biases = {"use_bias_in_attn_linear": config["attention_bias"], "use_bias_in_mlp": config["mlp_bias"]}
        return {**super().read(config), **biases}

    def write(self, args):
        biases = {"attention_bias": same_attention_biases(args), "mlp_bias": args.use_bias_in_mlp}
        return {**super().write(args), **biases}


class WithoutBiases(LlamaLike):
    """Relatives whose linear layers have no biases."""

    fixed = {**LlamaLike.fixed, "use_bias_in_mlp": False}

    def read(self, config):
        return {**super().read(config), "use_bias_in_attn_linear": False}

    def write(self, args):
        refuse_attention_biases(args)
        return super().write(args)


def refuse_attention_biases(args: NeoXArgs, qkv: bool = False) -> None:
    """Raises: ConfigError for biases in the output projection and, unless qkv, in the one to q, k and v."""
    own = attention_biases(args)
    for key, given, possible in zip(("qkv", "dense"), own, (qkv, False), strict=True):
        if given and not possible:
            raise ConfigError(f"use_bias_in_attn_{key}=True, or use_bias_in_attn_linear=True (only False)")
