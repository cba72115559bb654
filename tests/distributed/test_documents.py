"""Isolated documents train alike in every layout."""

import functools

import pytest
import torch

from tests.common.distributed import run_distributed
from tests.distributed import layouts
from tests.distributed.test_layouts import LAYOUTS, assert_same_training

EOD, STEPS = 0, 8  # of the tokenizer that layouts.BASE names
USED = ("tp2", "pp2", "tp2xpp2", "tp2xpp2+sp", "pp2+zero1+dp2", "tp2+partitioned checkpoints", "2x2")
plain_samples = layouts.samples


def documents(first: int, count: int) -> torch.Tensor:
    """The samples of the other layout tests, each cut into documents at places of its own."""
    rows = plain_samples(first, count)
    for number, row in enumerate(rows, first):
        generator = torch.Generator().manual_seed(number)
        row[torch.randperm(layouts.SEQUENCE, generator=generator)[:3]] = EOD
    return rows


def train(settings, world_size):
    layouts.samples = documents
    return layouts.train_steps(settings, STEPS, world_size)


def train_in_layout(layout: dict, **keys) -> dict:
    settings = {"isolate_documents": True, **layout, **keys}
    world_size = settings.pop("processes", 1)
    ranks = run_distributed(train, world_size, settings, world_size, timeout=240)
    return {"losses": ranks[0]["losses"], "gradients": layouts.merge_gradients(ranks)}


@functools.cache
def single_process() -> dict:
    return train_in_layout({})


@pytest.mark.parametrize("layout", USED)
def test_losses_and_gradients_equal_the_single_process_run(layout):
    assert_same_training(train_in_layout(LAYOUTS[layout]), single_process())


def test_isolation_changes_the_loss():
    assert train_in_layout({}, isolate_documents=False)["losses"] != single_process()["losses"]
