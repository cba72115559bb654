import pytest
import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.model.moe import experts as module
from megatron.model.moe.experts import ParallelDroplessMLP
from megatron.model.moe.grouped import Groups
from megatron.mpu.state import Axis, ParallelState
from tests.common.models import model_args

EXPERTS, TOKENS, HIDDEN, WIDTH = 4, 30, 24, 32
ACTIVATIONS = {"gelu": F.gelu, "swiglu": F.silu}


def normal_(tensor, generator=None):
    return tensor.normal_(std=0.3, generator=generator)


def make(activation="gelu", **settings):
    torch.manual_seed(1)
    args = model_args(moe_num_experts=EXPERTS, activation=activation, ffn_hidden_size=WIDTH, **settings)
    return ParallelDroplessMLP(args, normal_, normal_)


def draw(top_k=2, used=EXPERTS):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(TOKENS, HIDDEN, generator=generator)
    weights = torch.rand(TOKENS, top_k, generator=generator)
    scores = torch.rand(TOKENS, used, generator=generator)
    return tokens, weights, scores.topk(top_k).indices


def token_by_token(mlp, tokens, weights, experts, activation):
    """The definition: the weighted sum of what a token's experts give."""
    rows = []
    for token, ws, es in zip(tokens, weights, experts, strict=True):
        total = torch.zeros(HIDDEN)
        for weight, expert in zip(ws, es.tolist(), strict=True):
            part = slice(expert * WIDTH, (expert + 1) * WIDTH)
            inner = ACTIVATIONS[activation](mlp.mlp.w1[part] @ token)
            if activation == "swiglu":
                inner = inner * (mlp.mlp.w3[part] @ token)
            total = total + weight * (mlp.mlp.w2[part].T @ inner)
        rows.append(total)
    return torch.stack(rows)


def gradients(output, *inputs):
    coefficients = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    return torch.autograd.grad((output * coefficients).sum(), inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("used", [EXPERTS, 3])
def test_output_and_gradients_are_those_of_the_definition(activation, top_k, used):
    """Experts that nobody chooses (used < EXPERTS) included."""
    mlp = make(activation)
    tokens, weights, experts = draw(top_k, used)
    inputs = [tokens.requires_grad_(), weights.requires_grad_(), *mlp.parameters()]
    output, expected = (
        mlp(tokens, weights, experts),
        token_by_token(mlp, tokens, weights, experts, activation),
    )
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for own, wanted in zip(gradients(output, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def test_no_token_is_dropped_when_all_choose_the_same_expert():
    mlp = make()
    tokens, weights, _ = draw(1)
    experts = torch.full((TOKENS, 1), 3)
    expected = token_by_token(mlp, tokens, weights, experts, "gelu")
    torch.testing.assert_close(mlp(tokens, weights, experts), expected, rtol=1e-5, atol=1e-5)
    assert (expected.norm(dim=-1) > 0.1).all()


@pytest.mark.parametrize("kernel", [False, True])
def test_ranks_give_summands_of_the_whole(kernel, monkeypatch):
    """The grouped kernel leaves rows of other ranks' experts as it finds them: they must not get out."""
    if kernel and not hasattr(F, "grouped_mm"):
        kernel = False
    monkeypatch.setattr(module, "has_kernel", lambda *_: kernel)
    whole = make()
    tokens, weights, experts = draw()
    inputs = [tokens.requires_grad_(), weights.requires_grad_()]
    output = whole(tokens, weights, experts)
    expected, parts, summed = gradients(output, *inputs), 0, [0, 0]
    for rank in range(2):
        with mpu.use(ParallelState(tensor=Axis(ranks=(0, 1), rank=rank))):
            mlp = make(model_parallel_size=2)
        with torch.no_grad():
            for name in ("w1", "w2"):
                getattr(mlp.mlp, name).copy_(getattr(whole.mlp, name).chunk(2)[rank])
        part = mlp(tokens, weights, experts)
        parts = parts + part
        summed = [a + b for a, b in zip(summed, gradients(part, *inputs), strict=True)]
    torch.testing.assert_close(parts, output, rtol=1e-5, atol=1e-5)
    for own, wanted in zip(summed, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def test_grouped_products_are_the_products_of_the_groups():
    sizes = torch.tensor([3, 0, 5])
    rows, matrices = torch.randn(10, 8), torch.randn(3, 8, 16)
    expected = torch.cat([rows[:3] @ matrices[0], rows[3:8] @ matrices[2]])
    kernels = [False, True] if hasattr(F, "grouped_mm") else [False]
    for kernel in kernels:
        torch.testing.assert_close(Groups(sizes, kernel).multiply(rows, matrices)[:8], expected)


def test_every_expert_is_initialised_as_a_matrix_of_its_own():
    def first_row_only(tensor, generator=None):
        tensor.zero_()[0] = 1.0
        return tensor

    args = model_args(moe_num_experts=EXPERTS, ffn_hidden_size=WIDTH)
    mlp = ParallelDroplessMLP(args, first_row_only, first_row_only)
    assert mlp.mlp.w1[:, 0].nonzero().flatten().tolist() == [0, WIDTH, 2 * WIDTH, 3 * WIDTH]
