"""What is in checkpoint files is shown, and two of them compared, without running anything."""

import pytest
import torch

from megatron.checkpointing import manifest
from megatron.checkpointing.inspection import check_attributes, comparison, contents, described, difference
from megatron.common.errors import CheckpointError
from tests.common.runs import run_command

STATE = {
    "module": {"0.weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(3, dtype=torch.bfloat16)},
    "optimizer": {"groups": [{"lr": 0.1}, {"lr": 0.2}], "empty": {}},
    "iteration": 7,
}


@pytest.fixture
def saved(tmp_path):
    torch.save(STATE, tmp_path / "state.pt")
    return tmp_path / "state.pt"


def test_everything_nested_is_found_under_its_path(saved):
    assert list(contents(saved)) == [
        "module/0.weight",
        "module/bias",
        "optimizer/groups/0/lr",
        "optimizer/groups/1/lr",
        "optimizer/empty",
        "iteration",
    ]
    assert contents(saved, ["optimizer/groups/1"]) == {"optimizer/groups/1/lr": 0.2}
    files = [contents(saved, ["modul", "iteration"]), {}]
    check_attributes(["iteration"], files, "here")
    with pytest.raises(CheckpointError, match="here holds nothing under 'modul'"):
        check_attributes(["iteration", "modul"], files, "here")


def test_attributes_of_objects_are_shown(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    torch.save({"loss_scaler": DynamicLossScaler(8.0, 2.0, 2, 1.0, 1, False)}, tmp_path / "state.pt")
    assert contents(tmp_path / "state.pt")["loss_scaler/cur_scale"] == 8.0


def test_tensors_are_described_with_statistics():
    values = torch.tensor([1.0, 3.0, float("nan")])
    assert described(values) == "tensor [3] float32 12 B"
    assert described(values, statistics=True).endswith("mean 2, std 1, min 1, max 3, 1 not finite")
    assert described("a" * 200).startswith("str 'aaa") and len(described("a" * 200)) < 100


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.zeros(2), torch.zeros(3), "shapes [2] and [3]"),
        (torch.zeros(2), torch.zeros(2).half(), "torch.float32 and torch.float16"),
        (torch.zeros(2), torch.tensor([0.0, 0.5]), "values differ by up to 0.5, beyond rounding"),
        (torch.ones(1), torch.ones(1) + 1e-6, "within rounding"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.5, torch.nan]), "up to 0.5, beyond rounding"),
        (torch.tensor([2**60]), torch.tensor([2**60 + 1]), "values differ"),
        (torch.tensor([1.0]), torch.tensor([torch.nan]), "up to inf, beyond rounding"),
        (1, 1.0, "int 1 and float 1.0"),
        (torch.ones(1), "x", "tensor [1]"),
    ],
)
def test_differences_are_named(first, second, words):
    assert words in difference(first, second)


def test_equal_values_that_are_no_numbers_are_equal():
    values = torch.tensor([1.0, torch.nan, torch.inf])
    assert difference(values, values.clone()) is None


def test_a_comparison_says_which_side_lacks_a_key():
    first, second = {"a": 1, "b": torch.ones(2)}, {"b": torch.ones(2), "c": 3}
    assert list(comparison(first, second, differences_only=False)) == [
        "a: only in the first",
        "b: equal, tensor [2] float32 8 B",
        "c: only in the second",
    ]
    assert len(list(comparison(first, second, differences_only=True))) == 2


def make_checkpoint(root, iteration, value):
    directory = root / f"global_step{iteration}"
    directory.mkdir(parents=True)
    torch.save({"weight": torch.full((100,), value)}, directory / "weights.pt")
    files = {name: manifest.file_record(directory / name) for name in manifest.content_files(directory)}
    manifest.write_manifest(directory, files, {"iteration": iteration})
    (root / "latest").write_text(directory.name)
    return directory


def test_the_scripts_show_compare_and_verify(tmp_path):
    first, second = (make_checkpoint(tmp_path, number, float(number)) for number in (1, 2))
    shown = run_command(["tools/ckpts/inspect_checkpoints.py", first, "--statistics"], tmp_path).stdout
    assert shown.splitlines()[:2] == [
        "weights.pt",
        "  weight: tensor [100] float32 400 B mean 1, std 0, min 1, max 1",
    ]
    script = ["tools/ckpts/inspect_checkpoints.py", "--compare", "--diff"]
    compared = run_command([*script, f"{first},{second}"], tmp_path).stdout
    assert compared == "weights.pt: weight: values differ by up to 1, beyond rounding\n"
    assert run_command([*script, f"{first},{first}"], tmp_path).stdout == ""

    verified = run_command(["tools/ckpts/verify.py", tmp_path], tmp_path)
    assert verified.stdout.count("complete and undamaged") == 2
    content = bytearray((second / "weights.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (second / "weights.pt").write_bytes(content)
    (tmp_path / "latest").write_text("global_step3")
    # A place that is not there keeps nothing from the others.
    damaged = run_command(["tools/ckpts/verify.py", tmp_path / "nothing", tmp_path], tmp_path, check=False)
    assert damaged.returncode == 1
    assert damaged.stderr.startswith("error: ") and damaged.stderr.count("\n") == 1
    assert "weights.pt is damaged (its checksum differs)" in damaged.stdout
    assert "names global_step3, which is not there" in damaged.stdout
