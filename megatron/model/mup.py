"""Maximal update parametrisation (arXiv 2203.03466): hyperparameters found on a narrow model hold for a wide one.

A file of base shapes says how wide the narrow model was. What follows from the ratio of the two shapes of a parameter,
where w is the ratio of the widths that are summed over (fan-in):

    matrix of two widths    initial values / sqrt(w)    Adam: rate / w      SGD: rate * fan-out ratio / w
    vector of one width     unchanged                   Adam: unchanged     SGD: rate * ratio
    output                  its input is divided by w (and multiplied by mup_output_temp)
    attention               scores are scaled by mup_attn_temp / d instead of 1 / sqrt(d)
    embedding               its output is multiplied by mup_embedding_mult

The decay of an optimizer group is multiplied by what its rate is divided by, so that their product stays.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from megatron.common.errors import ConfigError
from megatron.mpu.parameters import InitMethod, ParameterSpec, ones_, zeros_

EMBEDDING = "0.word_embeddings.weight"

BaseShape = tuple[int | None, ...]


@dataclass(frozen=True)
class Widths:
    """A parameter's dimensions that grow with the width of the model, as ratios to the base model's.

    Attributes: base: shape in the base model; ratios: one for each such dimension, fan-out before fan-in.
    """

    base: tuple[int, ...]
    ratios: tuple[float, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], base: BaseShape) -> "Widths":
        pairs = list(zip(shape, base, strict=True))
        return cls(
            tuple(size if first is None else first for size, first in pairs),
            tuple(size / first for size, first in pairs if first is not None),
        )

    @property
    def matrix_like(self) -> bool:
        return len(self.ratios) > 1

    @property
    def fan_in(self) -> float:
        return self.ratios[-1] if self.ratios else 1.0

    def rate_divisor(self, optimizer: str) -> float:
        """What the learning rate is divided by."""
        if optimizer == "sgd":
            return self.fan_in / self.ratios[0] if self.matrix_like else 1.0 / self.fan_in
        return self.fan_in if self.matrix_like else 1.0


def file_of_base_shapes(path: str) -> Path:
    """Where base shapes are kept. GPT-NeoX has a file for each rank; whole shapes, as here, need one only."""
    return Path(f"{path}.0")


def base_shapes(neox_args) -> Mapping[str, BaseShape]:
    """{logical name: shape in the base model, with None for dimensions that do not grow}, of base_shapes_file.

    The package mup writes such files too. Raises: ConfigError if the file is not there or not of this kind.
    """
    path = file_of_base_shapes(neox_args.base_shapes_file)
    if not path.is_file():
        path = Path(neox_args.base_shapes_file)
    if not path.is_file():
        raise ConfigError(
            f"base_shapes_file: there is no {path} and no {path}.0; write it with save_base_shapes: true and the "
            "config of the base model"
        )
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> Mapping[str, BaseShape]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {_logical_name(name): _shape(dims) for name, dims in content.items()}
    except (UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError, ValueError) as problem:
        raise ConfigError(
            f"base_shapes_file: {path} is no file of base shapes (lines such as name: [dim, dim]); write it anew with "
            "save_base_shapes: true"
        ) from problem


def _logical_name(key: str) -> str:
    name = key.removeprefix("module.").removeprefix("sequential.")
    return name.replace("tied_modules.embed.", "0.")


def _shape(dims: list) -> BaseShape:
    if not all(size is None or (isinstance(size, int) and size > 0) for size in dims):
        raise ValueError(f"{dims} is no shape")
    return tuple(dims)


def base_width(neox_args) -> int:
    """hidden_size of the base model; the model's own without muP."""
    width = _base_of(neox_args, EMBEDDING)[-1] if neox_args.use_mup else None
    return neox_args.hidden_size if width is None else width


def _base_of(neox_args, name: str) -> BaseShape:
    shapes = base_shapes(neox_args)
    if name not in shapes:
        raise ConfigError(
            f"base_shapes_file: {neox_args.base_shapes_file} has no {name}: it is of another kind of model; write it "
            "with save_base_shapes: true and this config at the base width"
        )
    return shapes[name]


def attention_scale(neox_args, head_size: int) -> float:
    """Factor on attention scores."""
    if neox_args.use_mup:
        return neox_args.mup_attn_temp / head_size
    return neox_args.attention_softmax_scale or 1.0 / math.sqrt(head_size)


def readout_scale(neox_args) -> float:
    """Factor on the hidden states that become logits."""
    if not neox_args.use_mup:
        return 1.0
    return neox_args.mup_output_temp * base_width(neox_args) / neox_args.hidden_size


def embedding_scale(neox_args) -> float:
    """Factor on what the embedding gives."""
    return neox_args.mup_embedding_mult if neox_args.use_mup else 1.0


def apply_base_shapes(model, neox_args) -> None:
    """Let the parameters of a model that is just built know their widths, for their initial values and their rates.

    They get the attributes widths and width_mult (what their learning rate is divided by).
    Raises: ConfigError where the base shapes are of another kind of model, or a block has weights of its own kind.
    """
    for name, parameter in model.logical_named_parameters():
        base = _base_of(neox_args, name)
        spec = parameter.spec
        if len(base) != len(spec.logical_shape):
            raise ConfigError(
                f"base_shapes_file: {name} has {len(base)} dimensions in {neox_args.base_shapes_file} and "
                f"{len(spec.logical_shape)} in this model; write it anew with save_base_shapes: true"
            )
        parameter.widths = Widths.of(spec.logical_shape, base)
        parameter.width_mult = parameter.widths.rate_divisor(neox_args.optimizer_type)
        parameter.spec = replace(spec, init=scaled_init(spec, parameter.widths, name))


def scaled_init(spec: ParameterSpec, widths: Widths, name: str) -> InitMethod:
    """The initialiser with values as large as the base model's, and 1 / sqrt(w) of that for a matrix."""
    rms = getattr(spec.init, "rms", None)
    if rms is None:
        if widths.matrix_like and spec.init not in (zeros_, ones_):
            raise ConfigError(
                f"use_mup does not know how the initial values of {name} grow with the width: choose attention_config "
                "without blocks of that kind"
            )
        return spec.init
    factor = rms(widths.base) / rms(spec.logical_shape)
    if widths.matrix_like:
        factor /= math.sqrt(widths.fan_in)

    def init_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        spec.init(tensor, generator)
        return tensor.mul_(factor)

    return init_
