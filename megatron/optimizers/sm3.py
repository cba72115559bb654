"""SM3: second moments kept as one vector per dimension (arXiv:1901.11150, SM3-II)."""

from collections import Counter
from collections.abc import Iterator

import torch
import torch.distributed as dist

from megatron import mpu
from megatron.mpu import collectives
from megatron.optimizers.capabilities import NO_MUP, Capabilities
from megatron.optimizers.pieces import Piece, PiecewiseOptimizer
from megatron.registry import register


class SM3(PiecewiseOptimizer):
    """u = beta * min over dimensions i of acc_i + (1 - beta) * g^2, where beta 0 stands for u = min acc_i + g^2;

    acc_i <- max of u over the other dimensions (never falling); d = g / sqrt(u + eps), with momentum
    d <- (1 - momentum) d + momentum * previous d; p <- (1 - lr*wd) p - lr * d.

    States: accumulator_0, accumulator_1, ..., one value for each index of that dimension, of the parameters in a flat
    tensor one after the other; momentum_buffer unless momentum is 0. Ranks that share a parameter hold equal
    accumulators.
    """

    def __init__(
        self,
        params,
        lr: float = 0.1,
        momentum: float = 0.0,
        beta: float = 0.0,
        eps: float = 1e-30,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "momentum": momentum, "beta": beta, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            pieces = [piece for piece in self.pieces(group) if piece.size or piece.shared]
            covers = list(self._covers(pieces))
            for piece, cover in zip(pieces, covers, strict=True):
                if piece.size:
                    self._update(piece, cover, group)
            _agree(pieces, covers)
        return loss

    def sample_state(self, group: dict, device: torch.device) -> dict:
        return {"momentum_buffer": torch.zeros(2, device=device)} if group["momentum"] else {}

    def covers(self, group: dict) -> list[tuple[torch.nn.Parameter, list[torch.Tensor]]]:
        """(parameter, its accumulators) of a group's parameters that this rank has some values of, or shares."""
        pieces = [piece for piece in self.all_pieces(group) if piece.size or piece.shared]
        found = zip(pieces, self._covers(pieces), strict=True)
        return [(piece.parameter, cover) for piece, cover in found]

    def _covers(self, pieces: list[Piece]) -> Iterator[list[torch.Tensor]]:
        """The accumulators of each piece, one per dimension: views into the states."""
        totals: Counter = Counter()
        for piece in pieces:
            for dim, length in enumerate(_shape(piece)):
                totals[piece.tensor, dim] += length
        for (tensor, dim), length in totals.items():
            if f"accumulator_{dim}" not in self.state[tensor]:
                self.state[tensor][f"accumulator_{dim}"] = tensor.new_zeros(length)
        used: Counter = Counter()
        for piece in pieces:
            cover = []
            for dim, length in enumerate(_shape(piece)):
                begin = used[piece.tensor, dim]
                cover.append(self.state[piece.tensor][f"accumulator_{dim}"][begin : begin + length])
                used[piece.tensor, dim] += length
            yield cover

    def _update(self, piece: Piece, cover: list[torch.Tensor], group: dict) -> None:
        beta, momentum = group["beta"], group["momentum"]
        first, gradient = _whole_rows(piece, piece.gradient)
        rows = [cover[0][first : first + len(gradient)], *cover[1:]]
        moment = _lowest(rows)
        if beta:
            moment = moment * beta
        moment = torch.addcmul(moment, gradient, gradient, value=1 - beta)
        for dim, vector in enumerate(rows):
            others = [other for other in range(moment.dim()) if other != dim]
            torch.maximum(vector, moment.amax(others) if others else moment, out=vector)
        direction = gradient / (moment + group["eps"]).sqrt()
        lead = piece.offset - first * (gradient[0].numel())
        direction = direction.reshape(-1)[lead : lead + piece.size]
        if momentum:
            state = self.state[piece.tensor]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(piece.tensor)
            direction = piece.of(state["momentum_buffer"]).lerp_(direction, 1 - momentum)
        value = piece.of(piece.tensor)
        value.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])


def _shape(piece: Piece) -> tuple[int, ...]:
    return tuple(piece.parameter.shape) or (1,)


def _whole_rows(piece: Piece, values: torch.Tensor) -> tuple[int, torch.Tensor]:
    """(first row, [rows, ...]): a piece's values as rows of the parameter, zeros around them where other ranks hold the
    values of the first and the last one."""
    shape = _shape(piece)
    width = piece.parameter.numel() // shape[0]
    first, last = piece.offset // width, -(-(piece.offset + piece.size) // width)
    lead = piece.offset - first * width
    # A zero gradient leaves the smallest bound that the elements' true moments can have, so it raises no maximum.
    padded = torch.nn.functional.pad(values, (lead, (last - first) * width - lead - piece.size))
    return first, padded.view(last - first, *shape[1:])


def _lowest(vectors: list[torch.Tensor]) -> torch.Tensor:
    """min_i vectors[i] at every index of the tensor that they cover."""
    lowest = vectors[0].view(-1, *[1] * (len(vectors) - 1))
    for dim, vector in enumerate(vectors[1:], start=1):
        lowest = torch.minimum(lowest, vector.view(-1, *[1] * (len(vectors) - 1 - dim)))
    return lowest


def _agree(pieces: list[Piece], covers: list[list[torch.Tensor]]) -> None:
    """Take the largest accumulators over the ranks that hold other values of the same parameters."""
    cut, shared = [], []
    for piece, cover in zip(pieces, covers, strict=True):
        spec = getattr(piece.parameter, "spec", None)
        if spec is not None and spec.shard_dim is not None and mpu.get_model_parallel_world_size() > 1:
            cut += [vector for dim, vector in enumerate(cover) if dim != spec.shard_dim]
        if piece.shared:
            shared += cover
    if cut:
        _put(cut, collectives.all_reduce(_on_device(cut, pieces), dist.ReduceOp.MAX))
    if shared:
        largest = _on_device(shared, pieces)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=pieces[0].parameter._dp_group)
        _put(shared, largest)


def _on_device(vectors: list[torch.Tensor], pieces: list[Piece]) -> torch.Tensor:
    # Offloaded states live in host memory, where a GPU's communication cannot read them.
    return torch.cat(vectors).to(pieces[0].parameter.device)


def _put(vectors: list[torch.Tensor], joined: torch.Tensor) -> None:
    for vector, values in zip(vectors, joined.split([len(vector) for vector in vectors]), strict=True):
        vector.copy_(values)


@register(
    "optimizer",
    "sm3",
    capabilities=Capabilities(states=1, weight_decay=False),
    lacks={
        "zero 3": "it needs the rows and columns of whole matrices, which ZeRO 3 cuts into flat parts",
        **NO_MUP,
    },
    example={"optimizer": {"type": "sm3", "params": {"lr": 1e-2, "momentum": 0.9}}},
)
def build(param_groups: list[dict], params: dict):
    return SM3(param_groups, **params)
