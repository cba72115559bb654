"""Bring one process into the job: device, process group, process grid, random seeds."""

import importlib.util
import os
import random
import warnings
from collections.abc import Callable

import numpy
import torch

from megatron import mpu
from megatron.common import device
from megatron.common.activity import beat
from megatron.common.console import print_rank_0
from megatron.common.errors import ConfigError, LaunchError
from megatron.common.hosts import free_port
from megatron.neox_arguments.features import check_features

DEFAULT_PORT = 6000
PIPELINE_SEED_STRIDE = 1138
DATA_SEED_STRIDE = 100_003


def initialize_megatron(neox_args, allow_no_cuda: bool = True) -> Callable | None:
    """Start the process group, the process grid and the random number generators.

    Args: allow_no_cuda: False refuses to run without an accelerator.
    Returns: None; with `lazy_mpu_init` the function that does all this, to be called later.
    Raises: LaunchError without an accelerator if one is required; ConfigError for an impossible grid or seed, or for
        choices that do not go together.
    """
    check_features(neox_args)
    if not allow_no_cuda and not device.has_accelerator():
        raise LaunchError("this run needs an accelerator and none was found")

    def finish() -> None:
        initialize_distributed(neox_args)
        set_random_seed(neox_args.seed)
        configure_activation_checkpointing(neox_args)

    if not neox_args.lazy_mpu_init:
        finish()
        return None
    mpu.set_model_parallel_world_size(neox_args.model_parallel_size)
    mpu.set_model_parallel_rank((neox_args.rank or 0) % neox_args.model_parallel_size)
    return finish


def initialize_distributed(neox_args) -> None:
    """Join torch.distributed through DeepSpeed and lay out the grid with axes pipe, data, model (tensor)."""
    if not device.has_accelerator():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    if device.backend(neox_args.distributed_backend) == "nccl":
        device.check_own_device()
    device.set_device()
    _settle_deepspeed(deepspeed)
    beat("meeting the other processes")
    if not torch.distributed.is_initialized():
        _meet(deepspeed, neox_args)
    elif not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    if mpu.model_parallel_is_initialized():
        return
    pipe, tensor = max(1, neox_args.pipe_parallel_size), neox_args.model_parallel_size
    world_size = torch.distributed.get_world_size()
    if world_size % (pipe * tensor):
        raise ConfigError(
            f"{world_size} processes cannot be divided by pipe_parallel_size {pipe} x model_parallel_size {tensor}"
        )
    topology = PipeModelDataParallelTopology(num_pp=pipe, num_mp=tensor, num_dp=world_size // (pipe * tensor))
    mpu.initialize_model_parallel(tensor, topology=topology, fp32_allreduce=neox_args.fp32_allreduce)


def _meet(deepspeed, neox_args) -> None:
    """Make the process group of the job.

    Raises: LaunchError if the processes do not know where to meet, or cannot.
    """
    if "RANK" not in os.environ:
        # Started without a launcher: a job of one process, whose port is nobody else's business.
        alone = {
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": 1,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        os.environ.update({name: str(value) for name, value in alone.items()})
    os.environ.setdefault("MASTER_PORT", str(DEFAULT_PORT))
    _check_meeting_place(neox_args.deepspeed_mpi)
    try:
        deepspeed.init_distributed(
            dist_backend=device.backend(neox_args.distributed_backend),
            auto_mpi_discovery=neox_args.deepspeed_mpi,
            distributed_port=int(os.environ["MASTER_PORT"]),
            verbose=False,
        )
    except torch.distributed.DistNetworkError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LaunchError(
            f"the processes cannot meet at {address} ({str(error).splitlines()[0]}): another job may use the port;"
            " choose another master_port"
        ) from error


def _check_meeting_place(mpi_may_tell: bool) -> None:
    """Raises: LaunchError if the processes of a job do not know where to meet."""
    if "MASTER_ADDR" in os.environ:
        return
    advice = "set master_addr in the configuration, or the environment variable MASTER_ADDR, to rank 0's host"
    # With deepspeed_mpi, DeepSpeed asks MPI through that package.
    if not mpi_may_tell:
        raise LaunchError(f"the launcher does not say where the processes meet: {advice}")
    if importlib.util.find_spec("mpi4py") is None:
        raise LaunchError(f"nobody says where the processes meet, and mpi4py is not installed: {advice}")


def shut_down() -> None:
    """Leave the job in order: all ranks together, groups closed, so that no background thread outlives its group."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        mpu.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def _settle_deepspeed(deepspeed) -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives on CPU and from filling the console.

    The compilation takes a minute on a first start, and a worker killed inside such a collective leaves a segment in
    /dev/shm that the next start would wait for; gloo has neither fault.
    """
    # Not `from deepspeed.comm import torch`, which is the torch package itself.
    torch_backend = importlib.import_module("deepspeed.comm.torch")
    if device.has_accelerator():
        _number_devices(deepspeed.accelerator.get_accelerator())
    else:
        torch_backend.build_shm_op = lambda: None
        # DeepSpeed asks whether the CPU has fp16 instructions; torch computes fp16 without them too, only slower.
        deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    # Its bf16 optimizer prints the memory in use eighteen times, whatever the log level.
    importlib.import_module("deepspeed.runtime.bf16_optimizer").see_memory_usage = (
        lambda *message, **options: None
    )
    # DeepSpeed still calls collectives by the names that torch is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # It ties no device to a job of one process, and torch then tells at a barrier that it takes the current one.
    warnings.filterwarnings("ignore", r"barrier\(\): using the device")
    level = os.environ.get("LOGLEVEL", "WARNING").upper()
    try:
        deepspeed.utils.logger.setLevel(level)
    except ValueError:
        raise LaunchError(
            f"the environment variable LOGLEVEL={level!r} must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL"
        ) from None


def _number_devices(accelerator) -> None:
    """Give DeepSpeed this rank's device, which it would number by LOCAL_RANK also where a process sees its own only
    (jsrun, srun --gpus-per-task)."""
    own = device.current_device().index
    if own == int(os.environ.get("LOCAL_RANK") or 0):
        return
    for name in ("device", "device_name", "set_device"):
        by_number = getattr(accelerator, name)
        setattr(accelerator, name, lambda number=None, by_number=by_number: by_number(number and own))


def set_random_seed(seed: int) -> None:
    """Seed every generator. Initial weights do not depend on these (megatron.mpu.parameters); dropout does.

    Data-parallel replicas and pipeline stages draw different dropout masks; tensor-parallel ranks draw the same from
    the default generator (they hold the same activations) and different ones inside tensor-parallel regions.
    """
    if seed is None or seed <= 0:
        raise ConfigError(f"seed must be a positive integer, not {seed}")
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    own = (
        seed
        + DATA_SEED_STRIDE * mpu.get_data_parallel_rank()
        + PIPELINE_SEED_STRIDE * mpu.get_pipe_parallel_rank()
    )
    mpu.model_parallel_manual_seed(own)


def configure_activation_checkpointing(neox_args) -> None:
    """Hand the activation checkpointing options to megatron.mpu."""
    mpu.configure_checkpointing(
        partition_activations=neox_args.partition_activations,
        checkpoint_in_cpu=neox_args.checkpoint_in_cpu,
        contiguous_checkpointing=neox_args.contiguous_checkpointing,
        synchronize=neox_args.synchronize_each_layer,
        profile=neox_args.profile_backward,
    )
    if neox_args.checkpoint_activations:
        print_rank_0(f"activation checkpointing: every {neox_args.checkpoint_num_layers} layer(s)")
