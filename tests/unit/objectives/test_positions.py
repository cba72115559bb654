import types

import torch

from megatron.objectives.pretrain import Pretrain, positions_in_documents
from tests.common.models import model_args

EOD = 9


def test_positions_start_again_after_each_end_of_document():
    tokens = torch.tensor([[1, 2, EOD, 3, EOD, EOD, 4, 5], [EOD, 1, 2, 3, 4, 5, 6, EOD]])
    assert positions_in_documents(tokens, EOD).tolist() == [
        [0, 1, 2, 0, 1, 0, 0, 1],
        [0, 0, 1, 2, 3, 4, 5, 6],
    ]


def collated_positions(isolate_documents):
    args = model_args(isolate_documents=isolate_documents)
    args.tokenizer = types.SimpleNamespace(eod=EOD)
    (_, position_ids), (_, loss_mask) = Pretrain(args).collate({"text": torch.tensor([[1, EOD, 3, 4]])})
    assert loss_mask.tolist() == [[1.0, 1.0, 1.0]]
    return position_ids.tolist()


def test_an_objective_counts_positions_in_documents_when_they_are_isolated():
    assert collated_positions(True) == [[0, 1, 0]]
    assert collated_positions(False) == [[0, 1, 2]]
