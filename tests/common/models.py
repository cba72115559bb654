"""Small models for tests: their config, their inputs, and their gradients put together over ranks."""

import torch

from megatron import mpu
from megatron.neox_arguments import NeoXArgs

VOCABULARY = 61  # of the data; the model pads it to 64

DEFAULTS = {
    "num_layers": 2,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "seq_length": 12,
    "max_position_embeddings": 12,
    "pos_emb": "rotary",
    "no_weight_tying": True,
    "train_micro_batch_size_per_gpu": 2,
    "train_iters": 10,
}


def model_args(**overrides) -> NeoXArgs:
    """The config of a tiny model."""
    values = DEFAULTS | overrides
    tensor, pipe = values.get("model_parallel_size", 1), values.get("pipe_parallel_size", 0)
    args = NeoXArgs.from_dict({"global_num_gpus": tensor * max(1, pipe)} | values)
    args.padded_vocab_size = 64
    return args


def random_tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """int64 [batch, length]."""
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def inputs_and_targets(batch: int = 2, length: int = 12, seed: int = 0):
    """((tokens, position_ids), (labels, loss_mask)), each [batch, length], with every third position masked out."""
    tokens = random_tokens(batch, length + 1, seed)
    position_ids = torch.arange(length).expand(batch, length)
    loss_mask = (torch.arange(batch * length) % 3 > 0).float().view(batch, length)
    return (tokens[:, :-1], position_ids), (tokens[:, 1:], loss_mask)


@torch.no_grad()
def randomize(model, scale: float = 0.2, seed: int = 7) -> None:
    """Random values for every parameter, biases and norms included, the same in every layout."""
    for number, (_, parameter) in enumerate(
        sorted(model.logical_named_parameters(), key=lambda item: item[0])
    ):
        spec = parameter.spec
        generator = torch.Generator().manual_seed(seed + number)
        logical = torch.randn(spec.logical_shape, generator=generator) * scale
        if parameter.dim() == 1:
            logical += 0.5
        rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
        parameter.copy_(mpu.local_slice(logical, spec, rank, size))


def logical_gradients(model) -> dict[str, torch.Tensor]:
    """Gradients of the logical parameters, put together over the tensor-parallel ranks.

    Raises AssertionError if the replicas of a parameter that is not sharded have different gradients.
    """
    gradients = {}
    for name, parameter in model.logical_named_parameters():
        if parameter.grad is None:
            continue
        parts = [parameter.grad.clone()]
        if mpu.get_model_parallel_world_size() > 1:
            parts = [torch.empty_like(parameter.grad) for _ in range(mpu.get_model_parallel_world_size())]
            torch.distributed.all_gather(
                parts, parameter.grad.contiguous(), group=mpu.get_model_parallel_group()
            )
        if parameter.spec.shard_dim is None:
            for other in parts[1:]:
                torch.testing.assert_close(
                    other, parts[0], rtol=1e-5, atol=1e-7, msg=f"replicas of {name} differ"
                )
        gradients[name] = mpu.merge_slices(parts, parameter.spec)
    return gradients
