"""A checkpoint written anew for other layouts holds the same values, and comes back to the last bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron.checkpointing import manifest
from megatron.checkpointing.parameter_table import GROUPS, PARAMETERS, describe
from megatron.checkpointing.reshape import Task, reshape
from megatron.checkpointing.saved_optimizer import MASTER
from megatron.checkpointing.source_tree import SourceTree
from megatron.checkpointing.streamed_file import Piece, Streamed, write_streamed
from megatron.checkpointing.target_tree import Layout
from megatron.common.errors import CheckpointError
from megatron.mpu import ParameterSpec
from tests.common.paths import ROOT

PLAIN = Layout(1, 1, 0, 0, "fp32")
LAYOUTS = {
    "tp2": Layout(1, 2, 0, 0, "fp32"),
    "pp2": Layout(1, 1, 2, 0, "fp32"),
    "tp2 x pp2 x dp2, ZeRO-1": Layout(2, 2, 2, 1, "fp32"),
    "dp3, ZeRO-2": Layout(3, 1, 0, 2, "fp32"),
    "dp3 x tp2, ZeRO-3": Layout(3, 2, 0, 3, "fp32"),
    "bf16": Layout(2, 1, 0, 0, "bfloat16"),
    "fp16, pp2": Layout(1, 1, 2, 0, "fp16"),
}
SPECS = {
    "0.word_embeddings.weight": ParameterSpec((7, 6), None, 0, vocabulary=True),
    "2.attention.query_key_value.weight": ParameterSpec((10, 6), None, 0, (6, 2, 2)),
    "2.mlp.linear1.weight": ParameterSpec((8, 6), None, 0, (4, 4)),
    "2.mlp.linear2.weight": ParameterSpec((6, 4), None, 1),
    "2.mlp.linear2.bias": ParameterSpec((6,), None),
    "3.mlp.linear2.weight": ParameterSpec((6, 4), None, 1),
    "3.mlp.linear2.bias": ParameterSpec((6,), None),
    "5.norm.weight": ParameterSpec((6,), None),
}
KINDS = ("exp_avg", "exp_avg_sq")


def values(scale: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    """{name: {kind: tensor}} that no rounding to 16 bit leaves as they are."""
    generator = torch.Generator().manual_seed(5)

    def draw(spec):
        return torch.randn(spec.logical_shape, generator=generator)

    return {name: {kind: draw(spec) for kind in (MASTER, *KINDS)} for name, spec in SPECS.items()}


def write(
    root: Path,
    tensors: dict[str, dict[str, torch.Tensor]],
    specs=SPECS,
    vocabulary: int = 7,
    trained: list[str] | None = None,
) -> Path:
    """A tree of one process in fp32, as a run leaves it. trained: parameters in the optimizer, by itself all."""
    directory = root / "global_step4"
    directory.mkdir(parents=True)
    groups = [[name for name in tensors if tensors[name][MASTER].dim() > 1 or not number] for number in (1,)]
    groups = [groups[0], [name for name in tensors if name not in groups[0]]]
    groups = groups if trained is None else [trained]
    order = [name for group in groups for name in group]
    states = {
        number: {kind: tensors[name][kind] for kind in KINDS} | {"step": torch.tensor(4.0)}
        for number, name in enumerate(order)
    }
    members = [{"params": [order.index(name) for name in group]} for group in groups]
    args = {
        "num_layers": 2,
        "make_vocab_size_divisible_by": 1,
        "model_parallel_size": 1,
        "padded_vocab_size": 7,
    }
    state = {
        "module": {f"sequential.{name}": kinds[MASTER] for name, kinds in tensors.items()},
        "optimizer": {"state": states, "param_groups": members},
        "iteration": 4,
        "args": args,
        "lr_scheduler": {"num_iters": 4},
        PARAMETERS: {name: describe(spec, spec.logical_shape) for name, spec in specs.items()},
        GROUPS: groups,
    }
    torch.save(state, directory / "mp_rank_00_model_states.pt")
    records = {path.name: manifest.file_record(path) for path in directory.iterdir()}
    layout = {"data_parallel_size": 1, "model_parallel_size": 1, "pipe_parallel_size": 0}
    manifest.write_manifest(directory, records, {"iteration": 4, "layout": layout, "vocabulary": vocabulary})
    return directory


@pytest.fixture
def source(tmp_path) -> Path:
    return write(tmp_path / "source", values())


def contents(directory: Path) -> dict:
    """{(file, keys...): tensor or plain value} of all files."""
    found: dict = {}

    def collect(content, keys):
        if isinstance(content, (dict, list)):
            items = content.items() if isinstance(content, dict) else enumerate(content)
            for key, value in items:
                collect(value, (*keys, key))
        else:
            found[keys] = content

    for path in sorted(directory.glob("*.pt")):
        collect(torch.load(path), (path.name,))
    return found


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        assert same, key


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_values_are_found_by_name_and_come_back_to_the_last_bit(layout, source, tmp_path):
    there = reshape(Task(source, layout), tmp_path / "there", jobs=1)
    assert manifest.problem(there) is None and (tmp_path / "there" / "latest").read_text() == "global_step4"
    assert manifest.read_manifest(there)["layout"]["model_parallel_size"] == layout.tensor
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bfloat16": torch.bfloat16}[layout.precision]
    tree = SourceTree(there, tensor_size=1)
    for name, kinds in values().items():
        assert torch.equal(tree.part(name, "weight", 0), kinds[MASTER].to(dtype)), name
        assert all(torch.equal(tree.part(name, kind, 0), value) for kind, value in kinds.items()), name
    assert tree.optimizer.stage(0, 0).steps == 4 and tree.state["lr_scheduler"] == {"num_iters": 4}
    back = reshape(Task(there, PLAIN), tmp_path / "back", jobs=1)
    again = reshape(Task(back, layout), tmp_path / "again", jobs=1)
    assert_equal(contents(there), contents(again))
    saved, returned = contents(source), contents(back)
    states = {key: value for key, value in saved.items() if isinstance(value, torch.Tensor)}
    assert_equal(states, {key: returned[key] for key in states})


def test_files_written_by_several_processes_are_the_same(source, tmp_path):
    layout = LAYOUTS["tp2 x pp2 x dp2, ZeRO-1"]
    alone = reshape(Task(source, layout), tmp_path / "alone", jobs=1)
    together = reshape(Task(source, layout), tmp_path / "together", jobs=2)
    assert_equal(contents(alone), contents(together))


def test_weights_alone_are_enough_if_nothing_else_is_wanted(source, tmp_path):
    there = reshape(Task(source, LAYOUTS["pp2"], with_optimizer=False), tmp_path / "there", jobs=1)
    assert not any("exp_avg" in key for key in contents(there))
    tree = SourceTree(there, tensor_size=2)
    embedding = values()["0.word_embeddings.weight"][MASTER]
    assert torch.equal(tree.part("0.word_embeddings.weight", "weight", 0), embedding[:4])
    # The second rank's last row is the padding of this layout.
    assert torch.equal(tree.part("0.word_embeddings.weight", "weight", 1)[:3], embedding[4:])


def test_a_stage_of_which_nothing_is_trained_comes_back_too(tmp_path):
    """As with a soft prompt, the only trained weights of its model."""
    drawn, trained = values(), "0.word_embeddings.weight"
    root = write(tmp_path / "frozen", drawn, trained=[trained])
    there = reshape(Task(root, Layout(2, 1, 2, 1, "fp32")), tmp_path / "there", jobs=1)
    back = reshape(Task(there, PLAIN), tmp_path / "back", jobs=1)
    tree = SourceTree(back, tensor_size=1)
    assert tree.groups() == [[trained]]
    assert all(torch.equal(tree.part(trained, kind, 0), drawn[trained][kind]) for kind in KINDS)
    assert all(torch.equal(tree.part(name, "weight", 0), kinds[MASTER]) for name, kinds in drawn.items())


@pytest.mark.parametrize("layout", [LAYOUTS["dp3 x tp2, ZeRO-3"], LAYOUTS["bf16"]], ids=["ZeRO-3", "bf16"])
def test_weights_alone_are_as_exact_as_the_optimizers_copies(layout, source, tmp_path):
    there = reshape(Task(source, layout), tmp_path / "there", jobs=1)
    plain = reshape(Task(there, PLAIN, with_optimizer=False), tmp_path / "plain", jobs=1)
    tree = SourceTree(plain, tensor_size=1)
    assert all(torch.equal(tree.part(name, "weight", 0), kinds[MASTER]) for name, kinds in values().items())


def test_what_cannot_be_done_is_said_in_one_line(source, tmp_path):
    reshape(Task(source, PLAIN), tmp_path / "there", jobs=1)
    with pytest.raises(CheckpointError, match="global_step4 is there already"):
        reshape(Task(source, PLAIN), tmp_path / "there", jobs=1)
    with pytest.raises(CheckpointError, match="ZeRO 3 has no pipelines"):
        reshape(Task(source, Layout(1, 1, 2, 3, "fp32")), tmp_path / "other", jobs=1)
    path = source / "mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cannot be used: mp_rank_00_model_states.pt has"):
        reshape(Task(source, PLAIN), tmp_path / "other", jobs=1)
    assert not (tmp_path / "other").exists() or not list((tmp_path / "other").iterdir())


def test_a_tree_that_does_not_describe_itself_needs_a_config(source, tmp_path):
    path = source / "mp_rank_00_model_states.pt"
    state = torch.load(path)
    del state[PARAMETERS], state[GROUPS]
    torch.save(state, path)
    (source / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="--config"):
        reshape(Task(source, PLAIN), tmp_path / "there", jobs=1)


def test_a_streamed_file_is_the_file_that_torch_writes(tmp_path):
    tensor = torch.arange(10.0)
    pieces = [Piece(0, 3, lambda: tensor[:3]), Piece(4, 10, lambda: tensor[4:])]
    content = {"a": [Streamed((2, 5), torch.float32, pieces), 7], "b": {"step": torch.tensor(3.0)}}
    rests = []
    write_streamed(tmp_path / "file.pt", content, 1, lambda: rests.append(1))
    found = torch.load(tmp_path / "file.pt")
    expected = tensor.clone()
    expected[3] = 0.0
    assert torch.equal(found["a"][0], expected.view(2, 5)) and found["a"][1] == 7
    assert found["b"]["step"] == 3.0
    assert len(rests) == 3


MEASURE = """
import json, resource, sys
from pathlib import Path
from megatron.checkpointing.reshape import Task, reshape
from megatron.checkpointing.target_tree import Layout
base, layout, target = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
# Everything that is to be imported is.
reshape(Task(Path(base), Layout(*layout)), Path(target, "first"), jobs=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reshape(Task(Path(sys.argv[4]), Layout(*layout)), Path(target, "second"), jobs=1)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A tree of 360 MiB in tensors of 2 MiB."""
    shape, names = (512, 1024), [f"{2 + number // 30}.part{number}.weight" for number in range(60)]
    tensors = {name: {kind: torch.full(shape, 1.5) for kind in (MASTER, *KINDS)} for name in names}
    return write(
        tmp_path_factory.mktemp("large"), tensors, {name: ParameterSpec(shape, None, 0) for name in names}, 0
    )


@pytest.mark.parametrize("layout", [[2, 2, 0, 1, "bfloat16"], [1, 2, 2, 0, "fp32"]], ids=["ZeRO-1", "pp2"])
def test_memory_is_that_of_a_few_tensors_not_of_the_model(layout, source, large, tmp_path):
    command = [sys.executable, "-c", MEASURE, str(source), json.dumps(layout), str(tmp_path), str(large)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    before, peak = (int(word) * 1024 for word in done.stdout.split())
    size = sum(path.stat().st_size for path in large.iterdir())
    assert peak - before < size / 6, f"{(peak - before) >> 20} MiB for a checkpoint of {size >> 20} MiB"
