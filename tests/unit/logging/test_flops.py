"""FLOPs are counted from the architecture."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron.logging import human_readable_flops
from megatron.logging.flops import hardware_flops_per_iteration, model_flops_per_iteration
from megatron.model import build_sequential
from megatron.neox_arguments import NeoXArgs

LARGE = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
    "train_batch_size": 4,
    "checkpoint_activations": True,
    "mlp_multiple_of": 1,
    "global_num_gpus": 1,
}


def config(**changes) -> NeoXArgs:
    args = NeoXArgs.from_dict({**LARGE, **changes})
    args.padded_vocab_size = 50304
    return args


def test_operations_per_iteration_have_the_golden_values():
    assert hardware_flops_per_iteration(config()) == pytest.approx(9.939091193856e12)
    assert model_flops_per_iteration(config()) == pytest.approx(7.929046499328e12)


def test_without_recomputation_both_counts_agree():
    args = config(checkpoint_activations=False)
    assert hardware_flops_per_iteration(args) == model_flops_per_iteration(args)


def test_fewer_key_value_heads_cost_less():
    saved = 3 * 2 * 12 * 4 * 2048 * 768 * 2 * (768 - 256)
    found = model_flops_per_iteration(config()) - model_flops_per_iteration(config(num_kv_heads=4))
    assert found == pytest.approx(saved)


def test_a_window_limits_the_positions_that_count():
    saved = 3 * 12 * 4 * 2048 * 4 * 768 * (2048 - 256)
    windowed = config(sliding_window_width=256)
    assert model_flops_per_iteration(config()) - model_flops_per_iteration(windowed) == pytest.approx(saved)
    one_in_two = config(attention_config=[[["global", "local"], "all"]], sparsity_config={"window": 256})
    assert model_flops_per_iteration(config()) - model_flops_per_iteration(one_in_two) == pytest.approx(
        saved / 2
    )


def test_of_a_block_sparse_layer_the_blocks_count_that_its_layout_has():
    def missing(**options):
        sparse = config(attention_config=[[["sparse_fixed"], 12]], sparsity_config={"block": 256, **options})
        return model_flops_per_iteration(config()) - model_flops_per_iteration(sparse)

    # Eight blocks in stretches of two, and the second of every earlier stretch: 4 * 3 + 2 * (1 + 2 + 3) of 36 blocks.
    seen = 24 / 36
    square = 3 * 12 * 4 * 2048 * 4 * 2048 * 768
    assert missing(num_local_blocks=2) == pytest.approx((1 - seen) * square)
    assert missing(num_local_blocks=8) == pytest.approx(0)


def test_shorter_samples_cost_less_than_proportionally():
    half = model_flops_per_iteration(config(), sequence=1024)
    assert half == pytest.approx(model_flops_per_iteration(config(max_position_embeddings=1024)))
    assert half < model_flops_per_iteration(config()) / 2


def test_only_the_experts_that_a_token_goes_to_count():
    one_of_four = config(moe_num_experts=4, moe_expert_interval=2, moe_top_k=1, ffn_hidden_size=3072)
    two_of_four = config(moe_num_experts=4, moe_expert_interval=2, moe_top_k=2, ffn_hidden_size=3072)
    tokens, layers = 4 * 2048, 6
    router = 3 * layers * tokens * 2 * 768 * 4
    expert = 3 * layers * tokens * 2 * 2 * 768 * 3072
    dense = model_flops_per_iteration(config())
    assert model_flops_per_iteration(one_of_four) - dense == pytest.approx(router)
    assert model_flops_per_iteration(two_of_four) - dense == pytest.approx(router + expert)


def counted_by_torch(**changes) -> tuple[float, float]:
    """(matrix products of a forward pass as torch counts them, our model FLOPs of that pass) of a tiny model."""
    tiny = {
        "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16,
        "train_batch_size": 2, "no_weight_tying": True, "checkpoint_activations": False,
    }  # fmt: skip
    args = config(**{**tiny, **changes})
    args.padded_vocab_size = 64
    model = build_sequential(args)
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    # torch does not count inside of the fused attention that a CPU has.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model((tokens, torch.arange(16).expand(2, 16)))
    return counter.get_total_flops(), model_flops_per_iteration(args) / 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 2, "activation": "swiglu", "ffn_hidden_size": 48},
        {"head_dim": 16},
        {"embedding_size": 16},
        {"attention_config": [[["gmlp"], "all"]]},
        {"attention_config": [[["amlp"], "all"]]},
    ],
    ids=str,
)
def test_the_count_is_that_of_the_matrix_products_that_happen(changes):
    counted, ours = counted_by_torch(**changes)
    assert ours == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_recurrent_blocks_cost_their_matrix_products_and_something_for_the_recurrence(kind):
    wide = {"attention_config": [[[kind], "all"]], "hidden_size": 128}
    counted, ours = counted_by_torch(**wide)
    assert counted * 0.9 < ours < counted * 1.4


def test_the_scan_counts_what_was_agreed_on():
    """c s B d (11 n + 4 r + 1) + 6 c s B d h + 8 c s B d for each layer of mamba with d = 2 h, n = 16, r = h / 16."""
    args = config(attention_config=[[["mamba"], "all"]])
    tokens, channels = 4 * 2048, 1536
    layer = channels * (11 * 16 + 4 * 48 + 1) + 6 * channels * 768 + 2 * channels * 4
    assert model_flops_per_iteration(args) == pytest.approx(3 * tokens * (12 * layer + 2 * 768 * 50304))


def test_readable_form():
    assert human_readable_flops(9.939e12) == "9.9TFLOPS"
    assert human_readable_flops(12.0) == "12.0"
