"""Gated activations (arXiv 2002.05202): the halves (x, gate) of the features become act(gate) * x."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from megatron.common.optional import require
from megatron.model.activations.gelu import erf_gelu
from megatron.model.activations.select import Activation, Function
from megatron.registry import register


class Gate(NamedTuple):
    """An activation of gates. apply_derivative(gradient, gate, activated): multiplies the gradient, in place, by the
    derivative at the gate."""

    activate: Function
    apply_derivative: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]


def _by_gelu(gradient: torch.Tensor, gate: torch.Tensor, activated: torch.Tensor) -> object:
    return torch.ops.aten.gelu_backward.grad_input(gradient, gate, grad_input=gradient)


def _by_relu(gradient: torch.Tensor, gate: torch.Tensor, activated: torch.Tensor) -> object:
    return torch.ops.aten.threshold_backward.grad_input(gradient, gate, 0, grad_input=gradient)


def _by_silu(gradient: torch.Tensor, gate: torch.Tensor, activated: torch.Tensor) -> object:
    return torch.ops.aten.silu_backward.grad_input(gradient, gate, grad_input=gradient)


def _by_sigmoid(gradient: torch.Tensor, gate: torch.Tensor, activated: torch.Tensor) -> object:
    return torch.ops.aten.sigmoid_backward.grad_input(gradient, activated, grad_input=gradient)


def _itself(x: torch.Tensor) -> torch.Tensor:
    return x


GATES = {
    "geglu": Gate(F.gelu, _by_gelu),
    "reglu": Gate(F.relu, _by_relu),
    "swiglu": Gate(F.silu, _by_silu),
    "glu": Gate(torch.sigmoid, _by_sigmoid),
    "bilinear": Gate(_itself, lambda gradient, gate, activated: gradient),
}


def gated_eager(both: torch.Tensor, activate: Function) -> torch.Tensor:
    """[..., 2f] -> [..., f], as it is written."""
    x, gate = both.chunk(2, -1)
    return activate(gate) * x


def gated(both: torch.Tensor, gate: Gate) -> torch.Tensor:
    """[..., 2f] -> [..., f]; keeps its input only, and writes both halves of its gradient into one tensor."""
    # A compiler fuses the plain form itself; on CPU computing the gate anew costs more than the memory it would take.
    if torch.compiler.is_compiling() or both.is_cpu:
        return gated_eager(both, gate.activate)
    return _Gated.apply(both, gate)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, both, kind):
        ctx.kind = kind
        ctx.save_for_backward(both)
        return gated_eager(both, kind.activate)

    @staticmethod
    def backward(ctx, gradient):
        (both,) = ctx.saved_tensors
        x, gate = both.chunk(2, -1)
        activated = ctx.kind.activate(gate)
        result = torch.empty_like(both)
        into_x, into_gate = result.chunk(2, -1)
        torch.mul(gradient, activated, out=into_x)
        torch.mul(gradient, x, out=into_gate)
        ctx.kind.apply_derivative(into_gate, gate, activated)
        return result, None


def flash_swiglu() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The flash-attn package's silu(gate) * x, a function (gate, x).

    Raises: MissingPackageError.
    """
    return require("flash_attn.ops.activations", "flashattention", "use_flashattn_swiglu").swiglu


class Gated_Activation(torch.nn.Module):  # noqa: N801 - the name that users import
    """[..., 2f] -> [..., f] with any function of the gate.

    Args: use_swiglu: use flash-attn's kernel of silu instead of activation_func.
    """

    def __init__(self, activation_func: Function, use_swiglu: bool = False):
        super().__init__()
        self.activation_func = activation_func
        self.kernel = flash_swiglu() if use_swiglu else None

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        """[..., 2f] -> [..., f]."""
        if self.kernel is None:
            return gated_eager(both, self.activation_func)
        x, gate = both.chunk(2, -1)
        return self.kernel(gate, x)


def _maker(name: str) -> Callable[..., Function]:
    def make(neox_args) -> Function:
        if name == "swiglu" and neox_args.use_flashattn_swiglu:
            return Gated_Activation(F.silu, use_swiglu=True)
        if name == "geglu" and neox_args.onnx_safe:
            return Gated_Activation(erf_gelu)
        return lambda both: gated(both, GATES[name])

    return make


for _name in GATES:
    register("activation", _name, example={"ffn_hidden_size": 64})(Activation(_maker(_name)))
