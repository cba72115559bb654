"""A Hugging Face model is imported, trained and exported by the command lines."""

import importlib
import json
from pathlib import Path

import pytest
import transformers

from megatron.common.errors import NeoXError
from tests.common.corpus import stdlib_documents
from tests.common.runs import prepare_corpus, run_command
from tests.unit.conversion.models import SIZES, make, same_bits

WORDS = ("--tokenizer-type", "HFTokenizer", "--vocab-file", "neox/tokenizer/tokenizer.json")
TRAINING = {
    "train_iters": 2,
    "train_micro_batch_size_per_gpu": 2,
    "seq_length": 16,
    "eval_interval": 10,
    "eval_iters": 1,
    "log_interval": 1,
    "num_workers": 0,
    "save": "mine",
    "checkpoint_factor": 2,
    "num_gpus": 2,
}


def write_model(folder: Path) -> transformers.PreTrainedModel:
    """A LLaMA of 61 rows and a tokenizer of 59 tokens, which are the commonest words of the corpus."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    model = make(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=59, special_tokens=["<unk>", "</s>"])
    tokenizer.train_from_iterator(stdlib_documents(20), trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.save_pretrained(folder)
    return model


def test_a_model_is_imported_trained_and_exported(tmp_path):
    model = write_model(tmp_path / "hf")
    run_command(
        ["tools/ckpts/convert_hf_to_neox.py", "--input_dir", "hf", "--output_dir", "neox", "--tp", "2"],
        tmp_path,
    )
    run_command(
        [
            "tools/ckpts/convert_neox_to_hf.py", "--input_dir", "neox/global_step0", "--output_dir", "same",
            "--architecture", "llama",
        ],
        tmp_path,
    )  # fmt: skip
    assert same_bits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "same"), model)
    (tmp_path / "mine.yml").write_text(
        json.dumps({**TRAINING, "data_path": prepare_corpus(tmp_path, 30, WORDS)})
    )
    config = (tmp_path / "neox/config.yml").read_text()
    kept = [line for line in config.splitlines() if line.split(":")[0] not in TRAINING]
    (tmp_path / "model.yml").write_text("\n".join(kept))
    run_command(["deepy.py", "train.py", "model.yml", "mine.yml"], tmp_path)
    run_command(
        [
            "tools/ckpts/convert_neox_to_hf.py", "--input_dir", "mine/global_step2", "--config_file", "model.yml",
            "mine.yml", "--output_dir", "back", "--architecture", "llama",
        ],
        tmp_path,
    )  # fmt: skip
    trained = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert trained.config.vocab_size == 61
    differences = [
        float((value - model.state_dict()[name]).abs().max()) for name, value in trained.state_dict().items()
    ]
    # Two steps of a small rate moved the weights a little.
    assert 0 < max(differences) < 1e-3
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer.eos_token == "</s>" and len(tokenizer) == 59


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "convert_hf_to_neox.py",
            ["--input_dir", "no", "--output_dir", "o"],
            "no is no folder of a Hugging Face model",
        ),
        (
            "convert_neox_to_hf.py",
            ["--input_dir", "no", "--output_dir", "o"],
            "no is no folder of a checkpoint",
        ),
        (
            "convert_raw_llama_weights_to_neox.py",
            ["--input_dir", "no", "--output_dir", "o"],
            "no has no params.json",
        ),
        (
            "convert_hf_llama_to_neox.py",
            ["--model", "no/such", "--model_path", "o"],
            "no/such is no folder, and could not",
        ),
        (
            "convert_hf_to_sequential.py",
            ["--hf-model-name", "no/such", "--cache-dir", "c", "--ckpt-tmp-dir", "t"],
            "no/such is no",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch, script, arguments, message):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(f"tools.ckpts.{script.removesuffix('.py')}").main
    with pytest.raises(NeoXError) as raised:
        main(arguments)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_mistake_is_the_last_thing_that_the_command_line_says(tmp_path):
    arguments = ["--input_dir", "no", "--output_dir", "o"]
    result = run_command(["tools/ckpts/convert_hf_to_neox.py", *arguments], tmp_path, check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "no is no folder of a Hugging Face model" in result.stderr.splitlines()[-1]
