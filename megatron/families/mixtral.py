"""MixtralForCausalLM: Mistral with a mixture of experts (arXiv 2401.04088)."""

from megatron.common.errors import ConfigError
from megatron.families.llama import WithoutBiases
from megatron.families.rules import SAME, Rule, stacked, stacked_transposed
from megatron.neox_arguments.experts import expert_width
from megatron.registry import register


@register("family", "mixtral", "MixtralForCausalLM")
class Mixtral(WithoutBiases):
    """Losses that balance the experts are training, not model: moe_aux_loss_coeff and moe_z_loss_coeff stay as they
    are by themselves."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    same = {
        **WithoutBiases.same,
        "sliding_window_width": "sliding_window",
        "moe_num_experts": "num_local_experts",
        "moe_top_k": "num_experts_per_tok",
    }
    fixed = {
        **WithoutBiases.fixed,
        "moe_router_type": "topk",
        "moe_normalize_topk": True,
        "moe_expert_interval": 1,
    }

    width = staticmethod(expert_width)

    def read(self, config):
        if config["num_local_experts"] < 2:
            raise ConfigError(
                f"num_local_experts={config['num_local_experts']} cannot be had here, only 2 or more"
            )
        noise = config["router_jitter_noise"]
        return {**super().read(config), "moe_jitter_eps": noise or None}

    def write(self, args):
        if args.moe_num_experts < 2:
            raise ConfigError(f"moe_num_experts={args.moe_num_experts} (only 2 or more)")
        return {**super().write(args), "router_jitter_noise": args.moe_jitter_eps or 0.0}

    def mlp(self, args, ours, theirs):
        experts = args.moe_num_experts
        inside = f"{theirs}block_sparse_moe"
        yield Rule(f"{ours}mlp.router.layer.weight", (f"{inside}.gate.weight",), SAME)
        for name in ("w1", "w2", "w3"):
            theirs_by_expert = tuple(f"{inside}.experts.{number}.{name}.weight" for number in range(experts))
            form = stacked_transposed(experts) if name == "w2" else stacked(experts)
            yield Rule(f"{ours}mlp.experts.mlp.{name}", theirs_by_expert, form)
