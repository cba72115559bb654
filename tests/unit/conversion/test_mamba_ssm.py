"""Exports for mamba_ssm have the tensors that it and transformers share under its names."""

import json

import pytest
import torch
import transformers
import yaml

from megatron.common.errors import ConfigError
from megatron.conversion.from_hf import import_hf
from megatron.conversion.mamba_ssm import export_mamba_ssm
from tests.unit.conversion.models import make


def imported(folder, tied: bool):
    config = transformers.MambaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, expand=3, tie_word_embeddings=tied
    )
    model = make(config)
    model.save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "neox", tensor=2)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_all_weights_are_there_under_the_packages_names(tmp_path, tied):
    model = imported(tmp_path, tied)
    folder = export_mamba_ssm(tmp_path / "neox/global_step0", [], tmp_path / "back")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    expected = {
        name.replace("backbone.embeddings", "backbone.embedding"): value
        for name, value in model.state_dict().items()
    }
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    config = json.loads((folder / "config.json").read_text())
    assert config["d_model"] == 32 and config["n_layer"] == 2 and config["vocab_size"] == 61
    assert (
        config["rms_norm"] is True and config["tie_embeddings"] is tied and config["ssm_cfg"]["expand"] == 3
    )


def test_what_the_package_cannot_express_is_refused(tmp_path):
    imported(tmp_path, True)
    keys = yaml.safe_load((tmp_path / "neox/config.yml").read_text())
    for change, message in (
        ({"norm": "scalenorm"}, "norm='scalenorm'"),
        ({"rms_norm_epsilon": 1e-6}, "epsilon of 1e-06"),
        (
            {"attention_config": [[["mamba", "global"], 1]], "num_attention_heads": 2},
            "other layers than mamba",
        ),
    ):
        (tmp_path / "other.yml").write_text(yaml.safe_dump({**keys, **change}))
        with pytest.raises(ConfigError, match=f"cannot express .*{message}"):
            export_mamba_ssm(tmp_path / "neox/global_step0", [tmp_path / "other.yml"], tmp_path / "back")
