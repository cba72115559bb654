"""What is to be started, and where: resolved and checked before any process exists."""

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.common import slurm
from megatron.common.device import accelerator_count
from megatron.common.errors import LaunchError
from megatron.common.hosts import Pool, free_port, resource_pool
from megatron.common.wandb_key import get_wandb_api_key
from megatron.launcher.reach import check_hosts, is_this_machine
from megatron.launcher.srun import in_order_of_ranks
from megatron.neox_arguments.command_line import starter_arguments

DEFAULT_PORT = 29500
# Launchers that place processes by themselves, without ssh of ours.
PLACED_BY_SCHEDULER = ("slurm", "jsrun")


@dataclass(frozen=True)
class Job:
    """One script on the slots of some hosts.

    hosts: slots by host; is_local: this machine alone, started by our own launcher; on_gpus: slots are devices;
    owns_interrupt: Ctrl-C is for the script, which has a conversation on the terminal, not a wish to end the job;
    launcher, launcher_args: what starts the processes of several hosts; checks_ssh: see first whether they can be
    reached; trackers: experiment trackers that the hosts need the environment variables of; keys: what their packages
    would find on this machine only; patience: seconds without progress that are a stall, 0 for no limit;
    restarts: how often it has been started again.
    """

    script: str
    arguments: tuple[str, ...]
    hosts: Pool
    is_local: bool
    on_gpus: bool
    master_addr: str
    master_port: int
    owns_interrupt: bool = False
    launcher: str = "pdsh"
    launcher_args: str = ""
    checks_ssh: bool = True
    trackers: tuple[str, ...] = ()
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    patience: float = 0.0
    restarts: int = 0

    @property
    def size(self) -> int:
        """Number of processes."""
        return sum(len(slots) for slots in self.hosts.values())

    @property
    def slots(self) -> list[int]:
        """Slots of the only host of a local job."""
        return next(iter(self.hosts.values()))

    def describe(self) -> str:
        """Where the processes run, in one line."""
        kind = "GPU" if self.on_gpus else "CPU"
        places = "; ".join(f"{host} slots {_ranges(slots)}" for host, slots in self.hosts.items())
        plural = "es" if self.size > 1 else ""
        through = "" if self.is_local else f" through {self.launcher}"
        return f"{self.script} on {self.size} {kind} process{plural}{through} ({places}), meeting at {self.address}"

    @property
    def address(self) -> str:
        """Where the processes meet."""
        return f"{self.master_addr}:{self.master_port}"


def resolve(args: Any, arguments: list[str]) -> Job:
    """The job that a configuration describes.

    Args: args: a NeoXArgs; arguments: command line of the script.
    Raises: LaunchError for hosts and slots that do not exist or do not match the configuration.
    """
    pool = resource_pool(
        args.hostfile, args.include, args.exclude, args.num_nodes, args.num_gpus, args.launcher
    )
    if args.launcher == "slurm" and (pool or args.force_multi):
        pool = in_order_of_ranks(pool)
    devices = accelerator_count()
    if not pool:
        if args.num_nodes > 1:
            raise LaunchError(
                f"num_nodes={args.num_nodes}, but without a hostfile there is only this machine; set hostfile"
            )
        pool = {"localhost": _local_slots(args.num_gpus, devices, args.global_num_gpus)}
    is_local = not args.force_multi and len(pool) == 1 and is_this_machine(next(iter(pool)))
    if is_local and devices:
        missing = [slot for slot in next(iter(pool.values())) if slot >= devices]
        if missing:
            raise LaunchError(f"slot {missing[0]} was asked for, but this machine has {devices} devices")
    job = Job(
        script=args.user_script,
        arguments=tuple(arguments),
        hosts=pool,
        is_local=is_local,
        on_gpus=bool(devices) or (not is_local and os.environ.get("DS_ACCELERATOR") != "cpu"),
        master_addr=args.master_addr or _first_address(pool, is_local),
        master_port=_port(args.master_port, is_local, args.launcher),
        owns_interrupt=args.text_gen_type == "interactive",
        launcher=args.launcher,
        launcher_args=starter_arguments(args),
        checks_ssh=not args.no_ssh_check and args.launcher not in PLACED_BY_SCHEDULER,
        trackers=tuple(name for name in ("wandb", "comet") if getattr(args, f"use_{name}")),
        keys={"WANDB_API_KEY": key} if args.use_wandb and (key := get_wandb_api_key(args)) else {},
        # A person may take any time to type.
        patience=0.0 if args.text_gen_type == "interactive" else args.watchdog_timeout,
    )
    if pool and job.size != args.global_num_gpus:
        counts = ", ".join(f"{host} {len(slots)}" for host, slots in pool.items())
        raise LaunchError(
            f"the configuration is for global_num_gpus={args.global_num_gpus}, but {job.size} slots are available "
            f"({counts}); change global_num_gpus, num_gpus or the hostfile"
        )
    return job


def check(job: Job) -> None:
    """Find now what would otherwise fail inside the processes.

    Raises: LaunchError.
    """
    if not Path(job.script).is_file():
        raise LaunchError(f"{job.script}: no such script")
    if job.is_local:
        check_address(job.master_addr)
        check_port(job.master_addr, job.master_port)
    else:
        check_hosts(job)


def check_address(address: str) -> None:
    """Raises: LaunchError if the processes of this machine cannot meet at `address` because it is elsewhere."""
    try:
        places = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except OSError:
        raise LaunchError(f"master_addr={address!r} is unknown; leave it out, or set 127.0.0.1") from None
    for family, kind, protocol, _, place in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
                return
        except OSError:
            continue
    raise LaunchError(
        f"master_addr={address!r} is not an address of this machine, where all processes run; leave it out, or set "
        "127.0.0.1"
    )


def check_port(address: str, port: int) -> None:
    """Raises: LaunchError, with a free port, if `port` cannot be bound."""
    if _can_bind(port):
        return
    raise LaunchError(
        f"master_port={port} is in use on {address}; set another one, such as master_port: {free_port()}"
    )


def _first_address(pool: Pool, is_local: bool) -> str:
    """Where processes meet when nobody says: MASTER_ADDR, else the first host."""
    if is_local:
        return "127.0.0.1"
    return os.environ.get("MASTER_ADDR") or next(iter(pool), "")


def _local_slots(num_gpus: int | None, devices: int, wanted: int) -> list[int]:
    if devices and num_gpus and num_gpus > devices:
        raise LaunchError(f"num_gpus={num_gpus}, but this machine has {devices} devices")
    return list(range(num_gpus or devices or wanted))


def _port(configured: int, is_local: bool, launcher: str) -> int:
    """The port that was asked for. Where nobody asked, a job on this machine alone gets one of its own: a fixed one
    that is free now might be taken by another job before the workers listen."""
    if configured != DEFAULT_PORT:
        return configured
    if "MASTER_PORT" in os.environ:
        text = os.environ["MASTER_PORT"].strip()
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise LaunchError(f"the environment variable MASTER_PORT={text!r} must lie between 1 and 65535")
        return int(text)
    if is_local:
        return free_port()
    return (launcher == "slurm" and slurm.meeting_port()) or configured


def _can_bind(port: int) -> bool:
    for family, any_address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((any_address, port))
        except PermissionError as error:
            raise LaunchError(
                f"master_port={port} may not be used: {error.strerror}; take one above 1023"
            ) from None
        except OSError as error:
            if error.errno == 98 or error.errno == 48:  # EADDRINUSE on Linux and macOS
                return False
            # Otherwise this address family does not exist here.
    return True


def _ranges(slots: list[int]) -> str:
    """`[0, 1, 2, 5] -> "0-2,5"`."""
    parts: list[list[int]] = []
    for slot in slots:
        if parts and slot == parts[-1][-1] + 1:
            parts[-1].append(slot)
        else:
            parts.append([slot])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
