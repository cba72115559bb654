"""A GPU as far as its absence can be hidden: tensors that say they are on it, have shapes and dtypes, and no values.

    def steps() -> list[str]:
        with FakeGPU() as gpu:
            ...
        return gpu.waits

    found = run_on_fake_gpu(steps, tmp_path)

Operations on tensors of different devices, dtypes that do not fit, values asked of the device and tensors of the wrong
kind given to collectives show themselves as they would on a GPU. What kernels compute is left to tests/gpu.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.common.paths import ROOT

SECONDS = 300


def run_on_fake_gpu(function: Callable[[], Any], folder: Path) -> Any:
    """What a function of a test module returns (plain values), run in a process of its own whose torch finds a GPU.

    Raises: AssertionError with the process's output if it fails.
    """
    environment = {**os.environ, "DS_ACCELERATOR": "cuda", "TORCH_EXTENSIONS_DIR": str(folder)}
    environment.pop("CUDA_HOME", None)
    where, answer = f"{function.__module__}:{function.__name__}", folder / "answer.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.common.fake_gpu.process", str(_library(folder)), where, str(answer)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return json.loads(answer.read_text())


def _library(folder: Path) -> Path:
    import torch

    library, home = folder / "cuda.so", Path(torch.__file__).parent
    command = [
        "g++", "-std=c++20", "-shared", "-fPIC", f"-I{home}/include", str(Path(__file__).with_name("cuda.cpp")),
        f"-L{home}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home}/lib", "-o", str(library),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return library
