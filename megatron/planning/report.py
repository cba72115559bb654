"""The plan as text."""

import copy
import shlex
import sys
from pathlib import Path
from typing import Any

from megatron import launcher
from megatron.common.console import human_bytes
from megatron.common.errors import NeoXError
from megatron.launcher.job import PLACED_BY_SCHEDULER
from megatron.launcher.multi_host import starter_command
from megatron.launcher.worker_environment import worker_environment
from megatron.model.layers import partition_method
from megatron.neox_arguments import command_line
from megatron.neox_arguments.features import check_features
from megatron.planning import layers, length, memory
from megatron.planning.vocabulary import vocabulary


def describe_plan(neox_args: Any) -> str:
    """Configuration, model, layout, length, checkpoints, memory and command of a run.

    Raises: TokenizerError if the tokenizer's files are here but broken; ConfigError for choices that do not fit.
    """
    summary, launch = neox_args.summary(), _launch(neox_args)
    neox_args = copy.copy(neox_args)
    neox_args.padded_vocab_size, source = vocabulary(neox_args)
    check_features(neox_args)
    counted = layers.count_layers(neox_args)
    method = partition_method(neox_args, (layer.name for layer in counted))
    stages = layers.stages(counted, neox_args.pipe_parallel_size, method)
    parameters = layers.total_parameters(counted)
    sources = length.training_sources(neox_args)
    steps = length.iterations(neox_args, sources)
    parts = [
        summary,
        "\nplan:",
        *_model(neox_args, parameters, source),
        *_layout(neox_args, stages),
        *_length(neox_args, steps, sources),
        *_checkpoints(neox_args, steps, parameters),
        *_memory(memory.estimate(neox_args, stages)),
        "\nlaunch:",
        *launch,
    ]
    return "\n".join(parts)


def _model(neox_args: Any, parameters: int, vocabulary_source: str) -> list[str]:
    return [
        f"  parameters    {parameters:,}",
        f"  vocabulary    {neox_args.padded_vocab_size:,} (padded from {vocabulary_source})",
    ]


def _layout(neox_args: Any, stages: list[list[layers.Layer]]) -> list[str]:
    pipeline = f"{len(stages)} pipeline stages x " if neox_args.is_pipe_parallel else ""
    lines = [
        f"  devices       {neox_args.global_num_gpus} = {pipeline}{neox_args.model_parallel_size} tensor-parallel x "
        f"{neox_args.data_parallel_size} data-parallel; ZeRO stage {neox_args.zero_stage}; {neox_args.precision}"
    ]
    if neox_args.assumes_devices:
        lines.append("                assumed; set global_num_gpus, num_gpus or hostfile to plan for more")
    if len(stages) > 1:
        sizes = ", ".join(f"{layers.total_parameters(stage):,}" for stage in stages)
        lines.append(f"  stages        {sizes} parameters")
    return lines


def _length(neox_args: Any, steps: int | None, sources: list[length.Source]) -> list[str]:
    per_step = length.tokens_per_step(neox_args)
    micro_batch = neox_args.train_micro_batch_size_per_gpu
    lines = [
        f"  batch         {neox_args.train_batch_size:,} samples = {micro_batch} per device x "
        f"{neox_args.gradient_accumulation_steps} accumulation steps x {neox_args.data_parallel_size} data-parallel",
        f"  tokens        {per_step:,} per step ({neox_args.seq_length:,} per sample)",
    ]
    if steps is not None:
        lines.append(f"  steps         {steps:,}, {steps * per_step:,} tokens in all")
    elif neox_args.train_epochs is not None:
        lines.append(f"  steps         {neox_args.train_epochs} epochs of the data")
    else:
        lines.append("  steps         train_iters or train_epochs is not set")
    return lines + [f"  data          {_source(source)}" for source in sources]


def _source(source: length.Source) -> str:
    if source.tokens is None:
        return f"{source.prefix}: {source.note}"
    text = f"{source.prefix}: {source.tokens:,} tokens in {source.documents:,} documents"
    return text if source.epochs is None else f"{text}, {source.epochs:.3g} epochs"


def _checkpoints(neox_args: Any, steps: int | None, parameters: int) -> list[str]:
    if neox_args.save is None:
        return ["  checkpoints   none (save is not set)"]
    size = memory.checkpoint_bytes(neox_args, parameters)
    if steps is None:
        return [f"  checkpoints   of about {human_bytes(size)} each in {neox_args.save}"]
    count = len(length.save_iterations(neox_args, steps))
    kept = min(count, neox_args.keep_last_n_checkpoints or count)
    return [
        f"  checkpoints   {count:,} of about {human_bytes(size)}, {kept:,} kept ({human_bytes(kept * size)}) in "
        f"{neox_args.save}"
    ]


def _memory(estimates: list[memory.Memory]) -> list[str]:
    largest = max(estimates, key=lambda estimate: estimate.total)
    where = f" (largest of {len(estimates)} stages: {largest.stage})" if len(estimates) > 1 else ""
    rows = {
        "parameters": largest.parameters,
        "gradients": largest.gradients,
        "optimizer states": largest.optimizer_states,
        "activations": largest.activations,
        "in all": largest.total,
    }
    title = f"  memory        estimated per device{where}:"
    return [title, *(f"    {name:<18}{human_bytes(value):>10}" for name, value in rows.items())]


def _launch(neox_args: Any) -> list[str]:
    arguments = neox_args.worker_arguments(may_write=False)
    try:
        job = launcher.resolve(neox_args, arguments)
    except NeoXError as error:
        return [f"  not as things are: {error}"]
    if job.launcher in PLACED_BY_SCHEDULER and not job.is_local:
        return [f"  {job.describe()}", _command(starter_command(job, {}, Path()))]
    if not job.is_local:
        # The words that DeepSpeed's own launcher takes for what megatron/launcher/host_commands.py builds.
        options = command_line.launcher_options(neox_args)
        return [f"  {job.describe()}", _command(["deepspeed", *options, neox_args.user_script, *arguments])]
    settings = [f"{name}={value}" for name, value in worker_environment(job, 0, {}).items()]
    return [
        f"  {job.describe()}",
        "  each process with its own RANK and LOCAL_RANK:" if job.size > 1 else "  one process:",
        _command([*settings, sys.executable, "-u", job.script, "--local_rank=0", *job.arguments]),
    ]


def _command(words: list[str]) -> str:
    return f"  {shlex.join(words)}"
