"""Checkpoint files are data: nothing in them is executed."""

import argparse
import fractions
import os
import pathlib

import numpy
import pytest
import torch

from megatron.checkpointing.safe_engine import SafeCheckpointEngine, load_file
from megatron.common.errors import CheckpointError


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_file_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"module": Payload(tmp_path / "executed")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt holds more than tensors"):
        load_file(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_tensors_random_states_and_loss_scalers_survive(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    state = {
        "module": {"weight": torch.arange(4.0)},
        "np_rng_state": numpy.random.RandomState(3).get_state(),
        "loss_scaler": DynamicLossScaler(8.0, 2.0, 2, 1.0, 1, False),
    }
    torch.save(state, tmp_path / "state.pt")
    loaded = load_file(tmp_path / "state.pt")
    assert torch.equal(loaded["module"]["weight"], state["module"]["weight"])
    assert numpy.array_equal(loaded["np_rng_state"][1], state["np_rng_state"][1])
    assert loaded["loss_scaler"].cur_scale == 8.0


@pytest.mark.parametrize(
    "content",
    [argparse.Namespace(lr=1), numpy.float64(3.0), pathlib.PurePosixPath("/"), fractions.Fraction(1, 2)],
)
def test_objects_that_checkpoints_have_no_need_of_are_refused_in_one_line(tmp_path, content):
    torch.save({"args": content}, tmp_path / "strange.pt")
    with pytest.raises(CheckpointError, match=r"strange\.pt holds more than tensors") as caught:
        load_file(tmp_path / "strange.pt", mmap=True)
    assert "\n" not in str(caught.value)


def test_names_of_older_programs_are_understood(tmp_path):
    """Pickles hold the names that modules had when they were written."""
    from deepspeed.utils.tensor_fragment import fragment_address

    state = {
        "np_rng_state": numpy.random.RandomState(3).get_state(),
        "slices": fragment_address(numel=7, start=1),
    }
    torch.save(state, tmp_path / "new.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "new.pt").read_bytes()
    assert b"numpy._core.multiarray\n" in content and b"deepspeed.utils.tensor_fragment\n" in content
    content = content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    content = content.replace(b"deepspeed.utils.tensor_fragment\n", b"deepspeed.runtime.bf16_optimizer\n")
    (tmp_path / "old.pt").write_bytes(content)
    loaded = load_file(tmp_path / "old.pt", mmap=True)
    assert numpy.array_equal(loaded["np_rng_state"][1], state["np_rng_state"][1])
    assert loaded["slices"] == state["slices"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + b"\0" * 100])
def test_a_damaged_file_is_one_line_with_its_name(tmp_path, content):
    (tmp_path / "torn.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"torn\.pt") as caught:
        load_file(tmp_path / "torn.pt")
    assert "\n" not in str(caught.value)


def test_a_failed_write_is_kept_for_later(tmp_path):
    engine = SafeCheckpointEngine()
    engine.create(None)
    engine.save({"a": torch.ones(1)}, str(tmp_path / "missing folder" / "x.pt"))
    assert "missing folder" in engine.failure
