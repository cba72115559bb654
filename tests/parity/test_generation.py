"""Greedy continuations equal those of Hugging Face's generate, for a model with the same weights."""

import pytest
import torch

from tests.common.distributed import run_distributed

SEQUENCE, NEW_TOKENS = 48, 24
PROMPTS = [[5, 9, 300, 2], [77], list(range(20, 40))]
NAMES = {
    "embed_in.weight": "0.word_embeddings.weight",
    "final_layer_norm.": "7.norm.",
    "embed_out.weight": "8.final_linear.weight",
    "lm_head.weight": "8.final_linear.weight",
    "mlp.dense_h_to_4h": "mlp.linear1",
    "mlp.dense_4h_to_h": "mlp.linear2",
}


def native(name: str) -> str:
    """Hugging Face's name of a weight as ours: `gpt_neox.layers.0.mlp...` is layer 2 of the flat list."""
    name = name.removeprefix("gpt_neox.")
    if name.startswith("layers."):
        _, index, rest = name.split(".", 2)
        name = f"{int(index) + 2}.{rest}"
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def continuations(parallel_residual: bool):
    """(Hugging Face's, ours with a cache, ours without), new tokens by prompt."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from megatron.engine.inference import InferenceModel
    from megatron.engine.setup import get_model
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.text_generation_utils import stream_tokens

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        rotary_pct=0.25,
        max_position_embeddings=SEQUENCE,
        use_parallel_residual=parallel_residual,
        initializer_range=0.2,
        bos_token_id=511,
        eos_token_id=511,
        attn_implementation="eager",
    )
    theirs = GPTNeoXForCausalLM(config).eval()
    neox_args = NeoXArgs.from_dict(
        {
            "num_layers": 4,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "seq_length": SEQUENCE,
            "max_position_embeddings": SEQUENCE,
            "pos_emb": "rotary",
            "rotary_pct": 0.25,
            "no_weight_tying": True,
            "gpt_j_residual": parallel_residual,
            "train_micro_batch_size_per_gpu": 1,
            "train_iters": 1,
            "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
            "tokenizer_type": "CharLevelTokenizer",
            "data_path": "none",
            "global_num_gpus": 1,
        }
    )
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    initialize_megatron(neox_args)
    module = get_model(neox_args)
    weights = {native(name): value for name, value in theirs.state_dict().items()}
    module.load_state_dict(
        {f"sequential.{name}": value for name, value in weights.items() if "rotary" not in name}
    )
    model = InferenceModel(module, neox_args)

    def ours(recompute):
        steps = stream_tokens(
            neox_args, model, PROMPTS, eos_token_id=511, maximum_tokens=NEW_TOKENS, recompute=recompute
        )
        tokens, start, end, _, _ = [*steps][-1]
        return [row[first : last + 1].tolist() for row, first, last in zip(tokens, start, end, strict=True)]

    def of_theirs(prompt):
        output = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=511
        )
        return [token for token in output[0, len(prompt) :].tolist() if token != 511]

    return [of_theirs(prompt) for prompt in PROMPTS], ours(False), ours(True)


@pytest.mark.parametrize("parallel_residual", [True, False])
def test_greedy_continuations_equal_those_of_hugging_face(parallel_residual):
    ((theirs, cached, recomputed),) = run_distributed(continuations, 1, parallel_residual)
    assert [len(row) for row in theirs] == [NEW_TOKENS] * 3 and len(set(theirs[0])) > 5
    assert cached == theirs
    assert recomputed == theirs
