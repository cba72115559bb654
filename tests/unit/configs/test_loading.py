"""Every shipped file loads with what it is meant to be combined with, and the whole can be planned."""

import pytest

from megatron.common.errors import MissingPackageError
from megatron.learning_rates import learning_rate
from megatron.neox_arguments.schedule_options import schedule_iterations, warmup_iterations
from megatron.planning.report import describe_plan
from tests.common.shipped import (
    LOCAL,
    TRAINING,
    files,
    load,
    models,
    values_of,
    with_companions,
    with_training,
)

# Files without a model -> what they are meant to be combined with.
HELPERS = {
    LOCAL: ["125M.yml"],
    TRAINING: ["llama/7B.yml", LOCAL],
    "cpu_mock_config.yml": ["125M.yml", LOCAL],
    "docker/pythia-paths.yml": ["125M.yml"],
    "eleutherai_cluster.yml": ["125M.yml"],
    "interactive.yml": ["quickstart.yml"],
    "local_setup_comet.yml": ["125M.yml"],
    "local_setup_wandb.yml": ["125M.yml"],
    "prof.yml": ["125M.yml"],
    "slurm_local.json": ["125M.yml"],
    "slurm_local.yml": ["slurm_125M.yml"],
    "sparse.yml": ["125M.yml", LOCAL],
    "text_generation.yml": ["125M.yml", LOCAL],
    "two_processes.yml": ["quickstart.yml"],
}
NEEDS_A_PACKAGE = {"1-3B-transformer-engine.yml": "transformer_engine"}


def test_every_file_is_a_model_or_a_known_helper():
    assert set(files()) == set(models()) | set(HELPERS)


@pytest.mark.parametrize("name", models())
def test_a_model_loads_and_asks_for_nothing_in_vain(name):
    own_data = {"data_path", "train_data_paths"} & set(values_of(name))
    companions = with_companions(name)
    data = {} if own_data or LOCAL in companions else {"data_path": "data/text_document"}
    assert load(companions, **data).notes() == []


@pytest.mark.parametrize("name", HELPERS)
def test_a_helper_loads_with_its_model(name):
    # A number of devices given twice is refused.
    devices = {"global_num_gpus": None} if name == "two_processes.yml" else {}
    args = load([name, *HELPERS[name]], **devices)
    for key, value in values_of(name).items():
        if key != "attention_config":
            assert getattr(args, key) == value


def test_sparse_layers_alternate_with_full_ones():
    args = load(["125M.yml", "sparse.yml", LOCAL])
    assert args.attention_config == ["local", "global"] * 6


@pytest.mark.parametrize("name", [name for name in models() if name not in NEEDS_A_PACKAGE])
def test_a_model_can_be_planned(name):
    args = load(with_companions(name), data_path=None) if LOCAL in with_companions(name) else load([name])
    plan = describe_plan(args)
    assert "  parameters    " in plan
    assert "launch:" in plan


def test_deepspeed_accepts_every_model():
    from deepspeed.runtime.config import DeepSpeedConfig

    for name in models():
        args = load(with_training(name))
        # Its check of the batch counts the processes that are there, which is one.
        micro_batch = args.train_micro_batch_size_per_gpu * args.gradient_accumulation_steps
        config = {**args.deepspeed_config, "train_batch_size": micro_batch}
        assert DeepSpeedConfig(config).gradient_clipping == config["gradient_clipping"]


@pytest.mark.parametrize("name", NEEDS_A_PACKAGE)
def test_a_missing_package_is_named(name):
    try:
        __import__(NEEDS_A_PACKAGE[name])
    except ImportError:
        with pytest.raises(MissingPackageError, match=NEEDS_A_PACKAGE[name]) as caught:
            describe_plan(load([name, LOCAL]))
        assert "\n" not in str(caught.value)
    else:
        assert "launch:" in describe_plan(load([name, LOCAL]))


@pytest.mark.parametrize("name", [name for name in models() if name.startswith("opt/")])
def test_rates_of_opt_fall_in_a_line_to_a_tenth(name):
    args = load([name, LOCAL])
    warmup, length = warmup_iterations(args), schedule_iterations(args)

    def rate(step: float) -> float:
        return learning_rate(step, args.lr, warmup, length, args.lr_decay_style, args.min_lr)

    tokens = args.train_batch_size * args.seq_length
    assert args.train_iters * tokens == pytest.approx(300e9, rel=1e-5)
    assert warmup == 2000 if name == "opt/175B.yml" else warmup * tokens == 375_000_000
    assert rate(warmup) == pytest.approx(args.lr)
    assert rate(args.train_iters) == pytest.approx(args.lr / 10, rel=1e-4)
    assert rate((warmup + args.train_iters) / 2) == pytest.approx(0.55 * args.lr, rel=1e-4)
