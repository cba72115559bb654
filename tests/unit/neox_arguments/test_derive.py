import pytest

from megatron.common.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.derive import assume_devices
from tests.unit.neox_arguments.basic import minimal


def derived(**changes) -> NeoXArgs:
    return NeoXArgs.from_dict(minimal(**changes))


@pytest.fixture(autouse=True)
def outside_any_job(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "DLTS_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("megatron.neox_arguments.derive.accelerator_count", lambda: 0)
    monkeypatch.setattr("megatron.common.hosts.accelerator_count", lambda: 0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4}, (32, 4, 4)),
        ({"train_batch_size": 32, "gradient_accumulation_steps": 4}, (32, 4, 4)),
        ({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}, (32, 4, 4)),
        ({"train_batch_size": 32}, (32, 16, 1)),
        ({"train_micro_batch_size_per_gpu": 4}, (8, 4, 1)),
    ],
)
def test_batch_keys_follow_from_one_another(given, expected):
    args = derived(**{"train_micro_batch_size_per_gpu": None, "global_num_gpus": 2, **given})
    triple = (args.train_batch_size, args.train_micro_batch_size_per_gpu, args.gradient_accumulation_steps)
    assert triple == expected and args.batch_size == expected[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "set train_micro_batch_size_per_gpu or train_batch_size"),
        (
            {"train_batch_size": 30, "train_micro_batch_size_per_gpu": 4},
            r"train_batch_size=30 must be a multiple of the data-parallel size \(2\) x train_micro_batch_size_per_gpu",
        ),
        ({"train_batch_size": 1}, r"^train_batch_size=1 must be a multiple of the data-parallel size \(2\)$"),
        (
            {"train_batch_size": 30, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3},
            "which is 24: train_batch_size=30",
        ),
        ({"train_batch_size": 0}, "batch sizes must be positive"),
        ({"train_micro_batch_size_per_gpu": 0}, "batch sizes must be positive"),
    ],
)
def test_impossible_batches_are_refused_with_the_numbers(given, message):
    with pytest.raises(ConfigError, match=message):
        derived(**{"train_micro_batch_size_per_gpu": None, "global_num_gpus": 2, **given})


def test_a_machine_without_gpus_runs_one_process_unless_told_otherwise():
    assert derived(global_num_gpus=None).global_num_gpus == 1
    assert derived(global_num_gpus=None, num_gpus=3).global_num_gpus == 3


def test_the_hostfile_and_its_filters_count_the_devices(tmp_path, monkeypatch):
    hosts = tmp_path / "hosts"
    hosts.write_text("one slots=4\n# two is down\nthree slots=4\n")
    given = {"global_num_gpus": None, "hostfile": str(hosts)}
    assert derived(**given).global_num_gpus == 8
    assert derived(**given, include="one:0,1@three").global_num_gpus == 6
    assert derived(**given, exclude="one").global_num_gpus == 4
    assert derived(**given, num_nodes=1).global_num_gpus == 4
    assert derived(**given, num_gpus=1).global_num_gpus == 2
    monkeypatch.setenv("DLTS_HOSTFILE", str(hosts))
    assert derived(global_num_gpus=None).global_num_gpus == 8


def test_a_bad_hostfile_is_a_problem_of_the_configuration(tmp_path):
    (tmp_path / "hosts").write_text("one slots=four\n")
    with pytest.raises(ConfigError, match="hosts, line 1: 'one slots=four' is not of the form NAME slots=N"):
        derived(global_num_gpus=None, hostfile=str(tmp_path / "hosts"))


def test_inside_a_job_the_environment_counts_the_processes(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert derived(global_num_gpus=None).global_num_gpus == 6


def test_processes_must_fill_the_grid():
    with pytest.raises(
        ConfigError, match="6 processes, which is not a multiple of pipe_parallel_size=2 x model"
    ):
        derived(global_num_gpus=6, pipe_parallel_size=2, model_parallel_size=2)
    args = derived(global_num_gpus=8, pipe_parallel_size=2, model_parallel_size=2)
    assert args.data_parallel_size == 2 and args.is_pipe_parallel


def test_a_plan_assumes_the_fewest_devices_its_grid_can_do_with():
    assert assume_devices({"pipe_parallel_size": 4, "model_parallel_size": 2})["global_num_gpus"] == 8
    assert assume_devices({"pipe_parallel_size": 0}) == {"pipe_parallel_size": 0}
    assert assume_devices({"pipe_parallel_size": 4, "global_num_gpus": 96})["global_num_gpus"] == 96


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({}, "fp32"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"fp16": {"enabled": False}}, "fp32"),
        ({"bf16": {"enabled": True}}, "bfloat16"),
        ({"precision": "fp16"}, "fp16"),
        ({"precision": "bfloat16"}, "bfloat16"),
    ],
)
def test_precision_and_its_dictionaries_agree(given, precision):
    args = derived(**given)
    assert args.precision == precision
    assert bool(args.fp16 and args.fp16["enabled"]) == (precision == "fp16")
    assert bool(args.bf16 and args.bf16["enabled"]) == (precision == "bfloat16")
    assert args.dynamic_loss_scale == (precision == "fp16")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "fp32", "fp16": {"enabled": True}}, "precision=fp32 contradicts fp16.enabled"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "both true"),
        ({"fp16": {"loss_scale": 0}}, "fp16 must contain enabled"),
    ],
)
def test_contradicting_precisions_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        derived(**given)


def test_bfloat16_needs_no_zero_dictionary():
    args = derived(precision="bfloat16")
    assert args.zero_stage == 0 and args.zero_optimization["stage"] == 0


def test_zero_options_are_mirrored():
    args = derived(zero_optimization={"stage": 1, "reduce_bucket_size": 5e7})
    assert (args.zero_stage, args.zero_reduce_bucket_size, args.zero_reduce_scatter) == (1, 50_000_000, True)


@pytest.mark.parametrize("zero", [{}, {"stage": 4}, {"stage": [0, 1]}, {"stage": True}])
def test_the_zero_stage_must_be_one_of_four(zero):
    with pytest.raises(ConfigError, match="zero_optimization.stage must be 0, 1, 2 or 3"):
        derived(zero_optimization=zero)


def test_optimizer_values_are_lifted():
    args = derived(optimizer={"type": "SGD", "params": {"lr": 1}})
    assert (args.optimizer_type, args.lr) == ("sgd", 1.0)
    assert derived().lr == 0.001


def test_sequences_are_as_long_as_the_position_table_unless_set():
    assert derived().seq_length == 32
    assert derived(seq_length=16).seq_length == 16


def test_equal_weights_are_filled_in():
    paths = {"train_data_paths": ["a", "b"], "valid_data_paths": ["c"], "test_data_paths": ["d"]}
    args = derived(**paths)
    assert (args.train_data_weights, args.valid_data_weights) == ([1.0, 1.0], [1.0])


def test_a_prompt_file_selects_input_file_mode():
    assert derived().text_gen_type == "unconditional"
    assert derived(sample_input_file="prompts.txt").text_gen_type == "input-file"


def test_slurm_and_mpi_force_the_multi_machine_launcher():
    assert derived(deepspeed_slurm=True).force_multi and derived(deepspeed_mpi=True).force_multi
    assert not derived().force_multi


def test_clipping_has_two_names_and_one_value():
    assert derived(gradient_clipping=0.5).clip_grad == 0.5
