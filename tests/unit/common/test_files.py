"""What cannot be written is said in one line."""

from pathlib import Path

import pytest
import torch

from megatron.common.errors import NeoXError
from megatron.common.files import writing

FULL = "/dev/full"


@pytest.mark.skipif(not Path(FULL).exists(), reason=f"this system has no {FULL}")
def test_a_full_disk_is_named_whoever_writes():
    with pytest.raises(
        NeoXError, match=r"^here cannot be written \(No space left on device\); free some space"
    ):
        with writing("here"), open(FULL, "wb", buffering=0) as file:
            file.write(b"x")
    # torch's own writer does not tell the reason.
    with pytest.raises(NeoXError, match=r"^here cannot be written \("), writing("here"):
        torch.save(torch.zeros(1000), FULL)


def test_the_file_that_an_error_names_is_named(tmp_path):
    with pytest.raises(NeoXError, match=r"^.*no/file cannot be written \(No such file or directory\)"):
        with writing("here"):
            open(tmp_path / "no/file", "wb")


def test_defects_of_the_program_stay_what_they_are():
    with pytest.raises(RuntimeError, match="^a defect$"), writing("here"):
        raise RuntimeError("a defect")
