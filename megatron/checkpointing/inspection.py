"""What is in checkpoint files, in words: names, types, sizes, statistics, and what two of them have in common."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from megatron.checkpointing.safe_engine import load_file
from megatron.common.console import human_bytes
from megatron.common.errors import CheckpointError

SUFFIXES = (".pt", ".ckpt")
_LONGEST = 80  # characters of a value that is shown
_Items = Iterator[tuple[str, object]]


def checkpoint_files(place: str | Path) -> dict[str, Path]:
    """{name: path} of a file, or of all files below a folder that torch may have written, sorted.

    Raises: CheckpointError if there are none.
    """
    place = Path(place)
    if place.is_file():
        return {place.name: place}
    found = sorted(path for path in place.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not found:
        raise CheckpointError(f"{place} is no checkpoint file and no folder of .pt or .ckpt files")
    return {str(path.relative_to(place)): path for path in found}


def leaves(value: object, path: str = "") -> _Items:
    """(path, value) of everything in nested containers and plain objects; empty containers are values."""
    children = _children(value)
    if not children:
        yield path, value
    for name, child in children.items():
        yield from leaves(child, f"{path}/{name}" if path else name)


def _children(value: object) -> dict[str, object]:
    if isinstance(value, dict):
        return {str(key): child for key, child in value.items()}
    if isinstance(value, (list, tuple)) and not all(isinstance(item, (int, float, str)) for item in value):
        return {str(number): child for number, child in enumerate(value)}
    # A loss scaler, and the like.
    plain = isinstance(value, (torch.Tensor, type, str, bytes)) or type(value).__module__ in (
        "numpy",
        "builtins",
    )
    return {} if plain else dict(getattr(value, "__dict__", {}))


def contents(path: Path, attributes: list[str] | None = None) -> dict[str, object]:
    """The leaves of a file.

    Args: attributes: paths, with "/" between levels, of what is wanted with all that lies below; None: everything.
    Raises: CheckpointError if the file cannot be read.
    """
    found = dict(leaves(load_file(path, mmap=True)))
    if not attributes:
        return found
    return {
        name: value
        for name, value in found.items()
        if any(_lies_under(name, attribute) for attribute in attributes)
    }


def check_attributes(attributes: list[str] | None, files: Iterable[dict[str, object]], place: str) -> None:
    """Raises: CheckpointError if there is an attribute that none of the files holds."""
    names = [name for content in files for name in content]
    for attribute in attributes or []:
        if not any(_lies_under(name, attribute) for name in names):
            raise CheckpointError(f"{place} holds nothing under {attribute!r}")


def _lies_under(name: str, attribute: str) -> bool:
    return name == attribute or name.startswith(f"{attribute}/")


def described(value: object, statistics: bool = False) -> str:
    """Type and value; of a tensor shape, dtype and size, and on demand statistics."""
    if not isinstance(value, torch.Tensor):
        text = repr(value).replace("\n", " ")
        text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
        return f"{type(value).__name__} {text}"
    kind = str(value.dtype).removeprefix("torch.")
    text = f"tensor {list(value.shape)} {kind} {human_bytes(value.numel() * value.element_size())}"
    return text + (f" {_statistics(value)}" if statistics and value.numel() else "")


def _statistics(tensor: torch.Tensor) -> str:
    values = tensor.double()
    finite = values[values.isfinite()]
    parts = [f"{values.numel() - finite.numel()} not finite"] if finite.numel() < values.numel() else []
    if finite.numel():
        named = {
            "mean": finite.mean(),
            "std": finite.std(correction=0),
            "min": finite.min(),
            "max": finite.max(),
        }
        parts = [*(f"{name} {float(number):.4g}" for name, number in named.items()), *parts]
    return ", ".join(parts)


def comparison(first: dict[str, object], second: dict[str, object], differences_only: bool) -> Iterator[str]:
    """A line for every path of two files: which of them have it, and whether its values agree."""
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            yield f"{name}: only in the {'second' if name not in first else 'first'}"
            continue
        verdict = difference(first[name], second[name])
        if verdict is not None:
            yield f"{name}: {verdict}"
        elif not differences_only:
            yield f"{name}: equal, {described(first[name])}"


def _close(first: torch.Tensor, second: torch.Tensor, **tolerances: float) -> bool:
    return torch.allclose(first.double(), second.double(), **tolerances, equal_nan=True)


def difference(first: object, second: object) -> str | None:
    """In what two values differ, in words; None if they are equal."""
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        own, other = described(first), described(second)
        same = type(first) is type(second) and repr(first) == repr(second)
        return None if same else f"{own} and {other}"
    if first.shape != second.shape:
        return f"shapes {list(first.shape)} and {list(second.shape)}"
    parts = [f"{first.dtype} and {second.dtype}"] if first.dtype != second.dtype else []
    # Large whole numbers are not the same in floating point.
    convertible = bool(parts) or first.is_floating_point()
    if not torch.equal(first, second) and not (convertible and _close(first, second, rtol=0.0, atol=0.0)):
        distance = (first.double() - second.double()).abs()
        # Of what is not finite on one side there is no distance.
        finite = distance[distance.isfinite()]
        farthest = float(finite.max()) if finite.numel() else math.inf
        near = "within" if _close(first, second) else "beyond"
        parts.append(f"values differ by up to {farthest:.4g}, {near} rounding")
    return "; ".join(parts) or None
