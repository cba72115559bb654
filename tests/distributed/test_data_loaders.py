"""Data loaders on real processes that start together with nothing built yet."""

from megatron import mpu
from megatron.data.data_utils import build_train_valid_test_data_loaders
from tests.common.distributed import run_distributed
from tests.unit.data.samples import config, numbered, random_sizes, write_dataset


class PipelineOfThree:
    """The part of DeepSpeed's topology that mpu asks for."""

    def get_dim(self, axis):
        return {"pipe": 3}.get(axis, 1)

    def get_axis_comm_lists(self, axis):
        return [[0, 1, 2]] if axis == "pipe" else []


def _read(prefix, topology=None, **changes):
    mpu.initialize_model_parallel(1, topology=topology)
    loaders = build_train_valid_test_data_loaders(config(data_path=prefix, **changes))
    flags = (loaders.do_train, loaders.do_valid, loaders.do_test)
    rows = None if loaders["train"] is None else [batch["text"].tolist() for batch in loaders["train"]]
    return flags, rows


def test_every_rank_knows_what_to_do_and_the_ends_of_the_pipeline_read_the_same(tmp_path):
    prefix = write_dataset(tmp_path / "data", numbered(random_sizes(100), step=100))
    results = run_distributed(_read, 3, prefix, PipelineOfThree(), split="9,1,0")
    assert [flags for flags, _ in results] == [(True, True, False)] * 3
    assert results[1][1] is None and results[0][1] == results[2][1]
    entries = [path for path in (tmp_path / "data_index_maps").iterdir() if not path.name.startswith(".")]
    assert len(entries) == 2, "one map for training and one for validation, whoever built them"


def test_data_parallel_ranks_share_what_one_process_reads(tmp_path):
    prefix = write_dataset(tmp_path / "data", numbered(random_sizes(100), step=100))
    (_, first), (_, second) = run_distributed(_read, 2, prefix, batch_size=2)
    loaders = build_train_valid_test_data_loaders(config(data_path=prefix, batch_size=4))
    alone = [batch["text"].tolist() for batch in loaders["train"]]
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
