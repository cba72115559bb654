"""What a run reports: console lines, trackers, FLOPs, log files."""

from megatron.common.tee import Tee
from megatron.logging.flops import get_actual_flops, get_forward_backward_flops, human_readable_flops
from megatron.logging.metrics import Metrics, tb_wandb_log
from megatron.logging.report import training_log

__all__ = [
    "Metrics",
    "Tee",
    "get_actual_flops",
    "get_forward_backward_flops",
    "human_readable_flops",
    "tb_wandb_log",
    "training_log",
]
