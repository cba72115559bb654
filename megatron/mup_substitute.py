"""What surrounds training with the maximal update parametrisation: base shapes, and the check of coordinates."""

import copy
import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from megatron import mpu
from megatron.common import device
from megatron.common.console import info
from megatron.common.errors import MissingPackageError
from megatron.common.files import atomic_write_text
from megatron.common.optional import require
from megatron.engine.batches import to_device
from megatron.model import build_sequential, get_params_for_weight_decay_optimization
from megatron.model.mup import BaseShape, file_of_base_shapes
from megatron.objectives import build_objective
from megatron.optimizers import build_optimizer

# Widths are the number of heads times 2^p.
POWERS = range(2, 9)
POWERS_ON_CPU = range(2, 6)
_WIDTHS = ("hidden_size", "intermediate_size", "ffn_hidden_size", "head_dim")
_COLUMNS = ("width", "module", "t", "l1", "optimizer", "lr")


def of_width(neox_args, hidden_size: int):
    """The config with all its widths in proportion, and as many heads."""
    wide = copy.copy(neox_args)
    for key in _WIDTHS:
        value = getattr(neox_args, key)
        setattr(wide, key, None if value is None else value * hidden_size // neox_args.hidden_size)
    return wide


def make_base_shapes(neox_args) -> dict[str, BaseShape]:
    """{logical name: shape}, with None for the dimensions that do not grow with the model: those that are the same in
    the model of mup_width_scale times the width."""
    base = _logical_shapes(neox_args)
    delta = _logical_shapes(of_width(neox_args, neox_args.hidden_size * neox_args.mup_width_scale))
    return {
        name: tuple(None if size == other else size for size, other in zip(shape, delta[name], strict=True))
        for name, shape in base.items()
    }


def _logical_shapes(neox_args) -> dict[str, tuple[int, ...]]:
    plain = copy.copy(neox_args)
    plain.use_mup = False
    with torch.device("meta"):
        model = build_sequential(plain)
    return {name: tuple(parameter.spec.logical_shape) for name, parameter in model.logical_named_parameters()}


def save_base_shapes(neox_args, base_shapes: str | None = None, use_cache: bool = False) -> None:
    """Write the shapes of the config's model for base_shapes_file, in the form of the package mup.

    Args: base_shapes: another file than base_shapes_file; use_cache: makes no difference to shapes.
    """
    path = file_of_base_shapes(base_shapes or neox_args.base_shapes_file)
    if torch.distributed.get_rank() == 0:
        content = {name: list(shape) for name, shape in make_base_shapes(neox_args).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, yaml.safe_dump(content, sort_keys=False, default_flow_style=None))
        info(f"base shapes of width {neox_args.hidden_size} are in {path}")


def mup_weights_reinit(neox_args, model) -> None:
    """Give the model its initial weights again."""
    named = model.logical_named_parameters()
    mpu.initialize_parameters(named, neox_args.seed, neox_args.use_cpu_initialization)


def get_coord_data(
    neox_args,
    timers,
    lr_scheduler,
    models: Mapping[int, Callable[[], torch.nn.Module]],
    dataloader: Iterator,
    optimizer: str = "sgd",
    lr: float | None = None,
    mup: bool = True,
    filter_trainable_by_name: Callable[[str], bool] | None = None,
    nsteps: int = 3,
    nseeds: int = 1,
) -> list[dict]:
    """Sizes of activations during the first steps of models of several widths, on one batch.

    Args:
        models: width -> what builds the model for neox_args.seed.
        dataloader: gives batches; the first is used.
        lr: 0.1 for sgd and 1e-3 for adam by default.
        mup: the models have muP, so that the learning rates of their groups differ.
        filter_trainable_by_name: parameters whose name it refuses are frozen.
        timers, lr_scheduler: not needed; the rate is constant.
    Returns: a record for each width, module and step: width, module, t (1 to nsteps + 1), l1 (mean size of the
    module's output), optimizer, lr.
    """
    rate = lr if lr is not None else (0.1 if optimizer == "sgd" else 1e-3)
    batch = to_device(next(dataloader), neox_args.padded_vocab_size)
    seed, records = neox_args.seed, []
    for number in range(nseeds):
        neox_args.seed = seed + number
        for width, build in models.items():
            model = build()
            for name, parameter in model.logical_named_parameters():
                if filter_trainable_by_name is not None and not filter_trainable_by_name(name):
                    parameter.requires_grad = False
            sizes = _train(neox_args, model, batch, optimizer, rate, nsteps + 1, mup)
            records += [
                dict(zip(_COLUMNS, (width, module, t, l1, optimizer, rate), strict=True))
                for t, step in enumerate(sizes, 1)
                for module, l1 in step.items()
            ]
    neox_args.seed = seed
    return records


def _train(
    neox_args, model, batch: dict, optimizer: str, rate: float, steps: int, mup: bool
) -> list[dict[str, float]]:
    """One dict per step: module -> mean absolute value of its output."""
    objective = build_objective(neox_args)
    settings = copy.copy(neox_args)
    settings.weight_decay, settings.use_mup = 0.0, mup
    groups = get_params_for_weight_decay_optimization(model, settings)
    stepper = build_optimizer(optimizer, groups, {"lr": rate}, 0.0)
    for group in stepper.param_groups:
        group["lr"] = rate / group.get("width_mult", 1.0)
    inputs, targets = objective.collate(batch)
    found = []
    for _ in range(steps):
        sizes: dict[str, float] = {}
        with _measured(model, sizes):
            loss = objective.loss(model(inputs), targets).value
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        found.append(sizes)
    return found


@contextmanager
def _measured(model: torch.nn.Module, sizes: dict[str, float]) -> Iterator[None]:
    """Within the block, note how large the outputs of the layers and of their parts are."""

    def note(name: str) -> Callable:
        def hook(module, inputs, output) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor):
                finite = tensor.detach().float().masked_fill(tensor.detach().isinf(), 0.0)
                sizes[name] = finite.abs().mean().item()

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.sequential.named_modules()
        if name and name.count(".") <= 1
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mup_coord_check(neox_args, timers, lr_scheduler, train_data_iterator: Iterator) -> None:
    """Write coord_check_up.RANK (with muP) and coord_check_sp.RANK (without) into the working directory: the numbers as
    .csv, and plots as .jpg where matplotlib is installed. With muP no curve grows with the width.

    Uses the config's optimizer and learning rate, and widths of num_attention_heads * 2^p.
    """
    powers = POWERS if device.has_accelerator() else POWERS_ON_CPU
    widths = [neox_args.num_attention_heads * 2**power for power in powers]
    batch = next(train_data_iterator)
    for mup, name in ((True, "up"), (False, "sp")):
        models = {}
        for width in widths:
            wide = of_width(neox_args, width)
            wide.use_mup = mup
            models[width] = lambda wide=wide: _build(wide)
        records = get_coord_data(
            neox_args,
            timers,
            lr_scheduler,
            models,
            iter([batch]),
            neox_args.optimizer_type,
            neox_args.lr,
            mup,
        )
        write_coord_data(records, Path(f"coord_check_{name}.{torch.distributed.get_rank()}"))


def _build(neox_args) -> torch.nn.Module:
    with device.current_device():
        return build_sequential(neox_args)


def write_coord_data(records: list[dict], path: Path) -> None:
    """Write records to path + ".csv", and plot them to path + ".jpg" where matplotlib is installed."""
    table = path.with_name(f"{path.name}.csv")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(records)
    try:
        plot = _plot(records, path.with_name(f"{path.name}.jpg"))
    except MissingPackageError as missing:
        info(f"the coordinate check is in {table}; without a plot, since {missing}")
    else:
        info(f"the coordinate check is in {table}, and plotted in {plot}")


def _plot(records: list[dict], path: Path) -> Path:
    matplotlib = require("matplotlib", "plot", "a plot of the coordinate check")
    matplotlib.use("Agg")
    pyplot = require("matplotlib.pyplot", "plot", "a plot of the coordinate check")
    steps = sorted({record["t"] for record in records})
    figure, axes = pyplot.subplots(1, len(steps), figsize=(5 * len(steps), 4), sharey=True, squeeze=False)
    for step, axis in zip(steps, axes[0], strict=True):
        for module in dict.fromkeys(record["module"] for record in records):
            points = [(r["width"], r["l1"]) for r in records if r["t"] == step and r["module"] == module]
            axis.plot(*zip(*points, strict=True), marker=".", label=module)
        axis.set(xscale="log", yscale="log", xlabel="width", title=f"step {step}")
    axes[0][0].set_ylabel("mean size of the output")
    axes[0][-1].legend(fontsize="xx-small")
    figure.savefig(path)
    pyplot.close(figure)
    return path
