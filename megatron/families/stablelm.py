"""StableLmForCausalLM: StableLM-3B-4E1T, StableLM-2, StableLM Zephyr. (StableLM-alpha is a GPTNeoXForCausalLM.)"""

from megatron.common.errors import ConfigError
from megatron.families.llama import LlamaLike, refuse_attention_biases
from megatron.families.options import attention_biases
from megatron.families.rules import ROWS, Rule, without_counterpart
from megatron.neox_arguments.attention_sizes import key_value_heads
from megatron.registry import register


@register("family", "stablelm", "StableLmForCausalLM")
class StableLm(LlamaLike):
    """LLaMA with LayerNorm and partly rotary heads. Where the branches stand side by side they share one norm. Norms of
    queries and keys (StableLM-2-12B) are of every head's own."""

    model_type = "stablelm"
    architecture = "StableLmForCausalLM"
    same = {ours: theirs for ours, theirs in LlamaLike.same.items() if ours != "rms_norm_epsilon"} | {
        "layernorm_epsilon": "layer_norm_eps"
    }
    fixed = {"norm": "layernorm", "use_bias_in_norms": True, "use_bias_in_mlp": False}
    expressed = (
        *LlamaLike.expressed,
        "gpt_j_residual",
        "gpt_j_tied",
        "use_qk_layernorm",
        "qk_layernorm_per_head",
    )
    # Their hidden_dropout acts on one of the branches only.
    demands = {"hidden_dropout": (0, 0.0)}
    partly_rotary = True

    def read(self, config):
        parallel = config["use_parallel_residual"]
        return {
            **super().read(config),
            "use_bias_in_attn_qkv": config["use_qkv_bias"],
            "use_bias_in_attn_linear": False,
            "gpt_j_residual": parallel,
            "gpt_j_tied": parallel,
            "use_qk_layernorm": config["qk_layernorm"],
            "qk_layernorm_per_head": config["qk_layernorm"],
        }

    def write(self, args):
        refuse_attention_biases(args, qkv=True)
        if args.gpt_j_residual and not args.gpt_j_tied:
            raise ConfigError("gpt_j_residual with gpt_j_tied=False (only True)")
        if args.use_qk_layernorm and not args.qk_layernorm_per_head:
            raise ConfigError("use_qk_layernorm with qk_layernorm_per_head=False (only True)")
        keys = super().write(args)
        size = keys.pop("head_dim")
        if size * args.num_attention_heads != args.hidden_size:
            raise ConfigError(f"head_dim={args.head_dim} (only hidden_size / num_attention_heads)")
        biases = {"use_qkv_bias": attention_biases(args)[0], "use_parallel_residual": args.gpt_j_residual}
        return {**keys, **biases, "qk_layernorm": args.use_qk_layernorm}

    def rules(self, args):
        for rule in super().rules(args):
            if args.gpt_j_residual and ".post_attention_layernorm." in rule.native:
                yield without_counterpart(
                    rule.native, fill=float(rule.native.endswith("weight")), unused=True
                )
            else:
                yield rule
        for number in range(args.num_layers):
            for letter, heads in (("q", args.num_attention_heads), ("k", key_value_heads(args))):
                name = f"{letter}_layernorm"
                theirs = (
                    f"model.layers.{number}.self_attn.{name}.norms.{head}.weight" for head in range(heads)
                )
                yield Rule(f"{number + 2}.attention.{name}.weight", tuple(theirs), ROWS)
