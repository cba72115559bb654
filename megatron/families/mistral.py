"""MistralForCausalLM: LLaMA with a sliding window of attention."""

from megatron.families.llama import WithoutBiases
from megatron.registry import register


@register("family", "mistral", "MistralForCausalLM")
class Mistral(WithoutBiases):
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    # Both count the query's own position.
    same = {**WithoutBiases.same, "sliding_window_width": "sliding_window"}
