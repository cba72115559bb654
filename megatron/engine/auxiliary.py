"""Losses that layers add on their own, beside the objective."""

from megatron.model.moe import ParallelDroplessMoE


def scale_auxiliary_losses(engine) -> None:
    """Let the losses of the experts' layers weigh as much as the main loss, which DeepSpeed divides by the number of
    micro-batches and multiplies by the loss scale of fp16."""

    def scale() -> float:
        return float(getattr(engine.optimizer, "loss_scale", 1.0)) / engine.gradient_accumulation_steps()

    for module in engine.module.modules():
        if isinstance(module, ParallelDroplessMoE):
            module.balance.loss_scale = scale
