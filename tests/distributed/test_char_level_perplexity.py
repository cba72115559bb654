"""The perplexity of a character is the same in every layout and follows from that of a token."""

import math

import pytest

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, VOCABULARY, batches, samples


class Pairs:
    """Every token but 0, which ends documents, stands for two characters."""

    eod, vocab_size = 0, VOCABULARY

    def detokenize(self, tokens: list[int]) -> str:
        return "ab" * len(tokens)


def perplexities(settings: dict, world_size: int) -> dict[str, float]:
    from megatron import mpu
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import evaluate, forward_step, setup_model_and_optimizer

    options = {"char_level_ppl": True, "global_num_gpus": world_size, "num_layers": 4}
    neox_args = NeoXArgs.from_dict({**BASE, **options, **settings})
    neox_args.configure_distributed_args()
    neox_args.tokenizer = Pairs()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    engine, *_ = setup_model_and_optimizer(neox_args)
    stage, stages = mpu.get_pipe_parallel_rank(), mpu.get_pipe_parallel_world_size()
    data = batches(neox_args) if stage in (0, stages - 1) else None
    return evaluate(neox_args, forward_step, data, engine)


@pytest.mark.parametrize(
    "layout", [{}, {"processes": 2}, {"processes": 3, "pipe_parallel_size": 3}], ids=["single", "dp2", "pp3"]
)
def test_every_rank_finds_the_perplexity_of_a_character(layout):
    settings = dict(layout)
    world_size = settings.pop("processes", 1)
    text = samples(0, 4)[:, 1:]
    ratio = text.numel() / (2 * int((text != 0).sum()))
    for results in run_distributed(perplexities, world_size, settings, world_size):
        assert results["lm_loss_char_lvl_ppl"] == pytest.approx(math.exp(results["lm_loss"] * ratio))
