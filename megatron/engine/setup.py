"""From a config to a DeepSpeed engine."""

from functools import partial

import torch

from megatron import mpu
from megatron.common import device
from megatron.common.console import print_rank_0
from megatron.engine.auxiliary import scale_auxiliary_losses
from megatron.engine.clipping import clip_gradients
from megatron.learning_rates import AnnealingLR
from megatron.model import GPT2ModelPipe, build_sequential, get_params_for_weight_decay_optimization
from megatron.neox_arguments.deepspeed_view import zero_options
from megatron.objectives import Objective
from megatron.optimizers import build_optimizer
from megatron.optimizers.compiler import import_muon_uncompiled


def get_model(neox_args, use_cache: bool = False) -> torch.nn.Module:
    """The model of this rank, fp32, on its device: a PipelineModule when `pipe_parallel_size` >= 1, else a plain
    sequential model. `use_cache` puts it into inference mode with a key-value cache."""
    with device.current_device():
        if neox_args.is_pipe_parallel:
            model = GPT2ModelPipe(neox_args, topology=mpu.get_topology(), use_cache=use_cache)
        else:
            model = build_sequential(neox_args)
    if use_cache:
        model.inference_mode(use_cache=True)
    return model


def get_optimizer(
    model: torch.nn.Module, neox_args, dummy: bool = False
) -> tuple[torch.optim.Optimizer | None, list[dict]]:
    """Optimizer and its parameter groups: matrices decay, biases and norms do not.

    Returns (None, groups) for a `dummy`, and when the config has no optimizer, as inference and evaluation have none.
    """
    param_groups = get_params_for_weight_decay_optimization(model, neox_args)
    if dummy or neox_args.optimizer is None:
        return None, param_groups
    kind = neox_args.optimizer_type
    if "offload_optimizer" in zero_options(neox_args.zero_optimization) and kind in ("adam", "adamw"):
        # The fused one is for the accelerator's memory.
        kind = "cpu_adam"
    optimizer = build_optimizer(
        kind,
        param_groups,
        dict(neox_args.optimizer["params"]),
        neox_args.weight_decay,
        neox_args.use_bnb_optimizer,
    )
    return optimizer, param_groups


def get_learning_rate_scheduler(optimizer, neox_args) -> AnnealingLR | None:
    """The schedule over `lr_decay_iters`, or the fraction of the training length, or the training length."""
    if optimizer is None:
        return None
    return AnnealingLR.from_config(optimizer, neox_args)


def build_engine(neox_args, model: torch.nn.Module, objective: Objective):
    """Wrap the model, its optimizer and its schedule into a DeepSpeed engine, whose fp32 masters are those of the model
    as DeepSpeed has rounded it.

    Returns: (engine, optimizer as DeepSpeed wrapped it, learning rate scheduler).
    """
    import deepspeed

    optimizer, _ = get_optimizer(model, neox_args)
    scheduler = get_learning_rate_scheduler(optimizer, neox_args)
    if neox_args.is_pipe_parallel:
        attach_objective(model, objective)
    import_muon_uncompiled()
    engine, optimizer, _, scheduler = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        dist_init_required=False,
        config=engine_config(neox_args),
        # A pipeline brings its own grid.
        mpu=None if neox_args.is_pipe_parallel else mpu,
    )
    if neox_args.is_pipe_parallel:
        # DeepSpeed takes a class of this name to send an attention mask along; ours sends hidden states only.
        engine.set_has_attention_mask(False)
        _time_backward_once(engine)
    _prepare_for_checkpoints(engine, neox_args)
    engine.clip_fp32_gradients = partial(clip_gradients, engine)
    scale_auxiliary_losses(engine)
    if engine.dp_world_size == 1 and not engine.zero_optimization():
        # A group of one has nothing to reduce, but DeepSpeed would copy all gradients into buckets and back.
        engine.enable_backward_allreduce = engine.pipeline_enable_backward_allreduce = False
    if hasattr(optimizer, "attach"):
        # It averages gradients in its own way, from some step on.
        optimizer.attach(engine)
    # ZeRO-3 has emptied its parameters and keeps their true size.
    count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    print_rank_0(f"parameters of this rank: {count:,}")
    return engine, optimizer, scheduler


def _prepare_for_checkpoints(engine, neox_args) -> None:
    from megatron.checkpointing.background import host_group
    from megatron.checkpointing.safe_engine import SafeCheckpointEngine

    on_host = not device.has_accelerator() or "offload_optimizer" in zero_options(neox_args.zero_optimization)
    engine.checkpoint_engine = SafeCheckpointEngine(not neox_args.no_save_optim, host_group(), on_host)
    # What else of a run goes into its checkpoints: name -> object with state_dict() and load_state_dict().
    engine.stateful = {}
    # The folder of the checkpoint that it goes on from, its iteration, and the samples that had been read by then.
    engine.loaded_from, engine.loaded_iteration, engine.samples_before = None, 0, 0


def _time_backward_once(engine) -> None:
    """Around the backward pass of all stages but the last, DeepSpeed's pipeline runs the timers of wall_clock_breakdown
    itself, and a hook inside that pass would start them a second time, which ends the run."""
    if not engine.is_last_stage():
        engine.engine_timers.backward_timers = []
        engine.engine_timers.backward_inner_timers = []


def attach_objective(model: torch.nn.Module, objective: Objective) -> None:
    """Give a pipeline its loss function; DeepSpeed takes the metrics to all stages as "additional losses"."""
    # Asked for after every loss on the last stage, and on the others for the names only.
    metrics: dict[str, torch.Tensor | None] = dict.fromkeys(objective.metric_names)

    def loss_function(outputs: torch.Tensor, targets) -> torch.Tensor:
        loss = objective.loss(outputs, targets)
        # An evaluation may have fewer metrics, and makes no use of them.
        metrics.update({name: loss.metrics.get(name, torch.zeros_like(loss.value)) for name in metrics})
        return loss.value

    model.loss_fn = loss_function
    model.get_additional_losses = lambda: metrics or None


def engine_config(neox_args) -> dict:
    """DeepSpeed's dictionary for the engine.

    In 16 bit DeepSpeed keeps fp32 masters and accumulates in fp32 only inside its ZeRO optimizers, so such a run with
    ZeRO off uses stage 1, which changes where states live but not what is computed.
    """
    config = dict(neox_args.deepspeed_config)
    # The optimizer is built here.
    config.pop("optimizer", None)
    config["zero_allow_untested_optimizer"] = True
    if neox_args.precision != "fp32" and neox_args.zero_stage == 0:
        config["zero_optimization"] = {**config["zero_optimization"], "stage": 1}
    if neox_args.sequence_parallel:
        # What travels between stages differs between tensor-parallel ranks then and must not be cut and regathered.
        config["pipeline"] = {
            **config.get("pipeline", {}),
            "pipe_partitioned": False,
            "grad_partitioned": False,
        }
    return config


def restore_full_precision_masters(engine, neox_args) -> None:
    """Give the fp32 master copies of a 16-bit run the unrounded initial weights.

    DeepSpeed rounds the model to 16 bit first and copies the masters from the result, so a bf16 run would not start
    from the weights that the fp32 run of the same seed starts from.
    """
    if neox_args.precision == "fp32" or engine.optimizer is None:
        return
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in engine.module.logical_named_parameters():
        if not parameter.requires_grad or getattr(parameter, "start", None) is not None:
            continue  # has no master, or is no drawn value
        value = mpu.initial_value(parameter, name, neox_args.seed, neox_args.use_cpu_initialization)
        safe_set_full_fp32_param(parameter, value)
