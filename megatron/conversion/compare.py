"""Whether a conversion kept the function of a model."""

import logging
from pathlib import Path

import torch

from megatron import mpu
from megatron.checkpointing.weights import SavedWeights
from megatron.common.console import info
from megatron.common.errors import CheckpointError
from megatron.conversion.saved_model import SavedModel
from megatron.conversion.specs import model_config
from megatron.model import build_sequential
from megatron.neox_arguments.loading import read_files

TOLERANCE = 1e-4
_LENGTH = 64


@torch.no_grad()
def check_logits(theirs: str | Path, config: str | Path, checkpoint: str | Path) -> float:
    """Compare the logits of a Hugging Face model and of a checkpoint for random tokens, in fp32 and one process.

    Returns: the largest difference relative to the largest logit. Raises: CheckpointError if that is above 1e-4.
    """
    from transformers import AutoModelForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    reference = AutoModelForCausalLM.from_pretrained(str(theirs), dtype=torch.float32).eval()
    args = model_config(read_files([config])[0])
    rows = reference.config.vocab_size
    length = min(_LENGTH, args.max_position_embeddings - args.opt_pos_emb_offset)
    tokens = torch.randint(rows, (2, length), generator=torch.Generator().manual_seed(0))
    with mpu.use(mpu.ParallelState()):
        args.padded_vocab_size = rows
        model = build_sequential(args).eval()
        saved = SavedModel(SavedWeights(checkpoint), args, rows)
        for name, parameter in model.logical_named_parameters():
            parameter.copy_(saved.whole(name))
        found = model((tokens, torch.arange(length).expand_as(tokens)))
    expected = reference(tokens).logits
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"the logits of {theirs} and {checkpoint} differ by {difference:.1e} of the largest"
        )
    info(f"the logits of both models agree ({difference:.1e} of the largest)")
    return difference
