"""Model parallelism: the process grid, tensor-parallel layers and mappings, random states, parameter metadata.

The module itself serves as the `mpu` argument of deepspeed.initialize.
"""

from megatron.mpu.checkpointing import checkpoint, configure_checkpointing
from megatron.mpu.cross_entropy import vocab_parallel_cross_entropy
from megatron.mpu.data import broadcast_data
from megatron.mpu.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.mpu.mappings import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    scatter_to_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.mpu.parameters import (
    ParameterSpec,
    deferred_initialization,
    initial_value,
    initialize_parameters,
    local_slice,
    make_parameter,
    merge_slices,
)
from megatron.mpu.random import (
    get_cuda_rng_tracker,
    get_rng_tracker,
    model_parallel_cuda_manual_seed,
    model_parallel_manual_seed,
)
from megatron.mpu.state import (
    ParallelState,
    destroy_model_parallel,
    get_data_parallel_group,
    get_data_parallel_group_ranks,
    get_data_parallel_rank,
    get_data_parallel_src_rank,
    get_data_parallel_world_size,
    get_fp32_allreduce,
    get_io_parallel_group,
    get_model_parallel_group,
    get_model_parallel_rank,
    get_model_parallel_src_rank,
    get_model_parallel_world_size,
    get_pipe_parallel_group,
    get_pipe_parallel_rank,
    get_pipe_parallel_world_size,
    get_pipeline_model_parallel_group,
    get_pipeline_model_parallel_rank,
    get_pipeline_model_parallel_world_size,
    get_tensor_model_parallel_group,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_src_rank,
    get_tensor_model_parallel_world_size,
    get_topology,
    initialize_model_parallel,
    is_uninitialized,
    is_unitialized,
    model_parallel_is_initialized,
    set_model_parallel_rank,
    set_model_parallel_world_size,
    use,
)
from megatron.mpu.utils import divide, split_tensor_along_last_dim

__all__ = [name for name in dir() if not name.startswith("_")]
