"""What all families share: configs in both directions, and the refusal of what one side cannot express."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar

from megatron.common.errors import ConfigError
from megatron.families.rules import Rule
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.neox_args import NeoXArgsModel, NeoXArgsMoE

# Keys of the model that change how it is trained, stored or computed, but not which function it is. Those that belong
# to another key (rpe_*, mamba_*) have no effect where that key has the value that a family asks for.
_NO_DIFFERENCE = frozenset(
    """
    precision seq_length layernorm_fusion rmsnorm_fusion fused_kernels_build_path fp16_lm_cross_entropy init_method_std
    use_cpu_initialization rotary_save_freqs_buffer init_method output_layer_init_method output_layer_parallelism
    make_vocab_size_divisible_by use_flashattn_swiglu scaled_upper_triang_masked_softmax_fusion
    scaled_masked_softmax_fusion bias_dropout_fusion rope_fusion attention_softmax_in_fp32 gmlp_attn_dim
    mamba_selective_scan_fusion mamba_causal_conv_fusion mamba_inner_func_fusion mamba_selective_fp32_params
    apply_query_key_layer_scaling rpe_num_buckets rpe_max_distance param_sharing_style isolate_documents sparsity_config
    dim_att head_size ffn_dim moe_router_type moe_expert_interval moe_aux_loss_coeff moe_z_loss_coeff moe_lbl_in_fp32
    moe_jitter_eps layernorm_epsilon rms_norm_epsilon scalenorm_epsilon rotary_pct rotary_emb_base num_kv_heads
    intermediate_size ffn_hidden_size mlp_multiple_of expansion_factor serve_model_weights weight_server_port
    online_dataserver_ips online_dataserver_ports mamba_use_bias_in_conv mamba_use_bias_in_linears
    max_position_embeddings
    """.split()
)
_MUP = ("use_mup", "mup_attn_temp", "mup_output_temp", "mup_embedding_mult", "mup_rp_embedding_mult")
# Names of attention over the whole sequence.
_CAUSAL = {"global", "flash"}
_SIZES = {"hidden_size", "num_layers", "num_attention_heads"}


class Family:
    """A family of models; see megatron.families for how one is written.

    Attributes: computed: ends of the names of tensors that some of their files hold and that are computed, not learned;
    prefix: what the names of all weights but the output's start with, which files of the bare model leave out.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    same: ClassVar[Mapping[str, str]] = {}
    fixed: ClassVar[Mapping[str, Any]] = {}
    expressed: ClassVar[tuple[str, ...]] = ()
    demands: ClassVar[Mapping[str, tuple]] = {}
    computed: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)
    prefix: ClassVar[str] = ""

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our keys, beside `same` and `fixed`, of a model with their config."""
        raise NotImplementedError

    def write(self, args: NeoXArgs) -> dict[str, Any]:
        """Their keys, beside those of `same` and vocab_size, of a model with our config."""
        raise NotImplementedError

    def rules(self, args: NeoXArgs) -> Iterator[Rule]:
        """All weights of a model. args: its config."""
        raise NotImplementedError

    def from_hf(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our keys of the architecture, without those that have their defaults.

        Args: config: all keys of theirs, defaults filled in. Raises: ConfigError with what cannot be had here.
        """
        wrong = [
            f"{key}={config[key]!r} cannot be had here, only {' or '.join(map(repr, possible))}"
            for key, possible in self.demands.items()
            if key in config and config[key] not in possible
        ]
        if wrong:
            raise ConfigError([f"{self.architecture}: {problem}" for problem in wrong])
        same = {ours: config[theirs] for ours, theirs in self.same.items()}
        values = {**same, **self.fixed, **self.read(config)}
        defaults = default_values()
        return {key: value for key, value in values.items() if key in _SIZES or value != defaults[key]}

    def to_hf(self, args: NeoXArgs, vocabulary: int) -> dict[str, Any]:
        """Their config.

        Raises: ConfigError with all keys that they cannot express.
        """
        problems = list(self._inexpressible(args))
        theirs: dict[str, Any] = {}
        try:
            theirs = self.write(args)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError([f"{self.architecture} cannot express {problem}" for problem in problems])
        return (
            {name: getattr(args, key) for key, name in self.same.items()}
            | theirs
            | {"vocab_size": vocabulary}
        )

    def _inexpressible(self, args: NeoXArgs) -> Iterator[str]:
        cared_for = {*self.same, *self.expressed, *_NO_DIFFERENCE, *_SIZES} - set(self.fixed)
        defaults = default_values()
        for key in (*_architecture_keys(), *_MUP):
            value = getattr(args, key)
            if key in cared_for:
                continue
            wanted = self.fixed.get(key, defaults[key])
            if key == "attention_config" and wanted is None:
                if odd := sorted({str(kind) for kind in value or [] if kind not in _CAUSAL}):
                    yield f"attention_config with {', '.join(odd)}"
            elif value != wanted:
                yield f"{key}={value!r} (only {wanted!r})"


def _architecture_keys() -> list[str]:
    return [declared.name for group in (NeoXArgsModel, NeoXArgsMoE) for declared in fields(group)]


def default_values() -> dict[str, Any]:
    """The default of every key."""
    return {declared.name: _default(declared) for declared in fields(NeoXArgs)}


def _default(declared: Field) -> Any:
    if declared.default is not MISSING:
        return declared.default
    return declared.default_factory() if declared.default_factory is not MISSING else None
