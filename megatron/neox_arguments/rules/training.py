"""Rules for training: its length, schedule, number formats and parallelism, and what DeepSpeed does not take."""

from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments import curriculum, deepspeed_view, schedule_options
from megatron.neox_arguments.deepspeed_values import SERVICES
from megatron.neox_arguments.steps import Steps

RULES = Steps()
rule = RULES.reading


@rule("lr", "min_lr")
def _learning_rate(args: Any) -> Iterator[str]:
    if args.min_lr > args.lr >= 0:
        yield f"min_lr={args.min_lr} exceeds the learning rate optimizer.params.lr={args.lr}"


@rule("override_lr_scheduler", "use_checkpoint_lr_scheduler")
def _schedule_source(args: Any) -> Iterator[str]:
    if args.override_lr_scheduler and args.use_checkpoint_lr_scheduler:
        yield "override_lr_scheduler and use_checkpoint_lr_scheduler contradict each other; set one"


@rule("use_bnb_optimizer", "optimizer_type")
def _eight_bit(args: Any) -> Iterator[str]:
    if args.use_bnb_optimizer and args.optimizer_type not in ("adam", "adamw"):
        yield f"use_bnb_optimizer gives Adam 8-bit states; it needs optimizer.type: adam, not {args.optimizer_type}"


@rule("fp16_lm_cross_entropy", "precision")
def _half_precision_loss(args: Any) -> Iterator[str]:
    if args.fp16_lm_cross_entropy and args.precision != "fp16":
        yield f"fp16_lm_cross_entropy needs precision: fp16, not {args.precision}"


@rule(
    "train_iters",
    "train_epochs",
    "pack_impl",
    "dataset_impl",
    "weight_by_num_documents",
    "train_data_weights",
)
def epoch_problems(args: Any) -> Iterator[str]:
    """What keeps a run from being measured in passes over its data, one line each."""
    if args.train_epochs is None:
        return
    if args.train_iters is not None:
        yield f"train_iters={args.train_iters} and train_epochs={args.train_epochs} both set the length; keep one"
    if args.pack_impl != "packed":
        yield f"train_epochs needs pack_impl: packed, not {args.pack_impl}"
    if args.dataset_impl != "gpt2":
        yield f"train_epochs needs dataset_impl: gpt2, not {args.dataset_impl}"
    if args.weight_by_num_documents:
        yield "train_epochs needs equal weights: remove weight_by_num_documents"
    if any(weight != 1 for weight in args.train_data_weights or []):
        yield f"train_epochs needs equal weights: remove train_data_weights={args.train_data_weights}"


@rule("curriculum_learning", "seq_length", "sequence_parallel", "model_parallel_size")
def _curriculum(args: Any) -> Iterator[str]:
    if args.seq_length:
        yield from curriculum.problems(args)


@rule("log_gradient_noise_scale", "log_grad_norm", "log_grad_pct_zeros", "optimizer_type")
def _averaged_gradients(args: Any) -> Iterator[str]:
    for key in ("log_gradient_noise_scale", "log_grad_norm", "log_grad_pct_zeros"):
        if getattr(args, key) and args.optimizer is not None and args.optimizer_type == "onebitadam":
            yield f"{key} needs gradients that are averaged over replicas, and optimizer.type onebitadam does without"


@rule("gradient_noise_scale_n_batches")
def _noise_scale(args: Any) -> Iterator[str]:
    if args.gradient_noise_scale_n_batches < 2:
        yield (
            f"gradient_noise_scale_n_batches={args.gradient_noise_scale_n_batches} must be at least 2, since the "
            "gradients of one batch and of several are compared"
        )


@rule("seq_length", "sequence_parallel", "model_parallel_size")
def _sequence_parallel(args: Any) -> Iterator[str]:
    if args.sequence_parallel and args.seq_length and args.seq_length % args.model_parallel_size:
        yield (
            f"sequence_parallel needs seq_length={args.seq_length} to be a multiple of "
            f"model_parallel_size={args.model_parallel_size}"
        )


rule(
    "fp16",
    "bf16",
    "precision",
    "zero_optimization",
    "deepspeed_extra_args",
    *SERVICES,
    "communication_data_type",
    "gradient_predivide_factor",
    "prescale_gradients",
)(deepspeed_view.problems)
rule(*schedule_options.KEYS)(schedule_options.problems)
