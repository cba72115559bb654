"""Gradient clipping by the global norm, for runs whose gradients DeepSpeed leaves in the parameters (fp32, ZeRO off).

DeepSpeed's own fp32 clipping asks the pipeline grid for the model-parallel rank, which counts pipeline stages too, and
so leaves the unsharded parameters of all later stages out of the norm.
"""

import torch

from megatron import mpu
from megatron.engine.parts import counts


def clip_gradients(engine) -> torch.Tensor:
    """Scale all gradients so that their global L2 norm is at most `gradient_clipping`; nothing waits for the host.

    Returns: the norm before clipping, a scalar on the device.
    """
    parameters = [parameter for parameter in engine.module.parameters() if parameter.grad is not None]
    counted = [parameter.grad for parameter in parameters if counts(parameter)]
    square = torch.zeros((), device=engine.device)
    if counted:
        square = torch.stack(torch._foreach_norm(counted)).square().sum()
    for group, size in (
        (mpu.get_tensor_model_parallel_group, mpu.get_tensor_model_parallel_world_size()),
        (mpu.get_pipe_parallel_group, mpu.get_pipe_parallel_world_size()),
    ):
        if size > 1:
            torch.distributed.all_reduce(square, group=group())
    norm = square.sqrt()
    scale = (engine.gradient_clipping() / (norm + 1e-6)).clamp(max=1.0)
    if parameters:  # a stage may have nothing to train
        torch._foreach_mul_([parameter.grad for parameter in parameters], scale)
    engine._global_grad_norm = norm
    return norm
