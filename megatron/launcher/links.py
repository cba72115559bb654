"""The processes of a job meet and measure the network between their hosts (tools/clusters/measure_network.py)."""

import json
import os
import socket
import time
from datetime import timedelta

from megatron.common.console import human_bytes, info
from megatron.common.device import backend, has_accelerator, set_device
from megatron.common.errors import LaunchError

MEETING_SECONDS = 60.0
ELEMENTS = 4_000_000  # fp32: 16 MB
REPEATS = 4
SLOW_FRACTION = 1 / 3  # of the median bandwidth: such a host is pointed out


def measure() -> None:
    """Meet, add up a number over all ranks, measure; rank 0 tells.

    Raises: LaunchError naming the ranks that did not come, or the address that cannot be reached.
    """
    from megatron.neox_arguments import NeoXArgs

    args = NeoXArgs.consume_neox_args()
    args.configure_distributed_args()
    if args.world_size == 1:
        info("network: a single process, nothing to measure")
        return
    store = _meet(args.rank, args.world_size)
    import torch.distributed as dist

    device = set_device()
    dist.init_process_group(
        backend(args.distributed_backend),
        store=store,
        rank=args.rank,
        world_size=args.world_size,
        timeout=timedelta(seconds=MEETING_SECONDS),
        device_id=device if device.type == "cuda" else None,
    )
    hosts = json.loads(store.get("hosts"))
    whole = _all_reduce(args.world_size)
    info(
        f"all-reduce of {human_bytes(4 * ELEMENTS)} over {args.world_size} processes: {human_bytes(whole)}/s"
    )
    leaders = [hosts.index(host) for host in dict.fromkeys(hosts)]
    speeds = {hosts[leader]: _between(0, leader, args.rank) for leader in leaders[1:]}
    _tell(hosts[0], speeds)
    dist.destroy_process_group()


def _meet(rank: int, size: int):
    """The store of the job, once every rank has written its host into it."""
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=MEETING_SECONDS)
    host = socket.gethostname()
    try:
        store = dist.TCPStore(address, port, size, is_master=rank == 0, timeout=limit, wait_for_workers=False)
        store.set(f"host{rank}", host)
        if rank == 0:
            store.set("hosts", json.dumps(_wait_for_all(store, size)))
        store.wait(["hosts"], 2 * limit)
    except (dist.DistError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise LaunchError(f"{host}, rank {rank}: no meeting at {address}:{port} ({reason})") from None
    return store


def _wait_for_all(store, size: int) -> list[str]:
    deadline = time.monotonic() + MEETING_SECONDS
    names = [f"host{rank}" for rank in range(size)]
    while missing := [rank for rank in range(size) if not store.check([names[rank]])]:
        if time.monotonic() > deadline:
            raise LaunchError(
                f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} did not come to "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {MEETING_SECONDS:.0f} s: check that "
                "their hosts can reach that address (firewall, name, network interface)"
            )
        time.sleep(0.1)
    return [store.get(name).decode() for name in names]


def _all_reduce(size: int) -> float:
    """Bandwidth in bytes/s as NCCL's tests count it for a ring (2 (n-1)/n of the data over each link), and a check of
    the sum."""
    import torch
    import torch.distributed as dist

    device = "cuda" if has_accelerator() else "cpu"
    best = 0.0
    for _ in range(REPEATS):
        values = torch.ones(ELEMENTS, device=device)
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(values)
        total = values[-1].item()  # waits for the device
        best = max(best, 4 * ELEMENTS / (time.perf_counter() - started))
        if total != size:
            raise LaunchError(f"{socket.gethostname()}: an all-reduce of ones over {size} ranks gave {total}")
    return best * 2 * (size - 1) / size


def _between(first: int, second: int, rank: int) -> float:
    """Bytes/s from rank `first` to rank `second`, as `first` sees it; all ranks take part."""
    import torch
    import torch.distributed as dist

    device = "cuda" if has_accelerator() else "cpu"
    values, answer, best = torch.ones(ELEMENTS, device=device), torch.ones(1, device=device), 0.0
    dist.barrier()
    for _ in range(REPEATS):
        started = time.perf_counter()
        if rank == first:
            dist.send(values, second)
            dist.recv(answer, second)
            answer.item()
        elif rank == second:
            dist.recv(values, first)
            dist.send(answer, first)
        best = max(best, 4 * ELEMENTS / (time.perf_counter() - started))
    return best


def _tell(first: str, speeds: dict[str, float]) -> None:
    if not speeds:
        return
    median = sorted(speeds.values())[len(speeds) // 2]
    width = max(map(len, speeds))
    info(f"bandwidth from {first} to")
    for host, speed in speeds.items():
        remark = "  SLOW" if speed < SLOW_FRACTION * median else ""
        info(f"  {host.ljust(width)}  {human_bytes(speed)}/s{remark}")
