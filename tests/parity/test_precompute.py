"""Precomputed log-probabilities equal those of transformers on the exported model, in every layout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron.data.gpt2_dataset import GPT2Dataset
from megatron.data.indexed_dataset import MMapIndexedDatasetBuilder, open_dataset
from tests.common.distributed import DistributedTestError, run_distributed
from tests.common.evaluation import write_tokenizer
from tests.grid.worker import share_process_groups
from tests.parity.evaluation_worker import LENGTH, SETTINGS, save_and_export

LAYOUTS = {"data": {}, "tensor": {"model_parallel_size": 2}, "pipe": {"pipe_parallel_size": 2}}
SIZES = [
    5,
    1,
    LENGTH,
    2,
    LENGTH + 1,
    80,
    17,
    1,
    1,
]  # cut ones, and a round without anything to predict at its end
VOCABULARY = 300


def write_data(prefix: Path, sizes: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, VOCABULARY, size).astype(np.uint16) for size in sizes]
    with MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16) as builder:
        for document in documents:
            builder.add_item(document)
            builder.end_document()
        builder.finalize(f"{prefix}.idx")
    return documents


@torch.no_grad()
def of_transformers(folder: str, documents: list[np.ndarray]) -> list[list[float]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for document in documents:
        tokens = torch.from_numpy(document[: LENGTH + 1].astype(np.int64))
        if len(tokens) == 1:
            found.append([])
            continue
        scores = model(tokens[None, :-1]).logits[0].log_softmax(-1)
        found.append(scores.gather(1, tokens[1:, None])[:, 0].tolist())
    return found


def alone(config: str, settings: dict, exported: str, documents: list[np.ndarray]) -> list[list[float]]:
    """Saves and exports a model; transformers' log-probabilities. Ours are computed by generate.py."""
    import generate
    from megatron import mpu

    share_process_groups()
    save_and_export(config, settings, exported)
    mpu.destroy_model_parallel()
    expected = of_transformers(exported, documents)
    generate.main([config])
    return expected


def in_layouts(config: str) -> list[list[str]]:
    from megatron import mpu
    from megatron.engine.inference import setup_for_inference_or_eval
    from megatron.text_generation_utils import precompute_logits

    share_process_groups()
    written = []
    for name, layout in LAYOUTS.items():
        values = {**layout, "global_num_gpus": 2, "precompute_model_name": name}
        model, neox_args = setup_for_inference_or_eval(overwrite_values=values, input_args=[config])
        written.append(precompute_logits(neox_args, model))
        mpu.destroy_model_parallel()
    return written


def again(config: str, changes: dict) -> list[str]:
    from megatron.engine.inference import setup_for_inference_or_eval
    from megatron.text_generation_utils import precompute_logits

    model, neox_args = setup_for_inference_or_eval(overwrite_values=changes, input_args=[config])
    return precompute_logits(neox_args, model)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(folder, config, transformers' answers) after a run in every layout."""
    folder = tmp_path_factory.mktemp("precompute")
    documents = write_data(folder / "text", SIZES)
    write_data(folder / "more", [7])
    settings = {
        **SETTINGS,
        "vocab_file": str(write_tokenizer(folder / "tokenizer", VOCABULARY)),
        "load": str(folder / "model"),
        "data_path": None,
        **{f"{split}_data_paths": [str(folder / "text")] for split in ("train", "valid")},
        "test_data_paths": [str(folder / "text"), str(folder / "more")],
        "text_gen_type": "precompute",
    }
    config = folder / "config.json"
    config.write_text(json.dumps(settings))
    arguments = (str(config), settings, str(folder / "hf"), documents)
    (expected,) = run_distributed(alone, 1, *arguments, init=False, timeout=200)
    written = [[f"{folder}/{data}_{name}" for data in ("text", "more")] for name in LAYOUTS]
    assert run_distributed(in_layouts, 2, str(config), init=False, timeout=200) == [written] * 2
    return folder, str(config), expected


@pytest.mark.parametrize("name", ["model_step3", *LAYOUTS])
def test_log_probabilities_are_those_of_transformers(place, name):
    folder, _, expected = place
    found = open_dataset(f"{folder}/text_{name}")
    assert found.dtype == np.float32 and found.sizes.tolist() == [LENGTH] * len(SIZES)
    assert found.doc_idx.tolist() == list(range(len(SIZES) + 1))
    for document, numbers in enumerate(expected):
        own = found[document]
        assert own[: len(numbers)] == pytest.approx(numbers, abs=1e-4)
        assert not own[len(numbers) :].any(), "nothing is said of what is not there"
    assert len(open_dataset(f"{folder}/more_{name}")) == 1


def test_training_data_read_them_beside_the_tokens_they_belong_to(place):
    folder, _, expected = place
    text, reference = open_dataset(folder / "text"), open_dataset(f"{folder}/text_data")
    count = len(SIZES)
    dataset = GPT2Dataset(
        "train",
        folder / "text",
        range(count),
        text,
        count,
        None,
        LENGTH,
        1,
        "unpacked",
        ref_dataset=reference,
    )
    for sample in dataset:
        document = next(
            n for n in range(count) if np.array_equal(sample["text"][: SIZES[n]], text[n][: LENGTH + 1])
        )
        assert sample["ref"][: len(expected[document])] == pytest.approx(expected[document], abs=1e-4)


def test_what_is_there_is_kept_and_what_does_not_fit_is_told(place):
    folder, config, _ = place
    before = Path(f"{folder}/text_data.bin").stat()
    changes = {"global_num_gpus": 1, "precompute_model_name": "data"}
    run_distributed(again, 1, config, changes, init=False)
    assert Path(f"{folder}/text_data.bin").stat() == before
    with pytest.raises(DistributedTestError) as caught:
        run_distributed(again, 1, config, changes | {"seq_length": LENGTH - 1}, init=False)
    assert f"text_data is there already, but not with {len(SIZES)} documents" in caught.value.exceptions[0]
