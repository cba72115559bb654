"""Compiling and loading helpers.cpp: once per machine and version of the source, on first need, never at import."""

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

from megatron.common.console import info, warn
from megatron.common.errors import DataError
from megatron.common.files import atomic_path
from megatron.data.caches import cache_root, file_lock

MODULE = "neox_data_helpers"
SOURCE = Path(__file__).with_name("helpers.cpp")
FLAGS = ("-O3", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-fvisibility=hidden")
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_SECONDS = 300


def library_path() -> Path:
    """Where the compiled module is kept; the name changes with the source, the interpreter and the C library."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    identity = [SOURCE.read_bytes(), " ".join(FLAGS).encode(), suffix.encode(), _c_library().encode()]
    digest = hashlib.sha256(b"\0".join(identity)).hexdigest()[:16]
    return cache_root() / "helpers" / f"{MODULE}-{digest}{suffix}"


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def compile_helper() -> Path:
    """Compile helpers.cpp unless that has been done; any number of processes may call this at once.

    Returns: the path of the module. Raises: DataError that says why it cannot be compiled.
    """
    library = library_path()
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(library.with_name(f".{library.name}.lock"), "the index map helpers"):
            if not library.exists():
                info(f"compiling the index map helpers, once, into {library.parent}")
                with atomic_path(library) as temporary:
                    _compile(temporary)
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"the index map helpers cannot be compiled: {error}") from error
    return library


def _compile(output: Path) -> None:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise DataError(
            f"the index map helpers cannot be compiled: none of {', '.join(COMPILERS)} is installed"
        )
    try:
        import pybind11
    except ImportError as error:
        raise DataError("the index map helpers cannot be compiled: pip install pybind11") from error
    includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]
    command = [*compiler.split(), *FLAGS, *includes, str(SOURCE), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise DataError(f"the index map helpers cannot be compiled: {lines[0] if lines else command[0]}")


class _Loaded:
    """What this process knows of the compiled module."""

    module: ModuleType | None = None
    failed = False


def load(compile_if_absent: bool) -> ModuleType | None:
    """The compiled module, or None: not compiled yet and not to be, or not to be had (said once per process)."""
    if _Loaded.module is not None or _Loaded.failed:
        return _Loaded.module
    try:
        path = library_path()
        if not path.exists():
            if not compile_if_absent:
                return None
            compile_helper()
        loader = importlib.machinery.ExtensionFileLoader(MODULE, str(path))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(MODULE, loader))
        loader.exec_module(module)
        _Loaded.module = module
    except (DataError, ImportError, OSError) as error:
        _Loaded.failed = True
        warn(f"{error}; index maps are built in Python, which takes longer")
    return _Loaded.module
