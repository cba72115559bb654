"""What is reported, and where."""

from dataclasses import dataclass
from typing import Any

from megatron.neox_arguments.markers import runtime
from megatron.neox_arguments.template import NeoXArgsTemplate


@dataclass
class NeoXArgsLogging(NeoXArgsTemplate):
    """Logs, monitors and profiles."""

    use_wandb: bool | None = None
    """Log to Weights & Biases; never unless true, whatever keys the machine has."""

    wandb_group: str | None = None
    """Group the run belongs to; deepy.py makes one up, which all processes of the job share."""

    wandb_run_name: str | None = None
    """Name of the run."""

    wandb_team: str | None = None
    """Entity that owns the run."""

    wandb_project: str = "neox"
    """Project of the run."""

    wandb_host: str = "https://api.wandb.ai"
    """Server, also the name looked up in .netrc for the key."""

    wandb_init_all_ranks: bool = False
    """Start a run on every rank instead of rank 0 only."""

    git_hash: str | None = runtime()
    """Commit of the source tree, recorded with the run; filled in when unset."""

    log_dir: str | None = None
    """Folder that receives copies of each process's standard output and error, and the full configuration; also
    metrics.jsonl, which goes to save or tensorboard_dir where this is not set."""

    tensorboard_dir: str | None = None
    """Folder of the TensorBoard events that rank 0 writes."""

    use_comet: bool | None = None
    """Log to Comet from rank 0."""

    comet_workspace: str | None = None
    """Comet workspace."""

    comet_project: str | None = None
    """Comet project."""

    comet_experiment_name: str | None = None
    """Comet experiment name."""

    comet_tags: list | None = None
    """Tags of the Comet experiment."""

    comet_others: dict | None = None
    """Further values recorded with the Comet experiment."""

    comet_experiment: Any = runtime()
    """Handle of the running Comet experiment."""

    peak_theoretical_tflops: float | None = None
    """Peak TFLOPS of one device; model and hardware FLOPs utilisation are logged against it."""

    log_interval: int = 100
    """Iterations between log lines."""

    log_grad_pct_zeros: bool = False
    """Log the share of zero gradients of each parameter."""

    log_param_norm: bool = False
    """Log the norm of each parameter."""

    log_grad_norm: bool = False
    """Log the norm of each parameter's gradient."""

    log_optimizer_states: bool = False
    """Log norms of the optimizer states."""

    log_gradient_noise_scale: bool = False
    """Estimate and log the gradient noise scale (arXiv 1812.06162)."""

    gradient_noise_scale_n_batches: int = 5
    """Batches averaged for the large-batch gradient of the noise scale."""

    gradient_noise_scale_cpu_offload: bool = False
    """Keep the noise scale's gradient buffer in CPU memory."""

    memory_profiling: bool = False
    """Record what CUDA's allocator does from profile_step_start to profile_step_stop, as a snapshot per rank."""

    memory_profiling_path: str | None = None
    """Folder of the memory snapshots, mem_snapshot_rank{r}.pickle; tensorboard_dir or log_dir when unset."""

    profile: bool = False
    """Trace iterations profile_step_start to profile_step_stop on every rank, into tensorboard_dir or log_dir."""

    profile_step_start: int = 10
    """First profiled iteration, counted from 1."""

    profile_step_stop: int = 12
    """Last profiled iteration."""
