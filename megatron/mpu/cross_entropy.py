"""Cross entropy of logits whose vocabulary is cut over the tensor-parallel group."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron.mpu import collectives, state

# fp32 elements worked on at a time: large enough to keep a GPU busy, small beside the activations of a model
CHUNK_ELEMENTS = 2**26


def vocab_parallel_cross_entropy(
    vocab_parallel_logits: torch.Tensor, target: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Loss of every token: log(sum(exp(logits))) - logits[target].

    Args:
        vocab_parallel_logits: [..., V/tp], any floating dtype; left unchanged.
        target: int64 [...], ids of the whole vocabulary, not negative.
        dtype: in which to compute.
    Returns: [...] of `dtype`.
    """
    logits, flat_target = vocab_parallel_logits.flatten(0, -2), target.flatten()
    alone = state.get_model_parallel_world_size() == 1
    if alone and logits.dtype == dtype and logits.numel() <= CHUNK_ELEMENTS:
        return F.cross_entropy(logits, flat_target, reduction="none").view(target.shape)
    return _VocabParallelCrossEntropy.apply(logits, flat_target, dtype, 0.0)[0].view(target.shape)


def vocab_parallel_cross_entropy_with_z_loss(
    vocab_parallel_logits: torch.Tensor,
    target: torch.Tensor,
    z_loss: float,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of every token plus z_loss * log(sum(exp(logits)))^2, which keeps logits from drifting away (arXiv
    2204.02311); and that summand alone, which has no gradient. Arguments and shapes as in vocab_parallel_cross_entropy.
    """
    losses, squares = _VocabParallelCrossEntropy.apply(
        vocab_parallel_logits.flatten(0, -2), target.flatten(), dtype, z_loss
    )
    return losses.view(target.shape), (z_loss * squares).view(target.shape)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """(loss, log(sum(exp(logits)))^2 or, with z_loss 0, nothing). Works through chunks of tokens, so one chunk is all
    that ever exists in `dtype`. The gradient (softmax minus one-hot, in the dtype of the logits) is made in the forward
    pass: the backward only scales it."""

    @staticmethod
    def forward(ctx, logits, target, dtype, z_loss):
        loss = torch.empty(target.shape, dtype=dtype, device=logits.device)
        squares = torch.empty_like(loss) if z_loss else loss.new_empty(0)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
        for first in range(0, len(target), rows):
            chunk = slice(first, first + rows)
            log_probability, index, owned, log_sum = _log_softmax(
                logits[chunk], target[chunk], dtype, bool(z_loss)
            )
            loss[chunk] = -_at_target(log_probability, index, owned)
            if log_sum is not None:
                squares[chunk] = log_sum.square()
                loss[chunk] += z_loss * squares[chunk]
            if gradient is not None:
                probability = log_probability.exp_()
                if log_sum is not None:
                    probability *= 1 + 2 * z_loss * log_sum.unsqueeze(-1)
                probability.scatter_add_(-1, index.unsqueeze(-1), -owned.to(dtype).unsqueeze(-1))
                gradient[chunk] = probability
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(squares)
        return loss, squares

    @staticmethod
    def backward(ctx, gradient_of_loss, _):
        (gradient,) = ctx.saved_tensors
        # In place, to save a copy of the logits' size; autograd notices if a retained graph is walked twice.
        return gradient.mul_(gradient_of_loss.unsqueeze(-1).to(gradient.dtype)), None, None, None


def _log_softmax(
    logits: torch.Tensor, target: torch.Tensor, dtype: torch.dtype, with_sum: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Log-probabilities [n, V/tp] of this rank's columns, the targets' columns here, whether they are here, and, if
    asked for, log(sum(exp(logits))) [n]."""
    if state.get_model_parallel_world_size() == 1:
        log_sum = torch.logsumexp(logits.to(dtype), -1) if with_sum else None
        everywhere = torch.ones_like(target, dtype=torch.bool)
        return torch.log_softmax(logits, -1, dtype=dtype), target, everywhere, log_sum
    width = logits.shape[-1]
    index = target - state.get_model_parallel_rank() * width
    owned = (index >= 0) & (index < width)
    index = index.clamp(0, width - 1)
    maximum = collectives.all_reduce(logits.amax(-1), op=dist.ReduceOp.MAX).unsqueeze(-1)
    shifted = logits.to(dtype) - maximum.to(dtype)
    log_total = collectives.all_reduce(shifted.exp().sum(-1)).log().unsqueeze(-1)
    log_sum = (maximum.to(dtype) + log_total).squeeze(-1) if with_sum else None
    return shifted.sub_(log_total), index, owned, log_sum


def _at_target(log_probability: torch.Tensor, index: torch.Tensor, owned: torch.Tensor) -> torch.Tensor:
    """Each token's log-probability of its target, from whichever rank has that column."""
    found = log_probability.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    if state.get_model_parallel_world_size() == 1:
        return found
    return collectives.all_reduce(torch.where(owned, found, torch.zeros_like(found)))
