import pytest

from megatron.common.errors import ConfigError
from megatron.neox_arguments import NeoXArgs
from tests.unit.neox_arguments.basic import minimal


def notes(**changes) -> list[str]:
    return NeoXArgs.from_dict(minimal(**changes)).notes()


def test_a_key_that_does_nothing_without_another_is_told():
    assert notes(partition_activations=True) == [
        "partition_activations=True does nothing without checkpoint_activations"
    ]
    assert notes(finetune=True, iteration=5) == [
        "finetune=True does nothing without load",
        "iteration=5 does nothing without load",
    ]
    assert notes(sequence_parallel=True) == ["sequence_parallel does nothing with model_parallel_size: 1"]


@pytest.mark.parametrize(
    ("changes", "needed", "acting"),
    [
        ({"rpe_num_buckets": 8}, "pos_emb: rpe", {"pos_emb": "rpe"}),
        (
            {"online_dataserver_ports": 99},
            "dataset_impl: online",
            {"dataset_impl": "online", "data_path": None},
        ),
        ({"rotary_pct": 0.5}, "pos_emb: rotary", {"pos_emb": "rotary"}),
        ({"mup_rp_embedding_mult": 2.0}, "pos_emb: learned or sinusoidal", {"pos_emb": "sinusoidal"}),
        ({"moe_lbl_in_fp32": True}, "moe_num_experts above 1", {"moe_num_experts": 2}),
        ({"gmlp_attn_dim": 8}, "amlp layers in attention_config", {"attention_config": [[["amlp"], "all"]]}),
        ({"mamba_use_bias_in_conv": False}, "mamba layers in", {"attention_config": [[["mamba"], "all"]]}),
        ({"comment": "mine"}, "launcher: slurm", {"launcher": "slurm"}),
        ({"param_sharing_style": "spaced"}, "num_unique_layers", {"num_unique_layers": 1}),
    ],
)
def test_a_key_of_a_part_that_the_model_lacks_is_told(changes, needed, acting):
    parts = {"pos_emb": "none"}
    (note,) = notes(**{**parts, **changes})
    assert next(iter(changes)) in note and f"does nothing without {needed}" in note
    assert notes(**{**parts, **changes, **acting}) == []


@pytest.mark.parametrize(
    "key, value",
    [
        ("num_kv_heads", 2),
        ("head_dim", 8),
        ("sliding_window_width", 4),
        ("use_qk_layernorm", True),
        ("attention_softmax_scale", 0.5),
        ("attention_dropout", 0.1),
        ("pos_emb", "alibi"),
    ],
)
def test_what_attention_reads_is_told_where_there_is_none(key, value):
    for kinds, told in (("mamba", "gmlp"), 1), (("mamba", "global"), 0):
        assert len(notes(**{"pos_emb": "none", "attention_config": [*kinds], key: value})) == told


def test_nothing_is_told_of_keys_that_act():
    assert notes() == []
    assert notes(partition_activations=True, checkpoint_activations=True, finetune=True, load="there") == []
    assert notes(sequence_parallel=True, model_parallel_size=2, global_num_gpus=2) == []


def test_dividing_in_two_steps_is_told_apart_from_dividing_before():
    whole = {"zero_optimization": {"stage": 1, "reduce_scatter": False}}
    assert notes(gradient_predivide_factor=2.0) == notes(prescale_gradients=True) == []
    assert notes(gradient_predivide_factor=2.0, precision="bfloat16", **whole) == []
    (note,) = notes(gradient_predivide_factor=2.0, prescale_gradients=True)
    assert note.startswith("gradient_predivide_factor does nothing with prescale_gradients")


@pytest.mark.parametrize("key, value", [("gradient_predivide_factor", 2.0), ("prescale_gradients", True)])
@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"zero_optimization": {"stage": 1}}])
def test_zero_that_scatters_sums_divides_in_its_own_way(key, value, changes):
    with pytest.raises(ConfigError, match=f"{key}={value} needs zero_optimization.reduce_scatter: false"):
        notes(**{key: value}, **changes)
