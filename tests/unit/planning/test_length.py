import numpy as np
import pytest

from megatron.data.indexed_dataset import make_builder
from megatron.neox_arguments import NeoXArgs
from megatron.planning import length
from tests.unit.neox_arguments.basic import minimal


@pytest.fixture
def dataset(tmp_path) -> str:
    """100 documents of 40 tokens."""
    prefix = str(tmp_path / "text")
    builder = make_builder(f"{prefix}.bin", "mmap", vocab_size=1000)
    for _ in range(100):
        builder.add_item(np.arange(40, dtype=np.uint16))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


def args(**changes) -> NeoXArgs:
    return NeoXArgs.from_dict(minimal(**changes))


def test_epochs_are_tokens_wanted_over_tokens_there(dataset):
    # 10 steps of 2 samples of 32 tokens from 80 documents of 40 tokens.
    (source,) = length.training_sources(args(data_path=dataset, split="80,10,10", train_iters=10))
    assert (source.tokens, source.documents, source.epochs) == (3200, 80, 640 / 3200)


def test_weights_divide_the_tokens_over_the_sources(dataset):
    paths = {"train_data_paths": [dataset, dataset, "nowhere"], "train_data_weights": [1.0, 2.0, 1.0]}
    paths |= {"valid_data_paths": [dataset], "test_data_paths": [dataset]}
    first, second, third = length.training_sources(args(**paths, train_iters=100))
    assert (first.wanted, second.wanted) == (1600, 3200)
    assert (third.tokens, third.epochs, third.note) == (None, None, "not here")


def test_steps_of_epochs_follow_from_the_data(dataset):
    config = args(data_path=dataset, split="1,0,0", train_epochs=3)
    sources = length.training_sources(config)
    assert length.iterations(config, sources) == (4000 - 1) // 32 // 2 * 3
    missing = args(data_path="nowhere", train_epochs=3)
    assert length.iterations(missing, length.training_sources(missing)) is None


def test_checkpoints_are_counted_with_the_last_one():
    config = args(save="there", checkpoint_factor=40, extra_save_iters=[0, 7], train_iters=100)
    assert length.save_iterations(config, 100) == [0, 7, 40, 80, 100]
    assert length.save_iterations(args(train_iters=100), 100) == []
