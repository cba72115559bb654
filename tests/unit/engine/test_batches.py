"""Batches on their way to the model."""

import pytest
import torch

from megatron.common.errors import DataError
from megatron.engine.batches import BatchFunction
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.curriculum import Curriculum
from megatron.training import get_batch_pipe
from tests.unit.neox_arguments.basic import minimal


class Objective:
    """Gives batches back as they come."""

    def collate(self, batch):
        return batch


def test_samples_are_cut_to_one_token_more_than_the_model_sees():
    prepare = BatchFunction(Objective(), vocabulary=64)
    batch = {"text": torch.arange(18).view(2, 9), "reward": torch.ones(2)}
    assert prepare(batch)["text"].shape == (2, 9)
    prepare.length = 4
    cut = prepare(batch)
    assert cut["text"].tolist() == [[0, 1, 2, 3, 4], [9, 10, 11, 12, 13]]
    assert cut["reward"].shape == (2,)


def test_a_token_beyond_the_vocabulary_is_told():
    with pytest.raises(DataError, match="the data has token 64 and the model a vocabulary of 64"):
        BatchFunction(Objective(), vocabulary=64)({"text": torch.tensor([[1, 64]])})


@pytest.mark.parametrize(("iteration", "length"), [(None, 8), (2, 16), (100, 32)])
def test_a_pipeline_batch_follows_a_curriculum(iteration, length):
    args = NeoXArgs.from_dict(minimal(iteration=iteration))
    args.padded_vocab_size = 64
    curriculum = Curriculum(lengths=(8, 16, 32), ends=(2, 5))
    text = torch.ones(2, 33, dtype=torch.int64)
    (tokens, position_ids), (labels, loss_mask) = get_batch_pipe({"text": text}, args, curriculum)
    assert {tensor.shape for tensor in (tokens, position_ids, labels, loss_mask)} == {(2, length)}
