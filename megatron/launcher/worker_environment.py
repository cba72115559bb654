"""The environment of a local worker: the variables torchrun and DeepSpeed's launcher set, and sensible threads."""

from collections.abc import Mapping

from megatron.common.cores import available_cores
from megatron.launcher.job import Job


def worker_environment(job: Job, index: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Variables of the index-th process of a local job."""
    environment = {
        **inherited,
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(job.size),
        "LOCAL_SIZE": str(job.size),
        "CROSS_RANK": "0",
        "CROSS_SIZE": "1",
        "MASTER_ADDR": job.master_addr,
        "MASTER_PORT": str(job.master_port),
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // job.size)))
    if job.on_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices(
            job.slots, inherited.get("CUDA_VISIBLE_DEVICES")
        )
    else:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def visible_devices(slots: list[int], visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for some slots, which count within what is visible already."""
    names = visible.split(",") if visible else None
    return ",".join(names[slot] if names else str(slot) for slot in slots)
