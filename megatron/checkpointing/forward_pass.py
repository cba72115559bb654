"""Proof that a loaded model is the saved one: both give the same logits for the same tokens."""

from pathlib import Path

import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.checkpointing.safe_engine import load_file
from megatron.common import device
from megatron.common.console import info
from megatron.common.errors import CheckpointError

LOGITS_FILE = "validation_logits.pt"
TOLERANCE = 1e-3  # of logits, where kernels or layouts differ


@torch.no_grad()
def do_forward_pass(neox_args, model, inference: bool = False) -> torch.Tensor | None:
    """Logits of the token ids 0, 1, ... in a row, fp32 [seq_length, V] on the host; None where the pipeline has its
    earlier stages. Collective over the ranks of a replica.

    Args: model: DeepSpeed engine; inference: whether caches are to be emptied afterwards.
    """
    module, length = model.module, neox_args.seq_length
    was_training = module.training
    tokens = (torch.arange(length, device=device.current_device()) % neox_args.padded_vocab_size).unsqueeze(0)
    if neox_args.is_pipe_parallel:
        logits = _through_the_pipeline(model, tokens)
    else:
        module.inference_mode(use_cache=False)
        logits = module((tokens, torch.arange(length, device=tokens.device).unsqueeze(0)))
        module.train_mode()
    module.train(was_training)
    if inference:
        module.clear_cache()
    return None if logits is None else logits[0].float().cpu()


def _through_the_pipeline(model, tokens: torch.Tensor) -> torch.Tensor | None:
    """Logits [1, s, V] on the last stage."""
    cut, model.batch_function.length = model.batch_function.length, None
    # A batch of one sample, between batches of others.
    model.reset_activation_shape()
    batch = {"text": F.pad(tokens, (0, 1))}
    _, logits = model.eval_batch(iter([batch]), return_logits=True, num_micro_batches=1)
    model.reset_activation_shape()
    model.batch_function.length = cut
    return mpu.gather_from_model_parallel_region(logits) if model.is_last_stage() else None


def check_forward_pass(neox_args, model, checkpoint_logits: torch.Tensor | None, inference: bool) -> None:
    """Compare the model's logits with saved ones, which only the rank that `keeps_logits` needs to have.

    Raises: CheckpointError on all ranks if they differ.
    """
    logits = do_forward_pass(neox_args, model, inference)
    worst = torch.zeros((), device=device.current_device())
    if checkpoint_logits is not None and logits is not None:
        # Another layout has another padding of the vocabulary, whose logits are -inf.
        width = min(logits.shape[-1], checkpoint_logits.shape[-1])
        logits, saved = logits[..., :width], checkpoint_logits[..., :width]
        difference = (logits - saved).abs() - TOLERANCE * saved.abs()
        worst += difference.nan_to_num(torch.inf).masked_fill(logits == saved, 0.0).max().clamp(min=0.0)
    torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
    if worst > TOLERANCE:
        raise CheckpointError(
            f"checkpoint_validation_with_forward_pass: the loaded model's logits differ from the saved ones by "
            f"{float(worst):.2g}: the checkpoint belongs to another model, or code or settings have changed since"
        )
    info("the loaded model gives the logits that were saved with it")


def keeps_logits() -> bool:
    """Whether this is the one rank of the job that saves and checks them."""
    last = mpu.get_pipe_parallel_rank() == mpu.get_pipe_parallel_world_size() - 1
    return last and mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_data_parallel_rank() == 0


def save_logits(neox_args, model, directory: Path) -> None:
    """Add the present logits to a checkpoint."""
    logits = do_forward_pass(neox_args, model)
    if keeps_logits():
        model.checkpoint_engine.save({"logits": logits}, str(directory / LOGITS_FILE))


def check_logits(neox_args, model, directory: Path) -> None:
    """Compare with the logits in a checkpoint, if it has some.

    Raises: CheckpointError if they differ.
    """
    path = directory / LOGITS_FILE
    if path.is_file():
        check_forward_pass(neox_args, model, load_file(path)["logits"] if keeps_logits() else None, False)
    else:
        info(f"{directory} has no logits to compare with: it was saved without {LOGITS_FILE}")
