import pytest
import torch

from megatron import mpu
from megatron.mpu.parameters import stable_seed
from megatron.mpu.state import Axis


def numbered(tensor, generator=None):
    return tensor.copy_(torch.arange(tensor.numel(), dtype=torch.float32).view(tensor.shape))


def normal(tensor, generator=None):
    return tensor.normal_(generator=generator)


@pytest.mark.parametrize("shard_dim", [None, 0, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_slices_of_all_ranks_merge_into_the_logical_tensor(shard_dim, size):
    spec = mpu.ParameterSpec((8, 12), numbered, shard_dim)
    logical = numbered(torch.empty(8, 12))
    slices = [mpu.local_slice(logical, spec, rank, size) for rank in range(size)]
    assert all(part.shape == spec.local_shape(size) for part in slices)
    assert torch.equal(mpu.merge_slices(slices, spec), logical)


def test_blocks_are_cut_over_the_ranks_one_by_one():
    # golden: query|key|value rows of 4 query heads and 2 key heads of size 2, on two ranks
    spec = mpu.ParameterSpec((16, 3), numbered, shard_dim=0, blocks=(8, 4, 4))
    names = ["q00 q01 q10 q11 q20 q21 q30 q31", "k00 k01 k10 k11", "v00 v01 v10 v11"]
    rows = " ".join(names).split()
    logical = numbered(torch.empty(16, 3))
    slices = [mpu.local_slice(logical, spec, rank, 2) for rank in range(2)]
    found = [[rows[int(row[0]) // 3] for row in part] for part in slices]
    assert found[0] == "q00 q01 q10 q11 k00 k01 v00 v01".split()
    assert found[1] == "q20 q21 q30 q31 k10 k11 v10 v11".split()
    assert torch.equal(mpu.merge_slices(slices, spec), logical)


def test_a_parameter_carries_its_metadata():
    parameter = mpu.make_parameter(mpu.ParameterSpec((6, 4), normal, shard_dim=1))
    assert parameter.model_parallel and parameter.partition_dim == 1 and parameter.partition_stride == 1
    assert parameter.dtype == torch.float32
    assert not mpu.make_parameter(mpu.ParameterSpec((6,), normal)).model_parallel


def test_initial_values_depend_on_seed_and_name_only():
    spec = mpu.ParameterSpec((8, 6), normal, shard_dim=0)
    whole = mpu.initial_value(mpu.make_parameter(spec), "3.weight", 1)
    assert torch.equal(whole, mpu.initial_value(mpu.make_parameter(spec), "3.weight", 1))
    assert not torch.equal(whole, mpu.initial_value(mpu.make_parameter(spec), "4.weight", 1))
    assert not torch.equal(whole, mpu.initial_value(mpu.make_parameter(spec), "3.weight", 2))
    parts = []
    for rank in range(2):
        with mpu.use(mpu.ParallelState(tensor=Axis(ranks=(0, 1), rank=rank))):
            parts.append(mpu.initial_value(mpu.make_parameter(spec), "3.weight", 1))
    assert torch.equal(torch.cat(parts), whole)


def test_seeds_of_names_never_change():
    assert stable_seed(1234, "2.attention.query_key_value.weight") == 3577647738455747328


def test_deferred_parameters_get_their_values_from_initialize_parameters():
    spec = mpu.ParameterSpec((4, 4), numbered)
    with mpu.deferred_initialization():
        parameter = mpu.make_parameter(spec)
    mpu.initialize_parameters([("0.weight", parameter)], seed=1)
    assert torch.equal(parameter, numbered(torch.empty(4, 4)))


def test_a_layer_built_on_its_own_has_values():
    assert torch.equal(mpu.make_parameter(mpu.ParameterSpec((4,), numbered)), torch.arange(4.0))
