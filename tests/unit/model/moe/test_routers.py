import pytest
import torch

from megatron.model.moe.routers.sinkhorn import SinkhornRouter, sinkhorn
from megatron.model.moe.routers.topk import TopKTokenChoiceRouter

HIDDEN, EXPERTS, TOKENS = 16, 4, 64


def make(router, top_k=1, **options):
    torch.manual_seed(0)
    return router(HIDDEN, EXPERTS, top_k, lambda tensor, generator=None: tensor.normal_(), **options)


def plan_by_loop(scores: torch.Tensor, tol: float, most: int) -> list[list[float]]:
    """The formula of the docstring, number by number, in double precision."""
    tokens, experts = scores.shape
    cost = [[pow(2.718281828459045, float(value)) for value in row] for row in scores]
    rows = [1.0] * tokens
    columns = [1 / (experts * sum(cost[t][e] for t in range(tokens))) for e in range(experts)]
    for _ in range(most):
        before = columns
        rows = [
            1 / tokens / (sum(columns[e] * cost[t][e] for e in range(experts)) + 1e-8) for t in range(tokens)
        ]
        columns = [
            1 / experts / (sum(rows[t] * cost[t][e] for t in range(tokens)) + 1e-8) for e in range(experts)
        ]
        if sum(abs(a - b) for a, b in zip(before, columns, strict=True)) / experts <= tol:
            break
    return [[columns[e] * cost[t][e] * rows[t] for e in range(experts)] for t in range(tokens)]


@pytest.mark.parametrize("tol", [1e-4, 1e-1, 10.0])
def test_sinkhorn_follows_its_formula_and_stops_at_the_tolerance(tol):
    scores = torch.randn(12, EXPERTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.tensor(plan_by_loop(scores, tol, 3), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, tol).double(), expected, rtol=1e-5, atol=1e-9)


def test_a_sinkhorn_plan_has_equal_sums():
    plan = sinkhorn(torch.randn(200, EXPERTS), tol=0.0, max_iter=50)
    torch.testing.assert_close(plan.sum(0), torch.full((EXPERTS,), 1 / EXPERTS))
    torch.testing.assert_close(plan.sum(1), torch.full((200,), 1 / 200), rtol=1e-3, atol=0.0)


def test_huge_scores_leave_a_finite_plan():
    assert torch.isfinite(sinkhorn(torch.randn(50, EXPERTS) * 30 + 200)).all()


def test_sinkhorn_balances_in_training_and_takes_the_best_otherwise():
    router = make(SinkhornRouter)
    skewed = torch.randn(TOKENS, HIDDEN) + router.layer.weight[2].detach() * 0.3
    in_training = router(skewed).experts.flatten().bincount(minlength=EXPERTS)
    at_inference = router.eval()(skewed)
    counts = at_inference.experts.flatten().bincount(minlength=EXPERTS)
    assert counts.max() > in_training.max()
    assert torch.equal(at_inference.experts[:, 0], at_inference.logits.argmax(-1))


@pytest.mark.parametrize("top_k", [1, 2])
def test_sinkhorn_weights_are_the_activated_scores_at_the_choice(top_k):
    router = make(SinkhornRouter, top_k)
    routing = router(torch.randn(TOKENS, HIDDEN))
    scores = routing.logits.sigmoid() if top_k == 1 else routing.logits.softmax(-1)
    torch.testing.assert_close(routing.weights, scores.gather(1, routing.experts))
    assert routing.experts.shape == (TOKENS, top_k)


def test_topk_weights_are_the_softmax_over_all_experts():
    router = make(TopKTokenChoiceRouter, 2)
    tokens = torch.randn(TOKENS, HIDDEN)
    routing = router(tokens)
    best = (tokens @ router.layer.weight.T).softmax(-1).topk(2)
    torch.testing.assert_close(routing.weights, best.values)
    assert torch.equal(routing.experts, best.indices)


@pytest.mark.parametrize("router", [SinkhornRouter, TopKTokenChoiceRouter])
def test_normalised_weights_add_up_to_one(router):
    tokens = torch.randn(TOKENS, HIDDEN)
    plain, scaled = make(router, 2)(tokens).weights, make(router, 2, normalize=True)(tokens).weights
    torch.testing.assert_close(scaled, plain / plain.sum(-1, keepdim=True))
    torch.testing.assert_close(scaled.sum(-1), torch.ones(TOKENS))


def test_noise_is_within_its_bounds_and_in_training_only():
    router = make(TopKTokenChoiceRouter, jitter=0.1)
    tokens = torch.rand(TOKENS, HIDDEN) + 0.5
    with torch.no_grad():
        router.layer.weight.zero_()[:, 0] = 1.0
    ratio = router(tokens).logits[:, 0] / tokens[:, 0]
    assert ratio.min() >= 0.9 - 1e-6 and ratio.max() <= 1.1 + 1e-6
    assert ratio.std() > 0.03
    torch.testing.assert_close(router.eval()(tokens).logits[:, 0], tokens[:, 0])
