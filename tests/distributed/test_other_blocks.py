"""A model of Mamba, gMLP, aMLP and transformer layers trains the same in every layout."""

import functools

import pytest

from tests.distributed import test_documents
from tests.distributed.layouts import train_in_layout
from tests.distributed.test_layouts import LAYOUTS, assert_same_training

MIXED = {
    "attention_config": ["mamba", "amlp", "global", "gmlp"],
    "mamba_use_bias_in_linears": True,
    "gmlp_attn_dim": 8,
}


@functools.cache
def single_process() -> dict:
    return train_in_layout(dict(MIXED))


@pytest.mark.parametrize("layout", ["tp2", "tp2xpp2+sp", "dp2+zero3", "tp2+partitioned checkpoints"])
def test_a_mixed_model_trains_the_same_in_every_layout(layout):
    assert_same_training(train_in_layout({**MIXED, **LAYOUTS[layout]}), single_process())


def test_half_precision_follows_the_fp32_loss():
    settings = {**MIXED, "precision": "bfloat16", **LAYOUTS["tp2+sp"]}
    losses = train_in_layout(settings, with_gradients=False)["losses"]
    assert losses == pytest.approx(single_process()["losses"], rel=1e-2)


def test_mamba_keeps_isolated_documents_apart_in_every_layout():
    kinds = {"attention_config": ["mamba", "global", "mamba", "mamba"]}
    single = test_documents.train_in_layout({}, **kinds)
    assert_same_training(test_documents.train_in_layout(LAYOUTS["tp2xpp2+sp"], **kinds), single)
    mixed_up = test_documents.train_in_layout({}, **kinds, isolate_documents=False)
    assert mixed_up["losses"] != single["losses"]
