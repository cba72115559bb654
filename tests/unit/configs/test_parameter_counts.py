"""The shipped models have as many parameters as the published ones, with their vocabularies."""

import pytest
import torch
import transformers

from megatron.planning.layers import count_layers, total_parameters
from megatron.tokenizer.build import vocab_size_with_padding
from tests.common.paths import ROOT
from tests.common.shipped import load, models, with_training
from tests.unit.configs.published import MODELS, PALM_BILLIONS, Model

# Their shapes are those of others: of 1-3B.yml, but in a package that need not be here; one to be tokenized first.
UNPUBLISHED = {"1-3B-transformer-engine.yml", "quickstart.yml"}


NO_FILES = {key: None for key in ("vocab_file", "train_data_paths", "valid_data_paths", "test_data_paths")}


def counted(model: Model) -> int:
    """Parameters of the layers that a config file describes, but for those that only fill the checkpoint format."""
    args = load(with_training(model.name), tokenizer_type="CharLevelTokenizer", data_path="none", **NO_FILES)
    args.padded_vocab_size = model.vocabulary
    return total_parameters(count_layers(args)) - model.unused


def test_every_model_is_listed_once():
    assert sorted(model.name for model in MODELS) == sorted(set(models()) - UNPUBLISHED)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_vocabulary_is_padded_to_the_published_size(model):
    args = load(with_training(model.name), data_path="none", **NO_FILES)
    # Rows that only make the vocabulary divide by the tensor-parallel ranks do not belong to a model.
    padded = {
        vocab_size_with_padding(model.tokens, args.make_vocab_size_divisible_by, ranks)
        for ranks in (1, args.model_parallel_size)
    }
    assert model.vocabulary in padded


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_parameters_are_as_many_as_published(model):
    found = counted(model)
    assert model.parameters is not None or model.reference is not None
    if model.parameters is not None:
        assert found == model.parameters
    if model.reference is not None:
        with torch.device("meta"):
            reference = transformers.AutoModelForCausalLM.from_config(model.reference)
        assert found == sum(parameter.numel() for parameter in reference.parameters())


@pytest.mark.parametrize("name", PALM_BILLIONS)
def test_palm_has_the_billions_of_its_paper(name):
    (model,) = (model for model in MODELS if model.name == name)
    assert counted(model) / 1e9 == pytest.approx(PALM_BILLIONS[name], abs=0.01)


def test_the_documentation_gives_each_model_and_its_parameters():
    page = (ROOT / "docs/configs.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == {model.name for model in MODELS}
    for model in MODELS:
        assert rows[model.name].endswith(f"| {model.vocabulary:,} | {counted(model):,} |")
