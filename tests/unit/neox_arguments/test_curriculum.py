"""The length of a curriculum is a closed function of the iteration."""

import pytest

from megatron.common.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.curriculum import Curriculum, length_at, tokens_until
from tests.unit.neox_arguments.basic import minimal

LINEAR = {
    "enabled": True,
    "curriculum_type": "seqlen",
    "min_difficulty": 8,
    "max_difficulty": 32,
    "schedule_type": "fixed_linear",
    "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 8},
}
ROOT = {
    **LINEAR,
    "schedule_type": "fixed_root",
    "schedule_config": {"total_curriculum_step": 16, "difficulty_step": 2, "root_degree": 2},
}
STAIRS = {
    "schedule_type": "fixed_discrete",
    "schedule_config": {"difficulty": [8, 16, 32], "max_step": [2, 5]},
}


def lengths(options: dict, count: int) -> list[int]:
    curriculum = Curriculum.from_config(options)
    return [curriculum.length_at(iteration) for iteration in range(1, count + 1)]


def test_linear_growth_goes_up_in_steps_and_stays_at_the_maximum():
    # 8 + 4 t, rounded down to multiples of 8
    assert lengths(LINEAR, 8) == [8, 16, 16, 24, 24, 32, 32, 32]


def test_a_root_grows_fast_first():
    # 8 + 24 sqrt(t / 16), rounded down to multiples of 2
    assert lengths(ROOT, 17) == [14, 16, 18, 20, 20, 22, 22, 24, 26, 26, 26, 28, 28, 30, 30, 32, 32]


def test_stairs_hold_every_length_up_to_its_last_iteration():
    assert lengths(STAIRS, 7) == [8, 8, 16, 16, 16, 32, 32]


def test_a_minimum_off_the_grid_starts_at_the_next_multiple():
    assert lengths({**LINEAR, "min_difficulty": 9}, 1) == [16]


@pytest.mark.parametrize("options", [LINEAR, ROOT, STAIRS], ids=["linear", "root", "stairs"])
def test_all_lengths_are_those_that_occur(options):
    assert Curriculum.from_config(options).all_lengths() >= set(lengths(options, 40))


@pytest.mark.parametrize("options", [None, {}, {**LINEAR, "enabled": False}])
def test_without_a_curriculum_samples_are_whole(options):
    args = NeoXArgs.from_dict(minimal(curriculum_learning=options))
    assert length_at(args, 1) == 32


def test_deepspeed_is_not_given_the_curriculum():
    assert (
        "curriculum_learning" not in NeoXArgs.from_dict(minimal(curriculum_learning=LINEAR)).deepspeed_config
    )


BAD = [
    ({"schedule_type": "custom"}, "schedule_type='custom' must be one of fixed_linear"),
    ({"schedule_type": ["fixed_linear"]}, "schedule_type=['fixed_linear'] must be one of"),
    ({"enabled": "yes"}, "enabled='yes' must be true or false"),
    ({"max_difficulty": 10**15}, "more than seq_length=32"),
    ({"schedule_type": "fixed_liner"}, "did you mean 'fixed_linear'?"),
    ({"min_difficulty": 0}, "min_difficulty=0 must be a whole number above 0"),
    ({"min_difficulty": 33}, "min_difficulty=33 exceeds max_difficulty=32"),
    ({"max_difficulty": 64}, "reaches 64 tokens, more than seq_length=32"),
    ({"max_dificulty": 64}, "did you mean 'max_difficulty'?"),
    ({"curriculum_type": "vocab"}, "curriculum_type='vocab' must be 'seqlen'"),
    ({"schedule_config": {"difficulty_step": 8}}, "total_curriculum_step=None must be a whole number"),
    ({"schedule_config": [8]}, "schedule_config must be a mapping of total_curriculum_step"),
    ({**STAIRS, "schedule_config": {"difficulty": [8], "max_step": [2, 5]}}, "difficulty has 1 lengths"),
    ({**STAIRS, "schedule_config": {"difficulty": [8], "max_step": 2}}, "max_step=2 must be a list"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_a_mistake_is_named_in_one_line(changes, message):
    with pytest.raises(ConfigError) as caught:
        NeoXArgs.from_dict(minimal(curriculum_learning={**LINEAR, **changes}))
    (problem,) = caught.value.problems
    assert message in problem and problem.startswith("curriculum_learning") and "\n" not in problem


@pytest.mark.parametrize("options", [None, LINEAR, ROOT, STAIRS], ids=["none", "linear", "root", "stairs"])
def test_the_tokens_so_far_are_those_of_all_iterations_together(options):
    args = NeoXArgs.from_dict(minimal(curriculum_learning=options))
    for last in range(20):
        assert tokens_until(args, last) == sum(length_at(args, step) for step in range(1, last + 1))
    assert tokens_until(args, 10**12) == tokens_until(args, 20) + 32 * (10**12 - 20)


def test_sequence_parallelism_needs_lengths_that_its_ranks_can_share():
    odd = {**LINEAR, "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 3}}
    layout = {"sequence_parallel": True, "model_parallel_size": 2, "global_num_gpus": 2}
    with pytest.raises(ConfigError, match="reaches 9 tokens, which sequence_parallel cannot divide among"):
        NeoXArgs.from_dict(minimal(curriculum_learning=odd, **layout))
    assert NeoXArgs.from_dict(minimal(curriculum_learning=LINEAR, **layout)).validate_values()
