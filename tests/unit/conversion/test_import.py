"""Hugging Face folders of every form are read, and what does not fit is refused in one line."""

import errno
import json

import pytest
import torch
import transformers
import yaml

from megatron.checkpointing import manifest
from megatron.checkpointing.weights import SavedWeights
from megatron.common.errors import CheckpointError, ConfigError, NeoXError
from megatron.conversion.compare import check_logits
from megatron.conversion.from_hf import import_hf
from megatron.conversion.native_tree import NativeTree
from megatron.conversion.to_hf import export_hf
from tests.unit.conversion.models import SIZES, gpt_neox, make, same_bits

NORM = "gpt_neox.final_layer_norm.weight"
EMBEDDING, OUTPUT = "gpt_neox.embed_in.weight", "embed_out.weight"


def back(target, folder, **options):
    export_hf(target / "global_step0", [], folder, **options)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def as_bin(folder, weights: dict) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def stored(folder) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def store(folder, weights: dict) -> None:
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_torch_files_are_read(tmp_path):
    model = gpt_neox(tmp_path / "hf")
    # Older versions stored masks and tables as well.
    computed = {
        f"gpt_neox.layers.0.attention.{name}": torch.ones(3)
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
    }
    as_bin(tmp_path / "hf", stored(tmp_path / "hf") | computed)
    import_hf(tmp_path / "hf", tmp_path / "neox")
    assert same_bits(back(tmp_path / "neox", tmp_path / "back"), model)


def test_several_files_with_an_index_are_read(tmp_path):
    model = gpt_neox(tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").unlink()
    model.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert len([*(tmp_path / "hf").glob("*.safetensors")]) > 2
    import_hf(tmp_path / "hf", tmp_path / "neox")
    assert same_bits(back(tmp_path / "neox", tmp_path / "back"), model)
    index = tmp_path / "hf/model.safetensors.index.json"
    content = index.read_text()
    places = json.loads(content)["weight_map"]
    places[NORM] = next(file for file in places.values() if file != places[NORM])
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match=f"has no {NORM}, which the index"):
        import_hf(tmp_path / "hf", tmp_path / "other")
    index.write_text(content)
    next((tmp_path / "hf").glob("*-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="lacks model-0000.* fetch them"):
        import_hf(tmp_path / "hf", tmp_path / "other")


def test_names_of_the_model_without_its_output_are_known(tmp_path):
    model = gpt_neox(tmp_path / "hf", tie_word_embeddings=True)
    store(
        tmp_path / "hf",
        {name.removeprefix("gpt_neox."): value for name, value in stored(tmp_path / "hf").items()},
    )
    import_hf(tmp_path / "hf", tmp_path / "neox")
    assert same_bits(back(tmp_path / "neox", tmp_path / "back"), model)


def test_the_number_format_stays_unless_another_is_asked_for(tmp_path):
    model = gpt_neox(tmp_path / "hf", torch.bfloat16)
    import_hf(tmp_path / "hf", tmp_path / "neox")
    assert yaml.safe_load((tmp_path / "neox/config.yml").read_text())["precision"] == "bfloat16"
    again = back(tmp_path / "neox", tmp_path / "back")
    assert again.dtype == torch.bfloat16 and same_bits(again, model)
    assert back(tmp_path / "neox", tmp_path / "fp32", precision="fp32").dtype == torch.float32
    import_hf(tmp_path / "hf", tmp_path / "half", precision="fp16")
    weights = SavedWeights(tmp_path / "half/global_step0").layer(0, 0)
    assert weights["word_embeddings.weight"].dtype == torch.float16


def test_the_checkpoint_is_complete_and_verified(tmp_path):
    gpt_neox(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "neox", tensor=2, pipe=2)
    tree = tmp_path / "neox/global_step0"
    assert manifest.problem(tree) is None
    assert (tmp_path / "neox/latest").read_text() == "global_step0"
    assert check_logits(tmp_path / "hf", tmp_path / "neox/config.yml", tree) < 1e-5
    file = tree / "layer_02-model_01-model_states.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "layer_02-model_01" in manifest.problem(tree)


def test_other_logits_are_noticed(tmp_path):
    gpt_neox(tmp_path / "hf")
    config = import_hf(tmp_path / "hf", tmp_path / "neox")
    store(tmp_path / "hf", stored(tmp_path / "hf") | {NORM: torch.zeros(32)})
    with pytest.raises(CheckpointError, match="differ by"):
        check_logits(tmp_path / "hf", config, tmp_path / "neox/global_step0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({NORM: None}, "the weights gpt_neox.final_layer_norm.weight are missing"),
        ({"gpt_neox.layers.0.lora": torch.ones(2)}, "no place for the weights gpt_neox.layers.0.lora"),
        ({NORM: torch.ones(31)}, r"5.norm.weight would be \(31,\), but the config describes \(32,\)"),
        # Neither filled up as if a layout had padded them, nor cut.
        (
            {OUTPUT: torch.ones(60, 32)},
            "embed_out.weight has 60 rows, and the model's config says vocab_size=61",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    gpt_neox(tmp_path / "hf")
    changed = stored(tmp_path / "hf") | change
    store(tmp_path / "hf", {name: value for name, value in changed.items() if value is not None})
    with pytest.raises(CheckpointError, match=message):
        import_hf(tmp_path / "hf", tmp_path / "neox")
    assert not (tmp_path / "neox/latest").exists()
    assert not list((tmp_path / "neox").glob("*global_step0*"))


def test_a_shared_output_that_is_stored_as_well_must_be_the_same(tmp_path):
    model = gpt_neox(tmp_path / "hf", tie_word_embeddings=True)
    weights = stored(tmp_path / "hf")
    store(tmp_path / "hf", weights | {OUTPUT: weights[EMBEDDING].clone()})
    import_hf(tmp_path / "hf", tmp_path / "neox")
    assert same_bits(back(tmp_path / "neox", tmp_path / "back"), model)
    store(tmp_path / "hf", weights | {OUTPUT: weights[EMBEDDING] + 1})
    with pytest.raises(CheckpointError, match=r"embed_out.weight is not equal to .*tie_word_embeddings"):
        import_hf(tmp_path / "hf", tmp_path / "other")


def test_logits_are_compared_where_a_table_of_positions_has_rows_before_the_first(tmp_path):
    sizes = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
    make(transformers.OPTConfig(**sizes, ffn_dim=44, dropout=0.0)).save_pretrained(tmp_path / "hf")
    config = import_hf(tmp_path / "hf", tmp_path / "neox")
    assert check_logits(tmp_path / "hf", config, tmp_path / "neox/global_step0") < 1e-5


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", r"only points .*git lfs pull"),
        ("pytorch_model.bin", [1, 2], "holds no weights by name, but a list"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantised weights cannot be had"),
        ("config.json", {"vocab_size": "many"}, "vocab_size': TypeError"),
    ],
)
def test_files_of_other_things_are_refused(tmp_path, file, content, message):
    gpt_neox(tmp_path)
    path = tmp_path / file
    if file.endswith(".bin"):
        (tmp_path / "model.safetensors").unlink()
    if file == "config.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    elif file.endswith(".bin"):
        torch.save(content, path)
    else:
        path.write_bytes(content)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        import_hf(tmp_path, tmp_path / "neox")


def test_a_checkpoint_is_never_written_over(tmp_path):
    gpt_neox(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "neox")
    (tmp_path / "neox/tokenizer").mkdir()
    (tmp_path / "neox/tokenizer/mine").touch()
    with pytest.raises(CheckpointError, match="is there already"):
        import_hf(tmp_path / "hf", tmp_path / "neox")
    assert (tmp_path / "neox/tokenizer/mine").exists()


def test_a_config_that_somebody_has_changed_is_never_written_over(tmp_path, capfd):
    gpt_neox(tmp_path / "hf")
    first = import_hf(tmp_path / "hf", tmp_path / "neox")
    mine = first.read_text().replace("train_iters: 1000", "train_iters: 7")
    first.write_text(mine)
    second = import_hf(tmp_path / "hf", tmp_path / "neox", tag="global_step1")
    assert first.read_text() == mine and "stays as it is" in capfd.readouterr().err
    assert (
        second.parent == tmp_path / "neox/global_step1/configs" and "train_iters: 1000" in second.read_text()
    )


@pytest.mark.parametrize("moment", ["_lay_out", "put", "_place_config"])
def test_a_full_disk_is_said_in_one_line_and_nothing_is_left(tmp_path, monkeypatch, moment):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    gpt_neox(tmp_path / "hf")
    monkeypatch.setattr(NativeTree, moment, fail)
    with pytest.raises(
        NeoXError, match=r"neox cannot be written \(No space left on device\); free some space"
    ):
        import_hf(tmp_path / "hf", tmp_path / "neox")
    assert list((tmp_path / "neox").iterdir()) == []


def test_folders_of_other_things_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no config.json"):
        import_hf(tmp_path, tmp_path / "neox")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="config.json: model_type: unknown family 'bert': choose one of"):
        import_hf(tmp_path, tmp_path / "neox")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json cannot be used"):
        import_hf(tmp_path, tmp_path / "neox")
    gpt_neox(tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read"):
        import_hf(tmp_path / "hf", tmp_path / "neox")
