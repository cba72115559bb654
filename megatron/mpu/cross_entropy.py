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
    vocabulary = vocab_parallel_logits.shape[-1]
    logits = vocab_parallel_logits.reshape(-1, vocabulary)
    flat_target = target.reshape(-1)
    alone = state.get_model_parallel_world_size() == 1
    if alone and logits.dtype == dtype and logits.numel() <= CHUNK_ELEMENTS:
        return F.cross_entropy(logits, flat_target, reduction="none").view(target.shape)
    return _VocabParallelCrossEntropy.apply(logits, flat_target, dtype).view(target.shape)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Works through chunks of tokens, so one chunk is all that ever exists in `dtype`. The gradient (softmax minus
    one-hot, in the dtype of the logits) is made in the forward pass: the backward only scales it."""

    @staticmethod
    def forward(ctx, logits, target, dtype):
        loss = torch.empty(target.shape, dtype=dtype, device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
        for first in range(0, len(target), rows):
            chunk = slice(first, first + rows)
            log_probability, index, owned = _log_softmax(logits[chunk], target[chunk], dtype)
            loss[chunk] = -_at_target(log_probability, index, owned)
            if gradient is not None:
                probability = log_probability.exp_()
                probability.scatter_add_(-1, index.unsqueeze(-1), -owned.to(dtype).unsqueeze(-1))
                gradient[chunk] = probability
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, gradient_of_loss):
        (gradient,) = ctx.saved_tensors
        # In place, to save a copy of the logits' size; autograd notices if a retained graph is walked twice.
        return gradient.mul_(gradient_of_loss.unsqueeze(-1).to(gradient.dtype)), None, None


def _log_softmax(
    logits: torch.Tensor, target: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities [n, V/tp] of this rank's columns, the targets' columns here, and whether they are here."""
    if state.get_model_parallel_world_size() == 1:
        return torch.log_softmax(logits, -1, dtype=dtype), target, torch.ones_like(target, dtype=torch.bool)
    width = logits.shape[-1]
    index = target - state.get_model_parallel_rank() * width
    owned = (index >= 0) & (index < width)
    index = index.clamp(0, width - 1)
    maximum = collectives.all_reduce(logits.amax(-1), op=dist.ReduceOp.MAX).unsqueeze(-1)
    shifted = logits.to(dtype) - maximum.to(dtype)
    total = collectives.all_reduce(shifted.exp().sum(-1)).unsqueeze(-1)
    return shifted.sub_(total.log()), index, owned


def _at_target(log_probability: torch.Tensor, index: torch.Tensor, owned: torch.Tensor) -> torch.Tensor:
    """Each token's log-probability of its target, from whichever rank has that column."""
    found = log_probability.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    if state.get_model_parallel_world_size() == 1:
        return found
    return collectives.all_reduce(torch.where(owned, found, torch.zeros_like(found)))
