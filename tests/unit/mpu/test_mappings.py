import pytest
import torch

from megatron import mpu
from megatron.mpu import collectives, mappings
from tests.common.distributed import run_distributed

NAMES = (
    "copy_to_model_parallel_region",
    "reduce_from_model_parallel_region",
    "scatter_to_model_parallel_region",
    "gather_from_model_parallel_region",
    "reduce_scatter_to_sequence_parallel_region",
    "gather_from_sequence_parallel_region",
    "scatter_to_sequence_parallel_region",
)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_group_of_one_every_mapping_is_the_identity(name):
    tensor = torch.randn(4, 4)
    assert getattr(mpu, name)(tensor) is tensor


def apply_all(dtype, fp32_allreduce, as_nccl):
    """{name: (output, gradient of the input)} with input and output gradient that differ between ranks; as_nccl: by the
    collectives that NCCL is asked for, which gloo has as well by now."""
    if as_nccl:
        collectives.dist.get_backend = lambda group=None: "nccl"
    mpu.initialize_model_parallel(2, fp32_allreduce=fp32_allreduce)
    rank = mpu.get_model_parallel_rank()
    results = {}
    for name in NAMES:
        tensor = (torch.arange(32.0).view(4, 2, 4) + 100 * rank).to(dtype).requires_grad_()
        before = tensor.detach().clone()
        output = getattr(mappings, name)(tensor)
        gradient = (torch.arange(output.numel(), dtype=torch.float32).view(output.shape) + 10 * rank).to(
            dtype
        )
        kept = gradient.clone()
        output.backward(gradient)
        assert torch.equal(tensor, before), f"{name} changed its input"
        assert torch.equal(gradient, kept), f"{name} changed the incoming gradient"
        assert output.dtype == tensor.grad.dtype == dtype
        results[name] = (output.detach().float(), tensor.grad.float())
    return results


def identity(parts):
    return parts


def total(parts):
    return [parts[0] + parts[1]] * 2


def gather(dim):
    return lambda parts: [torch.cat(parts, dim)] * 2


def own(dim):
    return lambda parts: [part.chunk(2, dim)[rank] for rank, part in enumerate(parts)]


def own_of_total(dim):
    return lambda parts: own(dim)(total(parts))


EXPECTED = {
    "copy_to_model_parallel_region": (identity, total),
    "reduce_from_model_parallel_region": (total, identity),
    "scatter_to_model_parallel_region": (own(-1), gather(-1)),
    "gather_from_model_parallel_region": (gather(-1), own(-1)),
    "reduce_scatter_to_sequence_parallel_region": (own_of_total(0), gather(0)),
    "gather_from_sequence_parallel_region": (gather(0), own_of_total(0)),
    "scatter_to_sequence_parallel_region": (own(1), gather(1)),
}


@pytest.mark.parametrize(
    "dtype, fp32_allreduce, as_nccl",
    [(torch.float32, False, False), (torch.bfloat16, True, False), (torch.bfloat16, True, True)],
)
def test_forward_and_backward_of_every_mapping(dtype, fp32_allreduce, as_nccl):
    ranks = run_distributed(apply_all, 2, dtype, fp32_allreduce, as_nccl)
    for name, (forward, backward) in EXPECTED.items():
        inputs = [torch.arange(32.0).view(4, 2, 4).to(dtype) + 100 * rank for rank in range(2)]
        outputs = forward([part.float() for part in inputs])
        gradients = []
        for rank, output in enumerate(outputs):
            grad = torch.arange(output.numel(), dtype=torch.float32).view(output.shape) + 10 * rank
            gradients.append(grad.to(dtype).float())
        expected = backward(gradients)
        for rank in range(2):
            torch.testing.assert_close(ranks[rank][name][0], outputs[rank].to(dtype).float(), msg=name)
            torch.testing.assert_close(ranks[rank][name][1], expected[rank].to(dtype).float(), msg=name)


def broadcast():
    mpu.initialize_model_parallel(2)
    data = None
    if mpu.get_model_parallel_rank() == 0:
        data = {"text": torch.arange(6).view(2, 3), "reward": torch.tensor([7])}
    return mpu.broadcast_data(["text", "reward"], data, torch.int64)


def test_broadcast_gives_all_ranks_the_first_ones_data():
    for received in run_distributed(broadcast, 2):
        assert torch.equal(received["text"], torch.arange(6).view(2, 3))
        assert torch.equal(received["reward"], torch.tensor([7]))


def test_broadcast_on_one_rank_checks_the_dtype():
    data = {"text": torch.ones(2)}
    assert torch.equal(mpu.broadcast_data(["text"], data, torch.float32)["text"], torch.ones(2))
    with pytest.raises(AssertionError, match="to be sent as"):
        mpu.broadcast_data(["text"], data, torch.int64)
