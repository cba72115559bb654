"""What a rank holds of each parameter, for optimizers whose update depends on a parameter's shape.

Without ZeRO an optimizer updates parameters, each this rank's tensor-parallel part. ZeRO 1 and 2, and so all runs in
16 bit, hand it one flat fp32 tensor per group instead, in which parameters lie end to end, cut anywhere over the
data-parallel ranks. DeepSpeed links each parameter to its values there (`_hp_mapping`).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Piece:
    """The values of one parameter that this rank updates.

    Attributes:
        parameter: the model's parameter.
        tensor: what the optimizer updates and keeps states under: the parameter, or the flat tensor of its group.
        begin: where the values start in the flattened `tensor`.
        offset: where they start in the flattened parameter.
        size: how many they are; 0 if other ranks hold all of them.
        shared: whether several data-parallel ranks hold parts of the parameter.
    """

    parameter: torch.nn.Parameter
    tensor: torch.Tensor
    begin: int
    offset: int
    size: int
    shared: bool = False

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values of this piece in a contiguous tensor laid out as `self.tensor`: a view, 1-D."""
        return tensor.view(-1)[self.begin : self.begin + self.size]

    @property
    def gradient(self) -> torch.Tensor:
        """This rank's values of the gradient, 1-D."""
        return self.of(self.tensor.grad.contiguous())


class PiecewiseOptimizer(torch.optim.Optimizer):
    """Base of optimizers that look at the shapes of parameters.

    What it keeps for a parameter depends on the group (sample_state), unlike that of others (see
    checkpointing/engine_states.py).
    """

    def __init__(self, params: Any, defaults: dict):
        super().__init__(params, defaults)
        self._members = [list(group["params"]) for group in self.param_groups]
        for number, group in enumerate(self.param_groups):
            group["number"] = number
        self._pieces: dict[int, list[Piece]] = {}

    def sample_state(self, group: dict, device: torch.device) -> dict:
        """The states, value by value, of a parameter of two numbers in a group, after a step."""
        raise NotImplementedError

    def pieces(self, group: dict) -> list[Piece]:
        """The pieces of a group's parameters that have gradients, in the same order on all ranks.

        Called by all data-parallel ranks in the same order, since the first call of each group asks them all.
        """
        return [piece for piece in self.all_pieces(group) if piece.tensor.grad is not None]

    def all_pieces(self, group: dict) -> list[Piece]:
        """`pieces` of all parameters."""
        number = group["number"]
        if number not in self._pieces:
            self._pieces[number] = _find_pieces(self._members[number], group["params"])
        return self._pieces[number]


def _find_pieces(members: list[torch.nn.Parameter], updated: list[torch.Tensor]) -> list[Piece]:
    if any(updated[0] is member for member in members):
        return [Piece(parameter, parameter, 0, 0, parameter.numel()) for parameter in members]
    (flat,) = updated
    # DeepSpeed leaves out parameters that do not train.
    members = [parameter for parameter in members if hasattr(parameter, "_hp_mapping")]
    sizes = torch.tensor([_held(parameter) for parameter in members], device=members[0].device)
    largest = sizes.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=members[0]._dp_group)
    found = []
    for parameter, most in zip(members, largest.tolist(), strict=True):
        shared, mapping = most < parameter.numel(), parameter._hp_mapping
        if mapping is None:
            found.append(Piece(parameter, flat, 0, 0, 0, shared))
        else:
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            found.append(Piece(parameter, flat, here.start, there.start, here.numel, shared))
    return found


def _held(parameter: torch.nn.Parameter) -> int:
    mapping = parameter._hp_mapping
    return 0 if mapping is None else mapping.hp_fragment_address.numel
