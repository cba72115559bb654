"""Optimizer states by parameter name, out of every form in which DeepSpeed keeps them."""

import pytest
import torch

from megatron.checkpointing.model_files import ModelFiles
from megatron.checkpointing.saved_optimizer import MASTER, SavedOptimizer
from megatron.checkpointing.weights import SavedWeights
from megatron.common.errors import CheckpointError
from tests.common.neox.training import Sizes, new_run, train_step
from tests.common.neox.trees import SCALE, Form, rank_part, write_tree

FORMS = {
    "fp32": Form(),
    "fp32, one stage of a pipeline, steps by group": Form(pp=1, fused=True),
    "fp16": Form("fp16"),
    "fp16, old names": Form("fp16", pp=1, legacy=True, fused=True),
    "fp32, two stages": Form(pp=2),
    "fp16, two stages, two tensor ranks": Form("fp16", tp=2, pp=2),
    "ZeRO-1, three partitions": Form("fp16", zero=1, dp=3),
    "ZeRO-1 bf16, elastic": Form("bf16", zero=1, dp=2, elastic=True),
    "ZeRO-1, two stages, two tensor ranks": Form("fp16", zero=1, dp=2, tp=2, pp=2),
}


@pytest.fixture(scope="module")
def run():
    run = new_run(True, Sizes(hidden=8, heads=2, vocabulary=16))
    for seed in range(3):
        train_step(run, torch.randint(16, (2, 17), generator=torch.Generator().manual_seed(seed)))
    return run


def opened(directory) -> SavedOptimizer:
    weights = SavedWeights(directory)
    return SavedOptimizer(weights, ModelFiles(directory, weights.tensor_size))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_states_are_found_by_name(tmp_path, run, form):
    saved = opened(write_tree(tmp_path, run, form))
    values = {"exp_avg": run.exp_avg, "exp_avg_sq": run.exp_avg_sq}
    if form.zero or form.precision != "fp32":
        values[MASTER] = run.weights
    for rank in range(form.tp):
        for name in run.weights:
            slot = saved.slot(name, rank, likely_stage=1)
            assert slot.kinds() == set(values)
            for kind, tensors in values.items():
                expected = rank_part(run, name, tensors[name], form, rank, kind == MASTER)
                assert torch.equal(slot.value(kind), expected), (name, kind)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_steps_and_loss_scale_are_found_wherever_they_are_kept(tmp_path, run, form):
    stage = opened(write_tree(tmp_path, run, form)).stage(0, 0)
    assert stage.steps == 3
    assert stage.scaler.get("cur_scale") == (SCALE if form.zero or form.precision == "fp16" else None)


def refused(directory, name="2.mlp.linear1.weight") -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(directory).slot(name, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path, action) -> None:
    state = torch.load(path, weights_only=False)
    action(state)
    torch.save(state, path)


def test_a_missing_partition_is_named(tmp_path, run):
    directory = write_tree(tmp_path, run, Form("fp16", zero=1, dp=3))
    (directory / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    assert "has no *zero_pp_rank_1_mp_rank_00_optim_states.pt, one of 3 files" in refused(directory)


def test_a_missing_model_rank_is_counted(tmp_path, run):
    directory = write_tree(tmp_path, run, Form("fp16", zero=1, tp=2, pp=2))
    (directory / "mp_rank_02_model_states.pt").unlink()
    assert "has 3 mp_rank_*_model_states.pt files" in refused(directory)


def test_a_tree_without_an_optimizer_says_what_to_do(tmp_path, run):
    directory = write_tree(tmp_path, run, Form("fp16", zero=1))
    (directory / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    message = refused(directory)
    assert "has no optimizer state" in message and "set no_load_optim or finetune" in message


def test_an_unknown_form_is_refused_with_the_keys_that_were_looked_for(tmp_path, run):
    directory = write_tree(tmp_path, run, Form("fp16"))

    def older(state):
        state["optimizer"] = {"local_sub_partitions_of_fp32_groups": [], "zero_stage": 1}

    change(directory / "mp_rank_00_model_states.pt", older)
    assert "unknown form (none of the keys single_partition_of_fp32_groups" in refused(directory)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_stages_that_cannot_be_told_apart_are_refused(tmp_path, run, precision):
    directory = write_tree(tmp_path, run, Form(precision, pp=2))

    def tie(state):
        # As where the last stage has a copy of the embedding.
        if precision == "fp32":
            state["optimizer"]["param_groups"][0]["params"].append(99)
        else:
            flats = state["optimizer"]["fp32_groups_flat"]
            flats[0] = torch.cat([flats[0], torch.zeros(128)])

    change(directory / "mp_rank_01_model_states.pt", tie)
    assert "has no key param_shapes" in refused(directory)


def test_parameters_padded_one_by_one_are_refused_not_misread(tmp_path, run):
    directory = write_tree(tmp_path, run, Form("fp16", zero=1))

    def pad(state):
        state["optimizer_state_dict"]["param_alignment_paddings"] = [[0, 4], []]

    change(directory / "zero_pp_rank_0_mp_rank_00_optim_states.pt", pad)
    assert "param_alignment_paddings" in refused(directory)


def test_states_of_another_model_do_not_fit(tmp_path, run):
    directory = write_tree(tmp_path, run, Form("fp16"))

    def cut(state):
        state["optimizer"]["fp32_groups_flat"][0] = torch.zeros(10)

    change(directory / "mp_rank_00_model_states.pt", cut)
    assert "optimizer states of 10 values where its model has" in refused(directory)


def test_a_parameter_that_was_not_trained_is_named(tmp_path, run):
    assert "no optimizer state of 9.norm.weight" in refused(
        write_tree(tmp_path, run, Form()), "9.norm.weight"
    )


def test_a_single_group_holds_all_parameters_when_nothing_decays(tmp_path, run):
    directory = write_tree(tmp_path, run, Form())

    def without_decay(state):
        states = [{"exp_avg": value} for value in run.exp_avg.values()]
        groups = [{"params": list(range(len(states)))}]
        state["optimizer"] = {"state": dict(enumerate(states)), "param_groups": groups}

    change(directory / "mp_rank_00_model_states.pt", without_decay)
    saved = opened(directory)
    for name in run.weights:
        assert torch.equal(saved.slot(name, 0).value("exp_avg"), run.exp_avg[name])


def test_halves_that_llama_once_kept_apart_are_one_matrix(tmp_path, run):
    """mlp.w3 (multiplied), mlp.w1 (activated) and mlp.w2 of earlier versions."""
    directory = write_tree(tmp_path, run, Form("fp16", zero=1, dp=2))

    def rename(name: str) -> list[str]:
        return [name.replace("mlp.linear1.weight", half) for half in ("mlp.w1.weight", "mlp.w3.weight")]

    def split(state):
        module, (shapes, others) = state["module"], state["param_shapes"]
        for name in [name for name in module if name.endswith("mlp.linear1.weight")]:
            w1, w3 = rename(name)
            module[w1], module[w3] = module.pop(name).chunk(2)
        for name in [name for name in module if ".linear2.weight" in name]:
            module[name.replace("linear2", "w2")] = module.pop(name)
        apart = {}
        for name, shape in shapes.items():
            if name.endswith("mlp.linear1.weight"):
                apart |= dict.fromkeys(rename(name), torch.Size([shape[0] // 2, *shape[1:]]))
            else:
                apart[name.replace("linear2", "w2")] = shape
        state["param_shapes"] = [apart, others]

    change(directory / "mp_rank_00_model_states.pt", split)
    saved = opened(directory)
    for layer in (2, 3):
        name = f"{layer}.mlp.linear1.weight"
        first, second = saved.weights.part(name, 0).chunk(2)
        expected = run.weights[name].half().chunk(2)
        assert torch.equal(first, expected[1]) and torch.equal(second, expected[0])
        first, second = saved.slot(name, 0).value("exp_avg").chunk(2)
        expected = run.exp_avg[name].chunk(2)
        assert torch.equal(first, expected[1]) and torch.equal(second, expected[0])
        other = f"{layer}.mlp.linear2.weight"
        assert torch.equal(saved.slot(other, 0).value("exp_avg"), run.exp_avg[other])
        assert torch.equal(saved.weights.part(other, 0), run.weights[other].half())
