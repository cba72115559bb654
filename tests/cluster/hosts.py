"""Hosts for tests: namespaces of this machine, each with a name, an address, processes and an sshd of its own.

    with cluster(folder, "node1", "node2") as (node1, node2):
        node1.run(["ssh", "node2", "hostname"]).stdout == "node2\n"
        node2.set_link(up=False)

A host has its own network, host name, process ids, shared memory, /etc/hosts and /etc/ssh (with throw-away keys, so
that ssh works between the hosts as it would after an administrator's work). Everything else it shares with this
machine, as hosts of a cluster share a file system. The hosts see each other and nothing else. The first one serves as
the host on which the user types. Leaving the context, or the death of the test process, ends every process of the
hosts. Needs root.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.common.components import find_program, needs_program, unavailable

# Not eth0: programs that take that name for granted must not get away with it.
INTERFACE = "fabric0"
_START_SECONDS = 30.0
# What dies with the test process, however that ends.
_TIED = ["setpriv", "--pdeathsig", "KILL"]
_NEW_HOST = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

_BOOT = """set -e
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/ssh" /etc/ssh
if [ -d "$3/.ssh" ]; then mount --bind "$2/empty" "$3/.ssh"; fi
ip link set lo up
mkdir -p /run/sshd
sleep infinity &
keeper=$!
"$4" -D -e 2>"$2/sshd_$1.log" &
wait $keeper
"""

_SSHD_CONFIG = """HostKey /etc/ssh/key
AuthorizedKeysFile /etc/ssh/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
"""

_SSH_CONFIG = """Host *
IdentityFile /etc/ssh/key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
ConnectTimeout 5
"""


@dataclass
class Host:
    """One host. port: its end of the cable, at the switch."""

    name: str
    address: str
    port: str
    _process: subprocess.Popen
    _switch: int
    _own: set[int] = field(default_factory=set)

    def command(self, arguments: Sequence, directory: str | Path | None = None) -> list[str]:
        """The command line that runs `arguments` on this host."""
        target = str(self._process.pid)
        spaces = f"--pid=/proc/{target}/ns/pid_for_children"
        enter = ["nsenter", "--target", target, "--net", "--uts", "--ipc", "--mount", spaces]
        return [*enter, "env", f"--chdir={directory or Path.cwd()}", *map(str, arguments)]

    def run(
        self,
        arguments: Sequence,
        directory: str | Path | None = None,
        env: dict | None = None,
        check: bool = True,
        timeout: float = 120.0,
    ) -> subprocess.CompletedProcess:
        """Run a command to its end; stdout and stderr are kept apart, as text."""
        process = self.start(arguments, directory, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill_all()
            out, errors = process.communicate()
            raise AssertionError(
                f"{self.name}: {arguments} takes more than {timeout} s\n{out}\n{errors}"
            ) from None
        done = subprocess.CompletedProcess(list(arguments), process.returncode, out, errors)
        if check:
            assert done.returncode == 0, f"{self.name}: {arguments}\n{out[-4000:]}\n{errors[-4000:]}"
        return done

    def start(
        self,
        arguments: Sequence,
        directory: str | Path | None = None,
        env: dict | None = None,
        stdout=None,
        stderr=subprocess.STDOUT,
    ) -> subprocess.Popen:
        """Start a command. What is returned is the way onto the host: for signals use `processes` or `kill_all`."""
        return subprocess.Popen(
            self.command(arguments, directory),
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            errors="replace",
        )

    def set_link(self, up: bool) -> None:
        """Plug in or pull out the network cable, at the far end: the host itself does not see it go."""
        _ip(self._switch, "link", "set", self.port, "up" if up else "down")

    def stop_ssh(self) -> None:
        """End the sshd: connections are refused from now on."""
        for pid, command in _processes(self._space()).items():
            if "sshd" in command.split(" ")[0]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)

    def processes(self) -> dict[int, str]:
        """Command lines of what runs on the host, by their process ids outside of it; the host's own are left out."""
        return {pid: line for pid, line in _processes(self._space()).items() if pid not in self._own}

    def kill_all(self) -> None:
        """Kill what `processes` lists."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def settle(self) -> None:
        """Take what runs now for the host's own."""
        self._own = set(_processes(self._space()))

    def shut_down(self) -> None:
        """End the host and all that runs on it."""
        self._process.kill()
        self._process.wait()

    def _space(self) -> str:
        return os.readlink(f"/proc/{self._process.pid}/ns/pid_for_children")


@contextlib.contextmanager
def cluster(folder: Path, *names: str) -> Iterator[list[Host]]:
    """Hosts of these names; `folder` takes their keys and logs."""
    needs_hosts()
    _write_files(folder, {name: f"10.91.7.{number}" for number, name in enumerate(names, start=1)})
    with contextlib.ExitStack() as stack:
        switch = subprocess.Popen([*_TIED, "unshare", "--net", "sleep", "infinity"])
        stack.callback(switch.wait)
        stack.callback(switch.kill)
        wait_for(lambda: _is_apart(switch.pid, "net"), "a network namespace")
        _ip(switch.pid, "link", "add", "switch", "type", "bridge")
        _ip(switch.pid, "link", "set", "switch", "up")
        hosts = [_start_host(name, number, switch.pid, folder) for number, name in enumerate(names, start=1)]
        for host in hosts:
            stack.callback(host.shut_down)
        for host in hosts:
            _connect(host)
        for host in hosts:
            log = folder / f"sshd_{host.name}.log"
            wait_for(lambda log=log: log.exists() and "listening" in log.read_text(), f"sshd ({log})")
            host.settle()
        yield hosts


def needs_hosts() -> None:
    """What the hosts are made of."""
    if os.geteuid() != 0:
        unavailable("hosts are made of namespaces, which needs root")
    needs_program("unshare", "nsenter", "setpriv", "ip", "sshd", "ssh", "ssh-keygen")
    tried = subprocess.run(["unshare", *_NEW_HOST, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        unavailable(f"this machine does not let root make namespaces ({tried.stderr.strip()})")


def _write_files(folder: Path, addresses: dict[str, str]) -> None:
    (folder / "ssh").mkdir(parents=True)
    (folder / "empty").mkdir()
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n", encoding="ascii")
    (folder / "ssh" / "sshd_config").write_text(_SSHD_CONFIG, encoding="ascii")
    (folder / "ssh" / "ssh_config").write_text(_SSH_CONFIG, encoding="ascii")
    key = str(folder / "ssh" / "key")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)


def _start_host(name: str, number: int, switch: int, folder: Path) -> Host:
    boot = ["sh", "-c", _BOOT, "boot", name, str(folder), os.path.expanduser("~root"), find_program("sshd")]
    process = subprocess.Popen([*_TIED, "unshare", *_NEW_HOST, *boot], stdin=subprocess.DEVNULL)
    return Host(name, f"10.91.7.{number}", f"port{number}", process, switch)


def _connect(host: Host) -> None:
    pid, switch = host._process.pid, host._switch
    wait_for(lambda: _is_apart(pid, "net") and _is_apart(pid, "uts"), "a host's namespaces")
    peer = ["peer", "name", INTERFACE, "netns", str(pid)]
    _ip(switch, "link", "add", host.port, "type", "veth", *peer)
    _ip(switch, "link", "set", host.port, "master", "switch", "up")
    _ip(pid, "address", "add", f"{host.address}/24", "dev", INTERFACE)
    _ip(pid, "link", "set", INTERFACE, "up")


def _ip(pid: int, *arguments: str) -> None:
    subprocess.run(["nsenter", "--target", str(pid), "--net", "ip", *arguments], check=True)


def _is_apart(pid: int, kind: str) -> bool:
    return os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def _processes(space: str) -> dict[int, str]:
    """Command lines of the processes of a process id namespace."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if os.readlink(entry / "ns" / "pid") == space:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if line:  # What has ended and waits to be asked how has none.
                    found[int(entry.name)] = line
    return found


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Wait until the condition holds. Raises AssertionError that says what did not come up."""
    end = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come up within {_START_SECONDS:g} s")
        time.sleep(0.02)
