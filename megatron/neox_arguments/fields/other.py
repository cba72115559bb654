"""Process set-up, seeds, and keys that old files carry."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.markers import retired, runtime
from megatron.neox_arguments.template import NeoXArgsTemplate


@dataclass
class NeoXArgsOther(NeoXArgsTemplate):
    """Miscellaneous."""

    distributed_backend: str = "nccl"
    """torch.distributed back-end. On a machine without GPUs nccl becomes gloo."""

    local_rank: int | None = runtime()
    """Rank of this process on its machine, from the environment."""

    rank: int | None = runtime()
    """Global rank of this process, from the environment."""

    lazy_mpu_init: bool = False
    """Leave the set-up of the process groups to a callable that initialize_megatron returns."""

    short_seq_prob: float = retired(0.1, "short sequences exist in BERT-style training only; remove the key")
    """Share of artificially short sequences. GPT-NeoX never acted on it."""

    eod_mask_loss: bool = False
    """Leave positions whose input is the end-of-document token out of the loss."""

    adlr_autoresume: bool = retired(False, "the cluster service it asks is not public; remove the key")
    """Ask a cluster service whether to stop and resume. GPT-NeoX never called it."""

    adlr_autoresume_interval: int = retired(1000, "adlr_autoresume has no effect; remove the key")
    """Iterations between such questions."""

    seed: int = 1234
    """Seed of weights, data order and dropout; a positive number."""

    onnx_safe: bool = False
    """Write GELU with erf, for export to ONNX; excludes bias_gelu_fusion."""

    deepscale: bool = retired(False, "DeepScale became DeepSpeed, which is always on; remove the key")
    """Old name of the deepspeed switch."""

    deepscale_config: str | None = retired(None, "DeepSpeed settings are keys of this configuration")
    """Old name of a separate DeepSpeed configuration file."""

    deepspeed_mpi: bool = False
    """Take ranks from MPI; implies force_multi."""

    deepspeed_slurm: bool = False
    """Take ranks from Slurm's variables; implies force_multi, and launcher slurm in place of pdsh."""

    user_script: str | None = runtime()
    """Script that the launcher starts on every process, filled by deepy.py."""

    iteration: int | None = None
    """Iteration of the checkpoint to load; the newest when unset."""

    do_train: bool | None = runtime()
    """Whether there is training data and something left to train."""

    do_valid: bool | None = runtime()
    """Whether there is validation data."""

    do_test: bool | None = runtime()
    """Whether there is test data."""

    watchdog_timeout: float = 1200.0
    """Seconds without progress of any process (a micro batch, a part of a checkpoint, a part of the start-up) after
    which the job counts as stalled: the stacks of the slowest ranks are printed and the job ends. 0 waits forever."""

    max_restarts: int = 0
    """How often the launcher starts a failed job again, from its newest checkpoint in save."""

    global_num_gpus: int | None = None
    """Number of devices (processes) of the whole job. Unset: WORLD_SIZE, the hostfile, num_gpus or
    this machine tell."""


@dataclass
class NeoXArgsTokenizer(NeoXArgsTemplate):
    """Text to ids."""

    tokenizer_type: Literal[
        "GPT2BPETokenizer",
        "HFTokenizer",
        "HFGPT2Tokenizer",
        "SPMTokenizer",
        "CharLevelTokenizer",
        "TiktokenTokenizer",
    ] = "GPT2BPETokenizer"
    """Tokenizer class; case does not matter."""

    padded_vocab_size: int | None = runtime()
    """Vocabulary size after padding, set when the tokenizer is built."""


@dataclass
class NeoXArgsMoE(NeoXArgsTemplate):
    """Mixture of experts."""

    moe_num_experts: int = 1
    """Experts per mixture layer, divided over the tensor-parallel processes; 1 means dense MLPs. Experts have no
    biases; they are as wide as a dense MLP without a gate (docs/experts.md)."""

    moe_expert_interval: int = 1
    """Every layer whose index is a multiple of this has experts."""

    moe_top_k: int = 1
    """Experts that each token is sent to."""

    moe_router_type: Literal["sinkhorn", "topk"] = "sinkhorn"
    """How tokens are assigned to experts: the best scores of each token (topk), or in training a plan that also gives
    all experts about as many tokens (sinkhorn)."""

    moe_normalize_topk: bool = False
    """Scale the weights of a token's experts so that their sum is 1, as Mixtral does; needs moe_top_k above 1."""

    moe_aux_loss_coeff: float = 0.0
    """Weight of the balance loss, E * sum_e f_e P_e of each mixture layer, in what is minimised (arXiv 2101.03961)."""

    moe_z_loss_coeff: float = 0.0
    """Weight of the mean squared logsumexp of the router's scores in what is minimised (arXiv 2202.08906)."""

    moe_lbl_in_fp32: bool = False
    """Compute the balance loss in fp32 instead of the number format of the activations."""

    moe_jitter_eps: float | None = None
    """Relative noise on the router's input in training: a factor between 1 - eps and 1 + eps (topk router)."""
