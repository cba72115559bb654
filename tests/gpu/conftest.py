"""Tests that need a GPU; they are skipped, with the reason, where there is none."""

import pytest

from tests.common.distributed import has_gpu


@pytest.fixture(autouse=True)
def gpu():
    if not has_gpu():
        pytest.skip("needs an NVIDIA GPU")
