"""Keys that DeepSpeed reads, and options of the launcher."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.markers import later, retired, runtime
from megatron.neox_arguments.template import NeoXArgsTemplate

_REMOVED = "DeepSpeed no longer has it; remove the key"


@dataclass
class NeoXArgsDeepspeedConfig(NeoXArgsTemplate):
    """The DeepSpeed configuration; megatron/neox_arguments/deepspeed_view.py makes DeepSpeed's dictionary of it."""

    deepspeed: bool = retired(True, "training always runs on DeepSpeed")
    """Train with DeepSpeed."""

    train_batch_size: int | None = None
    """Samples per optimizer step over all devices: micro batch x accumulation steps x data-parallel size."""

    train_micro_batch_size_per_gpu: int | None = None
    """Samples per device and forward pass. Any one of the three batch keys follows from the other two."""

    gradient_accumulation_steps: int | None = None
    """Micro batches per optimizer step; derived when unset, 1 when nothing else is known."""

    optimizer: dict | None = None
    """`{type: ..., params: {lr, betas, eps, ...}}`."""

    scheduler: dict | None = retired(None, "set lr_decay_style, lr_decay_iters, warmup and min_lr")
    """DeepSpeed learning-rate scheduler."""

    fp32_allreduce: bool = False
    """Carry out the tensor-parallel reductions in fp32."""

    prescale_gradients: bool = False
    """Divide gradients by the data-parallel size before they are summed instead of behind it."""

    gradient_predivide_factor: float = 1.0
    """Divide gradients by this before they are summed and by the rest of the data-parallel size behind it, against
    overflow; about the root of that size. In 16 bit or with ZeRO it needs zero_optimization.reduce_scatter: false."""

    sparse_gradients: bool = retired(False, _REMOVED)
    """Reduce embedding gradients in sparse form."""

    fp16: dict | None = None
    """Half precision: enabled, loss_scale (0 adapts), initial_scale_power, loss_scale_window, hysteresis,
    min_loss_scale."""

    bf16: dict | None = None
    """bfloat16: enabled, and DeepSpeed's further switches."""

    amp: dict | None = retired(None, "Apex AMP is gone; use fp16 or bf16")
    """Apex mixed precision."""

    gradient_clipping: float = 1.0
    """Largest global norm of the gradient; 0 switches clipping off."""

    zero_optimization: dict | None = None
    """ZeRO: stage and DeepSpeed's further options. Unset: stage 0."""

    curriculum_learning: dict | None = None
    """Sequence-length curriculum (arXiv 2108.06084), carried out by this program: min_difficulty, max_difficulty,
    schedule_type (fixed_linear, fixed_root, fixed_discrete) and schedule_config; see docs/training.md."""

    curriculum_seqlen: int = runtime(0)
    """Length of the curriculum; a function of the iteration, logged under this name."""

    steps_per_print: int = 10
    """Steps between DeepSpeed's own log lines."""

    wall_clock_breakdown: bool = False
    """Log DeepSpeed's timing of forward, backward and step."""

    dump_state: bool = False
    """Print DeepSpeed's state after initialisation."""

    flops_profiler: dict | None = None
    """DeepSpeed's FLOPs profiler; needs the key enabled."""

    communication_data_type: str | None = None
    """Number format in which gradients are reduced: fp16, bf16 or fp32."""

    autotuning: dict | None = later(None)
    """DeepSpeed autotuning."""

    activation_checkpointing: dict | None = retired(
        None, "set checkpoint_activations, partition_activations or checkpoint_in_cpu"
    )
    """DeepSpeed activation checkpointing."""

    sparse_attention: dict | None = retired(None, f"{_REMOVED}; see attention_config")
    """DeepSpeed sparse attention."""

    data_efficiency: dict | None = retired(
        None,
        "it works through DeepSpeed's own data loader, which training does not use; see curriculum_learning",
    )
    """DeepSpeed data efficiency."""

    tensorboard: dict | None = None
    """DeepSpeed's own TensorBoard monitor."""

    wandb: dict | None = None
    """DeepSpeed's own Weights & Biases monitor."""

    csv_monitor: dict | None = None
    """DeepSpeed's own CSV monitor."""

    elasticity: dict | None = retired(None, _REMOVED)
    """DeepSpeed elasticity."""

    comms_logger: dict | None = None
    """DeepSpeed's log of communication operations."""

    compression_training: dict | None = retired(None, _REMOVED)
    """DeepSpeed compression."""

    checkpoint: dict | None = None
    """DeepSpeed checkpoint options."""

    data_types: dict | None = None
    """Number formats inside DeepSpeed; grad_accum_dtype is fp32 unless set here when training in bfloat16."""

    deepspeed_extra_args: dict | None = None
    """Further keys handed to DeepSpeed as they are."""


@dataclass
class NeoXArgsDeepspeedRunner(NeoXArgsTemplate):
    """Launcher options, in the order in which they are handed to DeepSpeed's launcher."""

    hostfile: str | None = None
    """File of machines, one `NAME slots=N` a line; when unset, the one that the variable DLTS_HOSTFILE names, else
    /job/hostfile. A file that does not exist means the allocation where launcher is slurm or jsrun, else this
    machine only."""

    include: str | None = None
    """Machines and slots to use: `NAME[:SLOT,SLOT...]`, several joined by `@`."""

    exclude: str | None = None
    """Machines and slots not to use, written as in include."""

    num_nodes: int = -1
    """Use the first so many machines of the hostfile or the allocation; -1 uses all."""

    num_gpus: int | None = None
    """Devices per machine, or processes on a machine without GPUs."""

    master_port: int = 29500
    """Port at which the processes of the job meet."""

    master_addr: str | None = None
    """Address at which the processes of the job meet; the first machine's when unset."""

    launcher: Literal["pdsh", "openmpi", "mvapich", "slurm", "mpich", "impi", "jsrun"] = "pdsh"
    """How processes are started on several machines (docs/clusters.md)."""

    launcher_args: str | None = None
    """Further arguments of that program, in one string."""

    force_multi: bool = False
    """Use the multi-machine launcher for a single machine too."""

    autotuning_run: Literal["tune", "run"] | None = later(None)
    """Let DeepSpeed's autotuner search only (tune), or search and then train (run)."""

    no_ssh_check: bool = False
    """Do not test ssh connections before starting."""

    comment: str | None = None
    """Comment of the Slurm job."""

    account: str | None = None
    """Account of the Slurm job."""
