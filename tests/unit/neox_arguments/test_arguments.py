import dataclasses
import json
import subprocess
import sys

import pytest

from megatron.common.errors import ConfigError, LaunchError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.log_files import write_configuration
from tests.common.paths import ROOT
from tests.unit.neox_arguments.basic import MINIMAL, minimal


def problems(**changes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        NeoXArgs.from_dict(minimal(**changes))
    return caught.value.problems


def test_all_problems_of_a_configuration_are_reported_together():
    found = problems(num_layer=3, hidden_size="wide", norm="layrnorm", te_mha=True, min_lr=1.0)
    assert found == [
        "unknown key 'num_layer'; did you mean 'num_layers'?",
        "hidden_size='wide' must be a whole number",
        "norm='layrnorm' must be one of layernorm, rmsnorm, non_parametric_layernorm, scalenorm, te_rmsnorm, "
        "te_layernorm; did you mean 'layernorm'?",
        "te_mha=True is not supported yet; leave it at False",
        "min_lr=1.0 exceeds the learning rate optimizer.params.lr=0.001",
    ]


def test_a_bad_value_hides_no_other_problem_and_invents_none():
    assert problems(hidden_size=None, num_attention_heads="4", seq_length=64) == [
        "num_attention_heads='4' must be a whole number",
        "hidden_size must be set",
        "max_position_embeddings=32 must be at least seq_length=64",
    ]


def test_every_field_has_a_default_that_fits_its_type():
    args = NeoXArgs.from_dict(MINIMAL)
    assert args.validate_types() and args.validate_values()


def test_construction_with_keywords_checks_as_well():
    with pytest.raises(ConfigError, match="hidden_size=63 must be a multiple of num_attention_heads=4"):
        NeoXArgs(**minimal(hidden_size=63))


def test_null_means_the_default():
    args = NeoXArgs.from_dict({**MINIMAL, "num_workers": None, "sample_output_file": None})
    assert args.num_workers == 2
    assert args.sample_output_file is None


def test_a_given_derived_value_must_agree_with_its_source():
    optimizer = {"type": "Adam", "params": {"lr": 0.01}}
    assert NeoXArgs.from_dict(minimal(optimizer=optimizer, lr=0.01)).lr == 0.01
    assert problems(optimizer=optimizer, lr=0.02) == [
        "lr=0.02 follows from optimizer.params.lr, which makes it 0.01; change optimizer.params.lr instead"
    ]


def test_equality_is_equality_of_all_keys():
    assert NeoXArgs.from_dict(MINIMAL) == NeoXArgs.from_dict(MINIMAL)
    assert NeoXArgs.from_dict(MINIMAL) != NeoXArgs.from_dict(minimal(seed=5))


def test_a_variant_derives_anew_what_follows_from_the_change():
    args = NeoXArgs.from_dict(minimal(optimizer={"type": "Adam", "params": {"lr": 0.01}}, train_batch_size=8))
    changed = args.variant(train_micro_batch_size_per_gpu=4, optimizer=None)
    assert (changed.train_batch_size, changed.gradient_accumulation_steps, changed.lr) == (8, 2, 0.001)
    assert (args.gradient_accumulation_steps, args.lr) == (4, 0.01)


def test_a_variant_may_have_another_number_of_layers():
    args = NeoXArgs.from_dict(minimal(attention_config=[[["global", "flash"], "all"]]))
    assert args.attention_config == ["global", "flash"]
    assert args.variant(num_layers=4).attention_config == ["global", "flash"] * 2


def test_values_are_updated_by_name_only_if_they_exist():
    args = NeoXArgs.from_dict(MINIMAL)
    args.update_values({"user_script": "train.py", "seed": 3})
    assert (args.user_script, args.seed) == ("train.py", 3)
    with pytest.raises(ValueError, match="unknown key 'sed'; did you mean 'seed'"):
        args.update_value("sed", 1)


def test_defaults_are_listed_per_group():
    from megatron.neox_arguments.neox_args import NeoXArgsTokenizer

    assert dict(NeoXArgsTokenizer().defaults()) == {
        "tokenizer_type": "GPT2BPETokenizer",
        "padded_vocab_size": None,
    }


def test_views_split_the_keys_between_program_deepspeed_and_launcher():
    args = NeoXArgs.from_dict(MINIMAL)
    names = {field.name for field in dataclasses.fields(args)}
    assert set(args.all_config) == names
    assert set(args.megatron_config) & set(args.deepspeed_runner) == set()
    assert "num_layers" in args.megatron_config and "hostfile" in args.deepspeed_runner
    assert "optimizer" not in args.megatron_config


def test_extra_deepspeed_keys_stand_in_the_place_of_their_container():
    from megatron.neox_arguments.deepspeed_args import NeoXArgsDeepspeedConfig

    args = NeoXArgs.from_dict(minimal(deepspeed_extra_args={"compile": {"deepcompile": False}}))
    values = args.get_parent_class_value_dict_extra_ds(NeoXArgsDeepspeedConfig, only_non_defaults=True)
    assert values["compile"] == {"deepcompile": False} and "deepspeed_extra_args" not in values


def test_other_attributes_may_be_attached():
    args = NeoXArgs.from_dict(MINIMAL)
    args.tokenizer = "any object"
    assert args.tokenizer == "any object" and NeoXArgs.tokenizer is None


def test_the_full_report_lists_changed_keys_first(capsys):
    NeoXArgs.from_dict(minimal(seed=99)).print()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("-") and lines[-1].startswith("-")
    states = [line.rsplit(" ", 1)[-1] for line in lines[1:-1]]
    assert states == sorted(states, reverse=True)
    assert any(
        line.startswith("  seed ....") and " 99 ..." in line and line.endswith("updated") for line in lines
    )
    assert len(lines) - 2 == len(dataclasses.fields(NeoXArgs))


def test_params_dtype_follows_the_precision():
    import torch

    for precision, dtype in (("fp16", torch.half), ("bfloat16", torch.bfloat16), ("fp32", torch.float)):
        assert NeoXArgs.from_dict(minimal(precision=precision)).params_dtype == dtype


def test_the_configuration_is_read_without_torch_numpy_or_deepspeed():
    code = (
        "import sys; from megatron.neox_arguments import NeoXArgs;"
        "NeoXArgs.from_ymls(['configs/125M.yml', 'configs/local_setup.yml', 'configs/cpu_mock_config.yml']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'deepspeed')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_keys_and_defaults_never_change_by_accident():
    golden = ROOT / "tests" / "golden" / "config_keys.txt"
    keys = sorted(dataclasses.fields(NeoXArgs), key=lambda field: field.name)
    assert [f"{key.name} = {key.default!r}" for key in keys] == golden.read_text().splitlines()


def test_log_files_copy_the_output_and_are_never_truncated(tmp_path):
    code = (
        "import sys; from megatron.neox_arguments import NeoXArgs;"
        f"a = NeoXArgs.from_dict({minimal(log_dir=str(tmp_path / 'logs'))!r}); a.enable_logging();"
        "sys.stdout.write('seen'); sys.stderr.write('wrong')"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("seen", "wrong")
    texts = {path.name.rsplit("_", 1)[-1]: path.read_text() for path in (tmp_path / "logs").glob("*.txt")}
    assert texts == {"stdout.txt": "seenseen", "stderr.txt": "wrongwrong"}


def test_the_full_configuration_goes_to_the_log_folder(tmp_path):
    args = NeoXArgs.from_dict(minimal(log_dir=str(tmp_path / "logs")))
    write_configuration(tmp_path, args.all_config)
    written = json.loads((tmp_path / "neox_args.json").read_text())
    assert written == args.all_config


def test_a_log_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="log_dir='.*file/logs' cannot be written"):
        NeoXArgs.from_dict(minimal(log_dir=str(tmp_path / "file" / "logs"))).enable_logging()


def test_a_hostfile_that_does_not_exist_is_noted():
    (note,) = NeoXArgs.from_dict(minimal(hostfile="/mock_path")).notes()
    assert note == "hostfile='/mock_path' does not exist: the job runs on this machine only"
