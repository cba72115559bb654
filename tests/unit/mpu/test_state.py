import pytest
import torch

from megatron import mpu
from tests.common.distributed import run_distributed


def test_a_process_on_its_own_is_a_grid_of_one_without_groups():
    assert not mpu.model_parallel_is_initialized() and mpu.is_unitialized()
    assert mpu.get_model_parallel_world_size() == mpu.get_data_parallel_world_size() == 1
    assert mpu.get_model_parallel_rank() == mpu.get_pipe_parallel_rank() == 0
    for getter in (
        mpu.get_model_parallel_group,
        mpu.get_data_parallel_group,
        mpu.get_pipe_parallel_group,
        mpu.get_io_parallel_group,
    ):
        with pytest.raises(AssertionError, match="not initialised"):
            getter()


def test_use_puts_a_state_in_force_and_takes_it_back():
    other = mpu.ParallelState(fp32_allreduce=True)
    with mpu.use(other) as state:
        assert state is other and mpu.get_fp32_allreduce()
    assert not mpu.get_fp32_allreduce()


def test_rank_and_size_can_be_preset_before_groups_exist():
    with mpu.use(mpu.ParallelState()):
        mpu.set_model_parallel_world_size(4)
        mpu.set_model_parallel_rank(3)
        assert (mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()) == (4, 3)
        assert not mpu.model_parallel_is_initialized()
    assert mpu.get_model_parallel_world_size() == 1


def describe_grid(tensor, pipe, data):
    """Coordinates, source ranks and the sum of global ranks over every group."""
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    topology = PipeModelDataParallelTopology(num_pp=pipe, num_mp=tensor, num_dp=data) if pipe else None
    mpu.initialize_model_parallel(tensor, topology=topology, fp32_allreduce=True)
    sums = {}
    groups = {
        "tensor": mpu.get_model_parallel_group(),
        "data": mpu.get_data_parallel_group(),
        "pipe": mpu.get_pipe_parallel_group(),
    }
    for name, group in groups.items():
        value = torch.tensor([torch.distributed.get_rank()])
        torch.distributed.all_reduce(value, group=group)
        sums[name] = value.item()
    coordinates = (
        mpu.get_pipe_parallel_rank(),
        mpu.get_data_parallel_rank(),
        mpu.get_model_parallel_rank(),
    )
    sources = (mpu.get_model_parallel_src_rank(), mpu.get_data_parallel_src_rank())
    assert mpu.get_fp32_allreduce() and mpu.model_parallel_is_initialized()
    assert mpu.get_topology() is topology
    return coordinates, sources, sums


def test_ranks_are_numbered_pipe_then_data_then_tensor():
    grid = run_distributed(describe_grid, 4, 2, 2, 1)
    assert [rank[0] for rank in grid] == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    assert [rank[1] for rank in grid] == [(0, 0), (0, 1), (2, 2), (2, 3)]
    assert grid[0][2] == {"tensor": 1, "data": 0, "pipe": 2}
    assert grid[3][2] == {"tensor": 5, "data": 3, "pipe": 4}


def test_without_a_topology_neighbours_form_the_tensor_groups():
    grid = run_distributed(describe_grid, 4, 2, 0, 0)
    assert [rank[0] for rank in grid] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    assert grid[2][2] == {"tensor": 5, "data": 2, "pipe": 2}
    assert [rank[1] for rank in grid] == [(0, 0), (0, 1), (2, 0), (2, 1)]


def test_deepspeed_finds_what_it_asks_its_mpu_for():
    from deepspeed.utils import bwc

    assert bwc.bwc_tensor_model_parallel_rank(mpu) == 0
    assert bwc.bwc_tensor_model_parallel_world_size(mpu) == 1
    assert bwc.bwc_pipeline_parallel_world_size(mpu) == 1
    assert mpu.get_data_parallel_group_ranks() == [0]
    # These names would switch on DeepSpeed's own kind of sequence parallelism.
    assert not hasattr(mpu, "initialize_sequence_parallel")
    assert not hasattr(mpu, "get_sequence_parallel_world_size")
