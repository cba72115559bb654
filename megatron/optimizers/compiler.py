"""Optimizers without torch's compiler, which takes one to three seconds of every start to load.

torch guards methods of its optimizers against being traced, and loads the compiler for it at their first call; so does
DeepSpeed at the import of its Muon. Nothing here compiles an optimizer.
"""

import contextlib
import inspect
import sys
import types

import torch


def keep_compiler_unloaded() -> None:
    """Take the guards off the methods that all optimizers share, where nothing has loaded the compiler yet."""
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        guarded = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if guarded is not None and not hasattr(guarded, "__dynamo_disable"):
            setattr(guarded, "__dynamo_disable", guarded)  # noqa: B010  the attribute torch looks for


def step_untraced(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Take the guard off the step of one of torch's own optimizers; hooks and the profiler's name stay.

    The class stays as well, because DeepSpeed asks for it. Returns: the optimizer.
    """
    step = inspect.unwrap(type(optimizer).step)
    if step.__module__.startswith("torch.optim."):
        hooked = torch.optim.Optimizer.profile_hook_step(torch.no_grad()(step))
        optimizer.step = types.MethodType(hooked, optimizer)
    return optimizer


def import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon, which its ZeRO compares every optimizer with, and spare the compilation of its kernels:
    ours is another."""
    from deepspeed.runtime import compiler

    given, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        with contextlib.suppress(ImportError):
            import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = given
