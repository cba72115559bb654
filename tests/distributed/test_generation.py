"""Sampling gives the same in every layout, with and without a cache (P10, P11)."""

import functools

import pytest
import torch

from tests.common.distributed import run_distributed

SEQUENCE = 24
PROMPTS = [[7, 3, 200], [65, 66, 67, 68, 69, 70], [1]]
NEW_TOKENS = 12
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

MODELS = {
    "neox": {"pos_emb": "rotary", "rotary_pct": 0.5, "no_weight_tying": True, "gpt_j_residual": True},
    "gpt2": {"pos_emb": "learned", "no_weight_tying": False, "gpt_j_residual": False},
}
LAYOUTS = {
    "plain": (1, {}),
    "tp2": (2, {"model_parallel_size": 2}),
    "pp2": (2, {"pipe_parallel_size": 2}),
    "pp2 of equal stages": (
        2,
        {"pipe_parallel_size": 2, "pipe_partition_method": "uniform", "num_layers": 2},
    ),
    "pp3 cut behind the blocks": (
        3,
        {"pipe_parallel_size": 3, "pipe_partition_method": "type:EmbeddingPipe|Norm|Linear"},
    ),
    "tp2 x pp2": (4, {"model_parallel_size": 2, "pipe_parallel_size": 2}),
    "one-stage pipeline": (1, {"pipe_parallel_size": 1}),
}
ONE_SHARDED = ["tp2", "pp2", "tp2 x pp2"]


def build(settings, world_size):
    """(neox_args, InferenceModel) of a small model with fresh weights."""
    from megatron.engine.inference import InferenceModel
    from megatron.engine.setup import get_model
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs

    base = {
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "seq_length": SEQUENCE,
        "max_position_embeddings": SEQUENCE,
        "init_method_std": 0.3,  # wide, so that the likeliest token is no near tie
        "train_micro_batch_size_per_gpu": 2,
        "train_iters": 1,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
        "tokenizer_type": "CharLevelTokenizer",
        "data_path": "none",
        "global_num_gpus": world_size,
    }
    neox_args = NeoXArgs.from_dict(base | settings)
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    initialize_megatron(neox_args)
    return neox_args, InferenceModel(get_model(neox_args), neox_args)


def decode(settings, world_size, options):
    """The last step of stream_tokens on this rank: tokens, start, end, logits, done."""
    from megatron.text_generation_utils import stream_tokens

    neox_args, model = build(settings, world_size)
    steps = stream_tokens(neox_args, model, PROMPTS, eos_token_id=999, maximum_tokens=NEW_TOKENS, **options)
    return [*steps][-1]


def full_forward(settings, world_size, tokens):
    """Logits of all positions from one pass over finished texts, on all ranks of the replica."""
    neox_args, model = build(settings, world_size)
    model.inference_mode(use_cache=False)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()
    logits = model(tokens, positions)
    if logits is None or not model.is_last_stage:
        logits = torch.empty(*tokens.shape, neox_args.padded_vocab_size)
    return model.share(logits.contiguous())


@functools.cache
def plain_reference(kind, num_layers=4):
    settings = MODELS[kind] | {"num_layers": num_layers}
    return run_distributed(decode, 1, settings, 1, {})[0]


def of_layout(name, kind, function, *args):
    world_size, layout = LAYOUTS[name]
    return run_distributed(function, world_size, MODELS[kind] | layout, world_size, *args)


@pytest.mark.parametrize(
    "layout, kind",
    [*((layout, "neox") for layout in LAYOUTS), *((layout, "gpt2") for layout in ["plain", *ONE_SHARDED])],
)
def test_cached_greedy_text_and_logits_are_those_of_one_process(layout, kind):
    num_layers = LAYOUTS[layout][1].get("num_layers", 4)
    tokens, start, end, logits, _ = plain_reference(kind, num_layers)
    for got in of_layout(layout, kind, decode, {}):
        assert torch.equal(got[0], tokens) and torch.equal(got[1], start) and torch.equal(got[2], end)
        torch.testing.assert_close(got[3], logits, **TOLERANCE)


@pytest.mark.parametrize("layout", ["plain", *ONE_SHARDED])
def test_recomputed_and_full_forward_logits_equal_the_cached_ones(layout):
    tokens, start, _, logits, _ = plain_reference("neox")
    recomputed = of_layout(layout, "neox", decode, {"recompute": True})
    assert all(torch.equal(got[0], tokens) for got in recomputed)
    for got in recomputed:
        torch.testing.assert_close(got[3], logits, **TOLERANCE)
    for full in of_layout(layout, "neox", full_forward, tokens):
        for row, first in enumerate(start.tolist()):
            positions = slice(first - 1, first - 1 + NEW_TOKENS)
            torch.testing.assert_close(full[row, positions], logits[row], **TOLERANCE)


@pytest.mark.parametrize("layout", ONE_SHARDED)
def test_drawn_tokens_are_the_same_in_every_layout_and_on_every_rank(layout):
    options = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seeds": [1, 2, 3]}
    expected = run_distributed(decode, 1, MODELS["neox"], 1, options)[0]
    assert not torch.equal(expected[0], plain_reference("neox")[0])
    for got in of_layout(layout, "neox", decode, options):
        assert torch.equal(got[0], expected[0]) and torch.equal(got[2], expected[2])


def write_samples(settings, world_size, path):
    from megatron.text_generation_utils import generate_samples_from_prompt, generate_samples_unconditional

    neox_args, model = build(settings, world_size)
    sampling = {"temperature": 1.0, "maximum_tokens": 8, "eos_token_id": 999}
    records = generate_samples_unconditional(neox_args, model, 7, output_file=path, **sampling)
    prompts = ["abc", "a longer prompt", "x" * SEQUENCE, "b", "abc"]
    records += generate_samples_from_prompt(neox_args, model, prompts, **sampling)
    return [{key: value for key, value in record.items() if key != "duration_seconds"} for record in records]


@pytest.mark.parametrize(
    "world_size, layout", [(2, {}), (4, {"model_parallel_size": 2}), (2, {"pipe_parallel_size": 1})]
)
def test_data_parallel_replicas_share_the_prompts_and_one_rank_writes(world_size, layout, tmp_path):
    expected = run_distributed(write_samples, 1, MODELS["neox"], 1, str(tmp_path / "one.jsonl"))[0]
    path = tmp_path / "many.jsonl"
    results = run_distributed(write_samples, world_size, MODELS["neox"] | layout, world_size, str(path))
    assert all(records == expected for records in results)
    assert len(path.read_text().splitlines()) == 7
    assert expected[9]["length"] == 0 and "no room" in expected[9]["message"]
