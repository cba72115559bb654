"""generate.py loads a saved model and samples from it, in every layout and precision."""

import json

import pytest
import torch

from megatron.tokenizer.char_level import CharLevelTokenizer
from tests.common.distributed import DistributedTestError, run_distributed

SETTINGS = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": 24,
    "max_position_embeddings": 24,
    "pos_emb": "rotary",
    "no_weight_tying": True,
    "init_method_std": 0.3,
    "train_micro_batch_size_per_gpu": 2,
    "train_iters": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
    "tokenizer_type": "CharLevelTokenizer",
    "data_path": "none",
    "checkpoint_factor": 1,
}
PROMPTS = "ab\nthe end\nx"


def save(settings):
    """Save a fresh model the way training does; returns greedy continuations by the model in memory."""
    from megatron.checkpointing import save_checkpoint
    from megatron.engine.inference import InferenceModel
    from megatron.engine.setup import build_engine, get_model
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.objectives import build_objective
    from megatron.text_generation_utils import generate_samples_from_prompt

    neox_args = NeoXArgs.from_dict(settings)
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    initialize_megatron(neox_args)
    engine, optimizer, scheduler = build_engine(neox_args, get_model(neox_args), build_objective(neox_args))
    assert save_checkpoint(neox_args, 3, engine, optimizer, scheduler)
    model = InferenceModel(engine, neox_args)
    records = generate_samples_from_prompt(neox_args, model, PROMPTS.split("\n"), maximum_tokens=6)
    return [record["text"] for record in records]


def generate(arguments):
    import generate

    generate.main(arguments)
    return torch.distributed.is_initialized()


def write_config(path, settings):
    path.write_text(json.dumps(settings))
    return str(path)


@pytest.mark.parametrize(
    "world_size, layout",
    [
        (1, {}),
        (1, {"precision": "bfloat16", "zero_optimization": {"stage": 1}}),
        (2, {"zero_optimization": {"stage": 2}}),
        (2, {"zero_optimization": {"stage": 3}}),
        (2, {"model_parallel_size": 2}),
        (2, {"pipe_parallel_size": 2, "precision": "bfloat16", "zero_optimization": {"stage": 1}}),
        (2, {"pipe_parallel_size": 2, "precision": "fp16"}),
        (4, {"model_parallel_size": 2, "pipe_parallel_size": 2, "checkpoint_activations": True}),
        (2, {"model_parallel_size": 2, "sequence_parallel": True}),
    ],
    ids=str,
)
def test_a_saved_model_is_loaded_and_continues_prompts_as_it_did_in_memory(world_size, layout, tmp_path):
    folder = {"save": str(tmp_path / "model"), "load": str(tmp_path / "model")}
    settings = SETTINGS | {"global_num_gpus": world_size} | folder | layout
    expected = run_distributed(save, world_size, settings, init=False)[0]
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    output = tmp_path / "samples.jsonl"
    keys = {
        "sample_input_file": str(tmp_path / "prompts.txt"),
        "sample_output_file": str(output),
        "maximum_tokens": 6,
        "return_logits": True,
    }
    config = write_config(tmp_path / "config.json", settings | keys)
    assert run_distributed(generate, world_size, [config], init=False) == [False] * world_size
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["context"] for record in records] == PROMPTS.split("\n")
    assert [record["text"] for record in records] == expected
    for record in records:
        likeliest = [max(range(len(logits)), key=logits.__getitem__) for logits in record["logits"]]
        assert CharLevelTokenizer(512).detokenize(likeliest) == record["text"]


def failure_of(settings, tmp_path):
    config = write_config(tmp_path / "config.json", SETTINGS | {"global_num_gpus": 1} | settings)
    with pytest.raises(DistributedTestError) as caught:
        run_distributed(generate, 1, [config], init=False)
    return caught.value.exceptions[0]


def test_sampling_without_a_checkpoint_to_load_is_refused(tmp_path):
    assert "ConfigError: load must name" in failure_of({}, tmp_path)


def test_a_missing_file_of_prompts_is_told_before_anything_is_loaded(tmp_path):
    settings = {"load": str(tmp_path / "nothing"), "sample_input_file": "no_prompts.txt"}
    assert "ConfigError: sample_input_file=no_prompts.txt is no file" in failure_of(settings, tmp_path)


def test_a_missing_checkpoint_folder_is_refused(tmp_path):
    assert "CheckpointError" in failure_of({"load": str(tmp_path / "nothing")}, tmp_path)


def test_a_missing_checkpoint_folder_is_refused_even_if_the_run_would_save_there(tmp_path):
    folder = str(tmp_path / "nothing")
    assert "CheckpointError" in failure_of({"load": folder, "save": folder}, tmp_path)


@pytest.mark.parametrize(
    "saved, sampled",
    [
        ({"global_num_gpus": 2, "model_parallel_size": 2}, {"global_num_gpus": 1}),
        ({"global_num_gpus": 2, "pipe_parallel_size": 2}, {"global_num_gpus": 1}),
        ({"global_num_gpus": 1}, {"global_num_gpus": 4, "model_parallel_size": 2, "pipe_parallel_size": 2}),
        (
            {"global_num_gpus": 2, "zero_optimization": {"stage": 3}},
            {"global_num_gpus": 1, "pipe_parallel_size": 1},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("divisor", [128, 300])
def test_a_model_can_be_sampled_in_another_layout_than_it_was_trained_in(saved, sampled, divisor, tmp_path):
    settings = SETTINGS | {"make_vocab_size_divisible_by": divisor, "load": str(tmp_path / "model")}
    first = settings | {"save": settings["load"]} | saved
    expected = run_distributed(save, saved["global_num_gpus"], first, init=False)[0]
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    keys = {
        "sample_input_file": f"{tmp_path}/prompts.txt",
        "sample_output_file": f"{tmp_path}/samples",
        "maximum_tokens": 6,
    }
    config = write_config(tmp_path / "config.json", settings | keys | sampled)
    run_distributed(generate, sampled["global_num_gpus"], [config], init=False)
    lines = (tmp_path / "samples").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == expected
