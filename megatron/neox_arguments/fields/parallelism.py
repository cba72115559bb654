"""How the model and the data are spread over processes."""

from dataclasses import dataclass

from megatron.neox_arguments.markers import derived, runtime
from megatron.neox_arguments.template import NeoXArgsTemplate


@dataclass
class NeoXArgsParallelism(NeoXArgsTemplate):
    """Process grid."""

    pipe_parallel_size: int = 0
    """Number of pipeline stages. 0 trains a plain sequential model without the pipeline engine."""

    model_parallel_size: int = 1
    """Number of processes that share every weight matrix (tensor parallelism). Values below 1 count as 1."""

    pipe_partition_method: str = "type:transformer|mlp"
    """How layers are balanced over pipeline stages: `parameters`, `uniform`, or `type:REGEX` matched on class names."""

    world_size: int | None = runtime()
    """Number of processes of the job, taken from the environment at launch."""

    is_pipe_parallel: bool = derived(False, "pipe_parallel_size")
    """True when pipe_parallel_size is at least 1."""

    sequence_parallel: bool = False
    """Split the activations of norms, dropouts and residuals along the sequence over the tensor-parallel processes."""
