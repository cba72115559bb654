"""What the processes of one layout do with the imported models: all of them in turn, in one process group."""

import torch

from tests.grid.worker import share_process_groups
from tests.parity.families import LENGTH, texts

RATE, EPSILON, DECAY, BATCH = 1e-2, 1e-2, 0.1, 4
SETTINGS = {
    "seq_length": LENGTH,
    "train_batch_size": BATCH,
    "train_micro_batch_size_per_gpu": 2,
    # A wide epsilon: a step does not depend on the rounding of gradients near zero.
    "optimizer": {"type": "Adam", "params": {"lr": RATE, "betas": [0.9, 0.95], "eps": EPSILON}},
    "lr_decay_style": "constant",
    "warmup": 0.0,
    "weight_decay": DECAY,
    "gradient_clipping": 0.0,
    "train_iters": 10,
    "data_path": "none",
    "log_interval": 1000,
}


def run_models(configs: list[str], world_size: int) -> list[dict]:
    """For every config file of an imported model: logits, the losses of two steps, and the weights after the first."""
    share_process_groups()
    return [run_model(config, world_size) for config in configs]


def run_model(config: str, world_size: int) -> dict:
    from megatron.common.timers import Timers
    from megatron.engine.inference import InferenceModel
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer, train_step

    neox_args = NeoXArgs.from_ymls([config], SETTINGS | {"global_num_gpus": world_size})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    initialize_megatron(neox_args)
    engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
    tokens = texts(0, BATCH)[:, :-1].contiguous()
    model = InferenceModel(engine, neox_args)
    model.inference_mode(use_cache=False)
    with torch.no_grad():
        logits = model(tokens, torch.arange(LENGTH).expand_as(tokens).contiguous())
    model.train_mode()
    engine.train()
    batches = iter([{"text": texts(step, BATCH)[first : first + 2]} for step in (1, 2) for first in (0, 2)])
    losses, weights = [], {}
    for step in range(2):
        metrics, _ = train_step(neox_args, Timers(), batches, engine, optimizer, scheduler)
        losses.append(float(metrics["lm_loss"]))
        if step == 0 and world_size == 1:
            named = engine.module.logical_named_parameters()
            weights = {name: parameter.detach().float().clone() for name, parameter in named}
    return {"logits": None if logits is None else logits.float(), "losses": losses, "weights": weights}
