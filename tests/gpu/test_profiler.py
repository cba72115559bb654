"""On a GPU the trace holds its kernels, and the snapshot what its allocator did."""

import pickle

from tests.common.distributed import run_distributed
from tests.distributed.test_profiler import profiled, ranges, steps


def test_kernels_and_allocations_of_the_window_are_recorded(tmp_path):
    settings = {"profile_step_stop": 3, "memory_profiling": True, "memory_profiling_path": str(tmp_path)}
    run_distributed(profiled, 1, tmp_path, settings, backend="nccl", timeout=600)
    trace = tmp_path / "rank0.2.pt.trace.json"
    assert steps(trace) == [2, 3]
    assert ranges(trace, "kernel")
    snapshot = pickle.loads((tmp_path / "mem_snapshot_rank0.pickle").read_bytes())
    assert any(event["action"] == "alloc" for events in snapshot["device_traces"] for event in events)
