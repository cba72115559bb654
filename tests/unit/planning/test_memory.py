import pytest

from megatron.neox_arguments import NeoXArgs
from megatron.planning import layers, memory
from tests.unit.neox_arguments.basic import minimal


def estimate(**changes) -> list[memory.Memory]:
    args = NeoXArgs.from_dict(minimal(num_layers=8, **changes))
    args.padded_vocab_size = 128
    divided = layers.stages(layers.count_layers(args), args.pipe_parallel_size, args.pipe_partition_method)
    return memory.estimate(args, divided)


@pytest.mark.parametrize(
    ("precision", "bytes_per_parameter"),
    [("fp32", (4, 4, 8)), ("fp16", (2, 2, 12)), ("bfloat16", (2, 4, 12))],
)
def test_bytes_per_parameter_follow_the_precision(precision, bytes_per_parameter):
    (found,) = estimate(precision=precision)
    base = found.parameters / bytes_per_parameter[0]
    assert (found.gradients / base, found.optimizer_states / base) == bytes_per_parameter[1:]


@pytest.mark.parametrize(("stage", "split"), [(0, ()), (1, (2,)), (2, (1, 2)), (3, (0, 1, 2))])
def test_each_zero_stage_splits_one_part_more(stage, split):
    def parts(found):
        return found.parameters, found.gradients, found.optimizer_states

    (alone,) = estimate(precision="bfloat16")
    (shared,) = estimate(precision="bfloat16", zero_optimization={"stage": stage}, global_num_gpus=4)
    expected = [value / (4 if index in split else 1) for index, value in enumerate(parts(alone))]
    assert list(parts(shared)) == expected


def test_recomputation_and_sequence_parallelism_save_activations():
    tensor = {"model_parallel_size": 2, "global_num_gpus": 2}
    plain = estimate()[0].activations
    assert estimate(checkpoint_activations=True)[0].activations < plain / 2
    assert (
        estimate(**tensor, sequence_parallel=True)[0].activations < estimate(**tensor)[0].activations < plain
    )
    partitioned = estimate(**tensor, checkpoint_activations=True, partition_activations=True)[0].activations
    assert partitioned < estimate(**tensor, checkpoint_activations=True)[0].activations


def test_fewer_key_and_value_heads_save_activations():
    saved = estimate()[0].activations - estimate(num_kv_heads=1)[0].activations
    # 8 layers, keys and values in fp32 of three heads of 16 features less
    tokens = (
        minimal()["max_position_embeddings"] * NeoXArgs.from_dict(minimal()).train_micro_batch_size_per_gpu
    )
    assert saved == 8 * tokens * 2 * 3 * 16 * 4


def test_early_pipeline_stages_hold_more_micro_batches():
    found = estimate(pipe_parallel_size=4, global_num_gpus=4, gradient_accumulation_steps=8)
    assert found[0].activations == pytest.approx(2 * found[2].activations)


def test_a_checkpoint_holds_weights_and_optimizer():
    args = NeoXArgs.from_dict(minimal(precision="bfloat16"))
    assert memory.checkpoint_bytes(args, 1000) == 14_000


@pytest.mark.parametrize(
    ("changes", "bytes_per_parameter"),
    [
        ({"optimizer": {"type": "lion", "params": {}}}, 4),
        ({"optimizer": {"type": "madgrad_wd", "params": {}}}, 12),
        ({"use_bnb_optimizer": True}, 2),
        ({"optimizer": {"type": "muon", "params": {}}, "precision": "bfloat16"}, 8),
    ],
)
def test_states_of_an_optimizer_are_what_its_registration_says(changes, bytes_per_parameter):
    (found,) = estimate(**changes)
    weights = 2 if changes.get("precision") else 4
    assert found.optimizer_states / found.parameters == bytes_per_parameter / weights
