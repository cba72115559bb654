"""CUDA kernels of this project: compiled by nvcc at the first use, into one library without torch's headers.

That takes seconds instead of minutes, needs no matching ABI, and works beside any torch; the library is called through
ctypes, with pointers of tensors. Whoever uses a kernel has the same in plain torch for where there is none.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from megatron.common.console import warn
from megatron.common.errors import LaunchError
from megatron.common.files import atomic_path

SOURCES = sorted(Path(__file__).parent.glob("*.cu"))
TOOLKIT = Path("/usr/local/cuda")  # where CUDA is installed unless told otherwise
DEFAULT_BUILD_PATH = Path(__file__).parent / "build"


def compile_library(build_path: str | Path, architectures: Sequence[str] = ("native",)) -> Path:
    """Compile all sources, unless that was done before, and return the library's path.

    Args: architectures: as nvcc names them after -arch or in -gencode, e.g. "sm_90"; "native" is that of the GPUs here.
    Raises: LaunchError with the first line of what nvcc said.
    """
    content = b"".join(source.read_bytes() for source in SOURCES) + " ".join(architectures).encode()
    library = Path(build_path) / f"kernels_{hashlib.blake2b(content, digest_size=8).hexdigest()}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    if len(architectures) == 1:
        targets = [f"-arch={architectures[0]}"]
    else:
        targets = [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in architectures]
    # Several processes may compile at once; whoever is last replaces the file as a whole.
    with atomic_path(library) as temporary:
        command = [
            _nvcc() or "nvcc",
            "-O3",
            "--use_fast_math",
            "-std=c++17",
            "-shared",
            "-Xcompiler",
            "-fPIC",
        ]
        done = subprocess.run(
            [*command, *targets, "-o", str(temporary), *map(str, SOURCES)], capture_output=True, text=True
        )
        if done.returncode:
            raise LaunchError(
                f"nvcc could not compile the kernels: {(done.stderr or done.stdout).splitlines()[0]}"
            )
    return library


_loaded: list[ctypes.CDLL | None] = []


def load(build_path: str | Path | None = None) -> ctypes.CDLL | None:
    """The library for the GPUs of this machine, or None where there is none to be had, which is said once.

    Args: build_path: the config's fused_kernels_build_path; None takes `build` beside this file. The first call counts.
    """
    if not _loaded:
        _loaded.append(_load(Path(build_path or DEFAULT_BUILD_PATH)))
    return _loaded[0]


def _load(build_path: Path) -> ctypes.CDLL | None:
    if _nvcc() is None:
        warn(
            "RWKV's kernel is replaced by plain torch: there is no nvcc here; install the CUDA toolkit for speed"
        )
        return None
    try:
        return ctypes.CDLL(str(compile_library(build_path)))
    except (LaunchError, OSError) as error:
        warn(f"RWKV's kernel is replaced by plain torch: {error} (fused_kernels_build_path is {build_path})")
        return None


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    if home:
        return shutil.which("nvcc", path=f"{home}/bin")
    # Its installer leaves PATH alone.
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{TOOLKIT}/bin")
