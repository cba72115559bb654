"""Options that several families spell alike: activations, rotary positions, biases, heads."""

from collections.abc import Mapping
from typing import Any

from megatron.common.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.attention_sizes import head_size, key_value_heads
from megatron.neox_arguments.mlp_sizes import mlp_sizes
from megatron.neox_arguments.rope_scaling import KINDS, LENGTH, kind_of, options_of

# Their names of functions -> our activation and whether it is the tanh approximation (bias_gelu_fusion).
_PLAIN = {
    "gelu": ("gelu", False),
    "gelu_new": ("gelu", True),
    "gelu_fast": ("gelu", True),
    "gelu_pytorch_tanh": ("gelu", True),
    "relu": ("relu", False),
    "silu": ("silu", False),
    "swish": ("silu", False),
    "mish": ("mish", False),
}
_GATES = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "relu": "reglu",
    "sigmoid": "glu",
    "linear": "bilinear",
}


def read_activation(name: str) -> dict[str, Any]:
    """Our keys of an activation without a gate."""
    if name not in _PLAIN:
        raise ConfigError(f"the activation {name!r} cannot be had here, only {', '.join(_PLAIN)}")
    activation, approximate = _PLAIN[name]
    return {"activation": activation, "bias_gelu_fusion": approximate}


def write_activation(args: NeoXArgs) -> str:
    """Their name of an activation without a gate."""
    ours = ("silu" if args.activation == "swish" else args.activation, args.bias_gelu_fusion)
    found = [theirs for theirs, activation in _PLAIN.items() if activation == ours]
    if not found:
        raise ConfigError(f"activation={args.activation!r}")
    return found[0]


def read_gate(name: str) -> str:
    """Our gated activation with this function of the gate."""
    if name not in _GATES:
        raise ConfigError(f"gates of {name!r} cannot be had here, only of {', '.join(_GATES)}")
    return _GATES[name]


def write_gate(args: NeoXArgs) -> str:
    """Their name of the function of the gate."""
    for theirs, ours in _GATES.items():
        if ours == args.activation:
            return theirs
    raise ConfigError(
        f"activation={args.activation!r}, only the gated {', '.join(dict.fromkeys(_GATES.values()))}"
    )


ROTARY_KEYS = ("pos_emb", "rotary_pct", "rotary_emb_base", "rope_scaling")


def read_rotary(config: Mapping[str, Any], partial: bool = False) -> dict[str, Any]:
    """Our keys of rotary positions. partial: their model can turn a part of a head's features only."""
    parameters = dict(config["rope_parameters"])
    base = parameters.pop("rope_theta")
    share = parameters.pop("partial_rotary_factor", 1.0)
    if share != 1.0 and not partial:
        raise ConfigError(
            f"partial_rotary_factor={share} cannot be had here: there the model turns all features anyway"
        )
    if base != int(base):
        raise ConfigError(f"rope_theta={base} cannot be had here: rotary_emb_base is a whole number")
    kind = kind_of(parameters)
    keys: dict[str, Any] = {"pos_emb": "rotary", "rotary_pct": float(share), "rotary_emb_base": int(base)}
    if kind in (None, "default"):
        return keys
    if kind not in KINDS:
        raise ConfigError(f"rope_type={kind!r} cannot be had here, only {', '.join(KINDS)}")
    known = (*KINDS[kind].required, *KINDS[kind].optional)
    options = {key: value for key, value in parameters.items() if key in known and value is not None}
    if kind == "dynamic":
        # They go by max_position_embeddings, whatever stands beside it.
        options.pop(LENGTH, None)
    return keys | {"rope_scaling": {"rope_type": kind, **options}}


def write_rotary(args: NeoXArgs, partial: bool = False) -> dict[str, Any]:
    """Their keys of rotary positions. partial: they can turn a part of a head's features only."""
    if args.pos_emb != "rotary":
        raise ConfigError(f"pos_emb={args.pos_emb!r} (only 'rotary')")
    if args.rotary_pct != 1.0 and not partial:
        raise ConfigError(f"rotary_pct={args.rotary_pct} (only 1.0)")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": float(args.rotary_emb_base)}
    if partial:
        parameters["partial_rotary_factor"] = args.rotary_pct
    if args.rope_scaling is not None:
        options = options_of(args.rope_scaling)
        kind = kind_of(args.rope_scaling)
        longest = args.max_position_embeddings
        if kind == "dynamic" and options.get(LENGTH, longest) != longest:
            raise ConfigError(
                f"rope_scaling of type dynamic with {LENGTH} other than max_position_embeddings"
            )
        parameters |= {"rope_type": kind}
        parameters |= {
            key: list(value) if isinstance(value, tuple) else value for key, value in options.items()
        }
    return {"rope_parameters": parameters}


def read_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our keys of grouped heads and of heads of another size than hidden_size has room for."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim") or hidden // heads
    groups = config.get("num_key_value_heads") or heads
    return {
        "num_kv_heads": None if groups == heads else groups,
        "head_dim": None if size * heads == hidden else size,
    }


def write_heads(args: NeoXArgs) -> dict[str, Any]:
    return {"num_key_value_heads": key_value_heads(args), "head_dim": head_size(args)}


def plain_heads(args: NeoXArgs) -> None:
    """Raises: ConfigError unless keys and values have as many heads as queries, of the usual size."""
    if key_value_heads(args) != args.num_attention_heads:
        raise ConfigError(f"num_kv_heads={args.num_kv_heads} (only num_attention_heads)")
    if head_size(args) * args.num_attention_heads != args.hidden_size:
        raise ConfigError(f"head_dim={args.head_dim} (only hidden_size / num_attention_heads)")


def mlp_width(args: NeoXArgs) -> int:
    """Inner width of an MLP, of each half where it is gated."""
    return mlp_sizes(args).linear2_input


def attention_biases(args: NeoXArgs) -> tuple[bool, bool]:
    """Whether the projection to q, k, v and the output projection have biases."""
    either = args.use_bias_in_attn_linear
    qkv, dense = args.use_bias_in_attn_qkv, args.use_bias_in_attn_dense
    return (either if qkv is None else qkv), (either if dense is None else dense)


BIAS_KEYS = ("use_bias_in_attn_linear", "use_bias_in_attn_qkv", "use_bias_in_attn_dense")


def same_attention_biases(args: NeoXArgs) -> bool:
    """The one answer for both projections. Raises: ConfigError if they differ."""
    qkv, dense = attention_biases(args)
    if qkv != dense:
        raise ConfigError(f"use_bias_in_attn_qkv={qkv} with use_bias_in_attn_dense={dense} (only the same)")
    return qkv
