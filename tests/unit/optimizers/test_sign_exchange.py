"""One bit a value loses nothing in the long run, and every rank gets the same."""

import torch

from megatron.optimizers.sign_exchange import SignExchange
from tests.common.distributed import run_distributed

SHAPES = [(33,), (4, 5), (1,), (16,)]
STEPS = 20


def values(step: int, rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def exchange(steps: int, resume_at: int | None = None) -> dict:
    group, rank = torch.distributed.group.WORLD, torch.distributed.get_rank()
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    exchanged, results = SignExchange(sizes, group, torch.device("cpu")), []
    for step in range(steps):
        if step == resume_at:
            state = {key: value.clone() for key, value in exchanged.state().items()}
            exchanged = SignExchange(sizes, group, torch.device("cpu"))
            exchanged.load(state)
        results.append(exchanged(values(step, rank)))
    sent = exchanged._take_apart(exchanged.sent_error)
    left = torch.zeros_like(exchanged.sent_error)
    left[rank] = exchanged.averaged_error
    return {"results": results, "sent": sent, "averaged": exchanged._take_apart(left)}


def test_what_is_not_sent_is_remembered_to_the_last_bit_of_information():
    ranks = run_distributed(exchange, 3, STEPS)
    for number, shape in enumerate(SHAPES):
        given = sum(sum(values(step, rank)[number] for rank in range(3)) / 3 for step in range(STEPS)).view(
            -1
        )
        got = sum(result[number] for result in ranks[0]["results"])
        kept = sum(rank["sent"][number] for rank in ranks) / 3 + sum(
            rank["averaged"][number] for rank in ranks
        )
        torch.testing.assert_close(got + kept, given, rtol=1e-4, atol=1e-4)
        assert kept.abs().max() < 5 and shape


def test_all_ranks_get_the_same_bits():
    ranks = run_distributed(exchange, 2, 3)
    for other in ranks[1:]:
        for mine, theirs in zip(ranks[0]["results"], other["results"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_an_exchange_goes_on_from_its_state():
    straight, resumed = run_distributed(exchange, 2, 6), run_distributed(exchange, 2, 6, resume_at=3)
    for mine, theirs in zip(straight[1]["results"][-1], resumed[1]["results"][-1], strict=True):
        assert torch.equal(mine, theirs)
