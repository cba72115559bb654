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


def test_nothing_is_told_of_keys_that_act():
    assert notes() == []
    assert notes(partition_activations=True, checkpoint_activations=True, finetune=True, load="there") == []
    assert notes(sequence_parallel=True, model_parallel_size=2, global_num_gpus=2) == []
