import json

import pytest
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, DeepSpeedConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from megatron.common.errors import ConfigError
from megatron.neox_arguments import NeoXArgs, deepspeed_view
from megatron.neox_arguments.deepspeed_values import SERVICES
from tests.unit.neox_arguments.basic import minimal


def view(**changes) -> dict:
    """DeepSpeed's dictionary, which DeepSpeed itself has accepted."""
    config = NeoXArgs.from_dict(minimal(**changes)).deepspeed_config
    DeepSpeedConfig(json.loads(json.dumps(config)))
    return config


def test_what_matters_is_sent_whatever_its_value():
    assert {key: view()[key] for key in ("gradient_clipping", "steps_per_print")} == {
        "gradient_clipping": 1.0,
        "steps_per_print": 10,
    }
    batch = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [view(gradient_accumulation_steps=3)[key] for key in batch] == [6, 2, 3]
    assert view()["zero_optimization"]["stage"] == 0


def test_deepspeed_understands_the_values_as_meant():
    parsed = DeepSpeedConfig(view(gradient_clipping=0.25, steps_per_print=7, zero_optimization={"stage": 2}))
    assert (parsed.gradient_clipping, parsed.steps_per_print, parsed.zero_optimization_stage) == (0.25, 7, 2)


def test_old_half_precision_keys_are_dropped_with_a_note():
    old = {"fp16": True, "type": "fp16", "enabled": True, "loss_scale": 0, "auto_cast": True}
    args = NeoXArgs.from_dict(minimal(fp16=old))
    assert view(fp16=old)["fp16"] == {"enabled": True, "loss_scale": 0, "auto_cast": True}
    assert args.notes() == ["fp16: DeepSpeed no longer takes fp16, type; dropped, as enabled says it all"]
    assert args.fp16 == old


def test_loss_scaling_of_bfloat16_is_dropped_with_a_note():
    old = {"bf16": True, "enabled": True, "loss_scale": 0, "initial_scale_power": 12, "hysteresis": 2}
    assert view(bf16=old)["bf16"] == {"enabled": True}
    notes = NeoXArgs.from_dict(minimal(bf16=old)).notes()
    assert len(notes) == 2 and "loss_scale, initial_scale_power, hysteresis dropped" in notes[1]


def test_bfloat16_accumulates_gradients_in_fp32_unless_told_otherwise():
    assert view(precision="bfloat16")["data_types"] == {"grad_accum_dtype": "fp32"}
    chosen = view(precision="bfloat16", data_types={"grad_accum_dtype": "bf16"})
    assert chosen["data_types"] == {"grad_accum_dtype": "bf16"}
    assert "data_types" not in view()


def test_the_outdated_offload_switches_are_translated():
    old = {"stage": 3, "cpu_offload": True, "cpu_offload_param": True, "cpu_offload_use_pin_memory": True}
    args = NeoXArgs.from_dict(minimal(zero_optimization=old))
    destination = {"device": "cpu", "pin_memory": True}
    zero = args.deepspeed_config["zero_optimization"]
    assert zero == {"stage": 3, "offload_optimizer": destination, "offload_param": destination}
    assert args.deepspeed_config["zero_force_ds_cpu_optimizer"] is False
    assert any("cpu_offload is taken for offload_optimizer" in note for note in args.notes())


def test_the_outdated_offload_switch_is_dropped():
    config = view(zero_optimization={"stage": 1, "cpu_offload": False})
    assert config["zero_optimization"] == {"stage": 1}


def test_extra_keys_are_merged():
    logger = {"enabled": True, "verbose": True, "prof_all": True, "debug": False}
    config = view(deepspeed_extra_args={"comms_logger": logger, "disable_python_gc": True})
    assert config["comms_logger"] == logger and config["disable_python_gc"] is True


BAD = [
    (
        {"fp16": {"enabled": True, "loss_scal": 0}},
        "fp16: unknown key 'loss_scal'; did you mean 'loss_scale'?",
    ),
    ({"fp16": {"enabled": True, "type": "bfloat16"}}, "remove it and set precision: bfloat16"),
    ({"fp16": {"enabled": True, "loss_scale_window": 0}}, "fp16.loss_scale_window=0 must be above 0"),
    ({"bf16": {"enabled": True, "immediate": True}}, "bf16: unknown key 'immediate'"),
    ({"zero_optimization": {"stage": 1, "reduce_buket_size": 1}}, "did you mean 'reduce_bucket_size'?"),
    (
        {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
        "zero_optimization.offload_optimizer needs stage 1, 2 or 3",
    ),
    ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "nvme"}}}, "must be cpu or none"),
    ({"zero_optimization": {"stage": 1, "offload_optimizer": True}}, "must be a mapping such as"),
    (
        {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu", "pin_memry": True}}},
        "unknown key 'pin_memry'; did you mean 'pin_memory'?",
    ),
    (
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        "zero_optimization.offload_param needs stage 3, not 2",
    ),
    (
        {"zero_optimization": {"stage": 1, "cpu_offload": True, "offload_optimizer": {"device": "cpu"}}},
        "cpu_offload and offload_optimizer mean the same",
    ),
    (
        {
            "zero_optimization": {"stage": 1, "cpu_offload": True},
            "optimizer": {"type": "Lion", "params": {"lr": 1e-3}},
        },
        "offload_optimizer with optimizer.type=lion",
    ),
    ({"zero_optimization": {"stage": 1, "reduce_bucket_size": 0}}, "must be a number of at least 1"),
    ({"zero_optimization": {"stage": 1, "allgather_bucket_size": "x"}}, "must be a number of at least 1"),
    (
        {"zero_optimization": {"stage": 1, "overlap_comm": "x"}},
        "zero_optimization.overlap_comm='x' must be true or false",
    ),
    ({"fp16": {"enabled": True, "loss_scale": "x"}}, "fp16.loss_scale='x' must be a number"),
    ({"fp16": {"enabled": True, "loss_scale": -1}}, "fp16.loss_scale=-1 must be at least 0"),
    ({"fp16": {"enabled": True, "loss_scale_window": None}}, "loss_scale_window=None must be a whole number"),
    ({"data_types": {"grad_acum_dtype": "fp32"}}, "did you mean 'grad_accum_dtype'?"),
    ({"data_types": {"grad_accum_dtype": "x"}}, "grad_accum_dtype='x' must be fp32, fp16 or bf16"),
    ({"deepspeed_extra_args": {"amp": {"enabled": True}}}, "DeepSpeed no longer has 'amp'"),
    ({"deepspeed_extra_args": {"fp16": {"enabled": True}}}, "'fp16' is a key of its own"),
    ({"deepspeed_extra_args": {"steps_per_print": 3}}, "'steps_per_print' is a key of its own"),
    (
        {"deepspeed_extra_args": {"comms_logger": {"enabled": True}}, "comms_logger": {"enabled": False}},
        "'comms_logger' is a key of its own",
    ),
    ({"deepspeed_extra_args": {"disable_python_gcc": True}}, "did you mean 'disable_python_gc'?"),
    ({"flops_profiler": {"profile_step": 1}}, "flops_profiler must contain enabled"),
    (
        {"flops_profiler": {"enabled": True, "profile_stp": 1}},
        "flops_profiler: unknown key 'profile_stp'; did you",
    ),
    ({"comms_logger": {"enabled": True, "verbose": 1}}, "comms_logger.verbose=1 must be true or false"),
    ({"checkpoint": {"tag_validatin": "Fail"}}, "checkpoint: unknown key 'tag_validatin'; did you mean"),
    (
        {"deepspeed_extra_args": {"csv_monitor": {"enabled": True, "path": "x"}}},
        "deepspeed_extra_args.csv_monitor: unknown key 'path'",
    ),
    (
        {"deepspeed_extra_args": {"wandb": True}},
        "deepspeed_extra_args.wandb=True must be a mapping of enabled",
    ),
    ({"communication_data_type": "float16"}, "must be fp16, bf16 or fp32"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_deepspeed_would_refuse_or_ignore_is_refused_first(changes, message):
    with pytest.raises(ConfigError) as caught:
        NeoXArgs.from_dict(minimal(**changes))
    (problem,) = caught.value.problems
    assert message in problem


def test_the_lists_of_keys_are_those_of_the_installed_deepspeed():
    assert set(deepspeed_view.FP16_KEYS) == set(DeepSpeedFP16Config.model_fields)
    assert set(deepspeed_view.BF16_KEYS) == set(DeepSpeedBF16Config.model_fields)
    models = {
        "comms_logger": CommsLoggerConfig,
        "csv_monitor": CSVConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
    }
    for name, model in models.items():
        assert set(SERVICES[name]) == set(model.model_fields)
    assert set(SERVICES["flops_profiler"]) == set(vars(DeepSpeedFlopsProfilerConfig({})))
    assert set(deepspeed_view.REMOVED) == set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)
    spellings = {
        name for key, field in DeepSpeedZeroConfig.model_fields.items() for name in (key, field.alias)
    }
    assert set(deepspeed_view.ZERO_KEYS) <= spellings
