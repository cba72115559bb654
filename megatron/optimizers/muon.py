"""Muon: momentum made orthogonal, for the matrices between hidden states (arXiv:2502.16982, kellerjordan.github.io).

Everything else (embeddings, the output layer, norms, biases) goes to AdamW.
"""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist

from megatron import mpu
from megatron.mpu import collectives
from megatron.optimizers.capabilities import NO_MUP, Capabilities
from megatron.optimizers.compiler import step_untraced
from megatron.optimizers.pieces import Piece, PiecewiseOptimizer
from megatron.registry import register

# Of the quintic that drives singular values towards 1, fastest near 0.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(PiecewiseOptimizer):
    """m <- momentum*m + (1-momentum)*g; u = orthogonal(lerp(g, m, momentum)), without nesterov orthogonal(m);

    p <- (1 - lr*wd) p - lr * scale(shape) * u. A fused projection counts as its matrices (q, k, v; up, gate), and a
    matrix cut over ranks as one.

    Args: betas, eps: of AdamW; adjust_lr_fn: scale, "match_rms_adamw" 0.2 sqrt(max(rows, columns)) for learning rates
    of AdamW, "original" sqrt(max(1, rows/columns)).

    States: momentum_buffer, or exp_avg, exp_avg_sq and step where AdamW updates.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        matrices, others = _divide(params)
        # AdamW adds its settings to the groups of its own.
        adam = torch.optim.AdamW(
            others or [{"params": []}], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )
        self._adam = step_untraced(adam)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__([*matrices, *others], defaults)

    def sample_state(self, group: dict, device: torch.device) -> dict:
        zeros = torch.zeros(2, device=device)
        if group["matrices"]:
            return {"momentum_buffer": zeros}
        return {"step": torch.ones((), device=device), "exp_avg": zeros, "exp_avg_sq": zeros}

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            if group["matrices"]:
                for piece in self.pieces(group):
                    self._update(piece, group)
        # Both may have been replaced, by DeepSpeed and by loading.
        self._adam.param_groups = [group for group in self.param_groups if not group["matrices"]]
        self._adam.state = self.state
        self._adam.step()
        return loss

    def _update(self, piece: Piece, group: dict) -> None:
        direction = piece.gradient
        if piece.size:
            state = self.state[piece.tensor]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(piece.tensor)
            momentum = piece.of(state["momentum_buffer"])
            momentum.lerp_(direction, 1 - group["momentum"])
            direction = direction.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        part = _gather_part(piece, direction)
        if not piece.size:
            return
        update = _whole_update(part, piece.parameter, group).reshape(-1)
        value = piece.of(piece.tensor)
        value.mul_(1 - group["lr"] * group["weight_decay"])
        value.sub_(update[piece.offset : piece.offset + piece.size].to(value), alpha=group["lr"])


def _divide(params: Iterable) -> tuple[list[dict], list[dict]]:
    """Groups of hidden matrices, and of everything else."""
    params = list(params)
    groups = params if isinstance(params[0], dict) else [{"params": params}]
    divided: dict[bool, list[dict]] = {True: [], False: []}
    for group in groups:
        for matrices in (True, False):
            members = [parameter for parameter in group["params"] if _is_hidden_matrix(parameter) is matrices]
            if members:
                divided[matrices].append({**group, "params": members, "matrices": matrices})
    return divided[True], divided[False]


def _is_hidden_matrix(parameter: torch.Tensor) -> bool:
    if parameter.dim() != 2 or min(parameter.shape) == 1:
        return False
    return not getattr(parameter, "is_table", False) and not hasattr(parameter, "_no_weight_decay")


def _gather_part(piece: Piece, values: torch.Tensor) -> torch.Tensor:
    """This tensor-parallel rank's part of a parameter, from the values of the data-parallel ranks that hold it."""
    parameter = piece.parameter
    # Offloaded values lie in host memory; the work is done where the model is.
    values = values.to(parameter.device)
    if piece.shared:
        part = values.new_zeros(parameter.numel())
        part[piece.offset : piece.offset + piece.size] = values
        dist.all_reduce(part, group=parameter._dp_group)
        values = part
    return values.view(parameter.shape) if len(values) else values


def _whole_update(part: torch.Tensor, parameter: torch.nn.Parameter, group: dict) -> torch.Tensor:
    """The scaled orthogonal update of this tensor-parallel rank's part, made of the whole matrix."""
    spec, size = getattr(parameter, "spec", None), mpu.get_model_parallel_world_size()
    cut = spec is not None and spec.shard_dim is not None and size > 1
    logical = part
    if cut:
        logical = mpu.merge_slices(list(collectives.all_gather(part.unsqueeze(0), 0)), spec)
    # A run in 16 bit iterates in bfloat16, whose range suits it.
    dtype = torch.float32 if parameter.dtype == torch.float32 else torch.bfloat16
    updates = []
    for matrix in split_matrices(logical, parameter):
        scale = _scale(*matrix.shape, group["adjust_lr_fn"])
        updates.append(orthogonalize(matrix.to(dtype), group["ns_steps"]).to(part.dtype) * scale)
    logical = join_matrices(updates, parameter)
    return mpu.local_slice(logical, spec, mpu.get_model_parallel_rank(), size) if cut else logical


def split_matrices(logical: torch.Tensor, parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """The matrices that a fused projection consists of, [rows, columns] each.

    `parameter.fused_matrices` = (groups, matrices) says that the rows are, for each of `groups`, those of the matrices
    in turn (q|k|v per head; the experts in one group); a spec whose rows are cut in blocks has one matrix per block.
    """
    if (fused := getattr(parameter, "fused_matrices", None)) is not None:
        groups, count = fused
        return [part.flatten(0, 1) for part in logical.view(groups, count, -1, logical.shape[1]).unbind(1)]
    spec = getattr(parameter, "spec", None)
    if spec is not None and spec.shard_dim == 0 and spec.blocks:
        return list(logical.split(spec.blocks))
    return [logical]


def join_matrices(matrices: list[torch.Tensor], parameter: torch.nn.Parameter) -> torch.Tensor:
    """Undo split_matrices."""
    if (fused := getattr(parameter, "fused_matrices", None)) is not None:
        groups, columns = fused[0], matrices[0].shape[1]
        stacked = torch.stack([matrix.view(groups, -1, columns) for matrix in matrices], dim=1)
        return stacked.view(-1, columns)
    return torch.cat(matrices)


def orthogonalize(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """U V^T of matrix = U S V^T, roughly: after `steps` rounds of x <- a x + (b xx' + c (xx')^2) x all but the smallest
    singular values lie around 1."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _scale(rows: int, columns: int, kind: str) -> float:
    if kind == "original":
        return math.sqrt(max(1, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


@register(
    "optimizer",
    "muon",
    # Two where AdamW updates, which is little of a large model.
    capabilities=Capabilities(states=1),
    lacks={"zero 3": "it needs whole matrices, which ZeRO 3 cuts into flat parts", **NO_MUP},
)
def build(param_groups: list[dict], params: dict):
    return Muon(param_groups, **{**params, "betas": tuple(params.get("betas", (0.9, 0.999)))})
