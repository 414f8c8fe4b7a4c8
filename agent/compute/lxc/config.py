"""The configuration file of a container, made from what the guest is to be. Pure.

Invariant: every value that comes from outside is checked to fit on one line, so no guest can add a setting of its own.
Keys: lxc.container.conf(5) of LXC 5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import invalid

CPU_PERIOD_US = 100_000
"""Period of the CPU quota in microseconds: the kernel's default (sched-bwc.rst)."""

PIDS_MAX = 4096
"""Most processes and threads of one container: a fork bomb inside must not use up the host's."""

CONSOLE_LOG_MAX = "1MB"
"""Size at which liblxc begins a new console log; as much as `console_log` can return."""

_SHARES_PER_CPU = 1024  # cgroup v1 cpu.shares of one whole CPU
_WEIGHT_PER_CPU = 100  # cgroup v2 cpu.weight of one whole CPU
_WEIGHT_RANGE = (1, 10_000)  # cgroup-v2.rst


@dataclass(frozen=True, slots=True)
class Nic:
    """A veth pair: `name` inside, `host_name` outside, plugged into `bridge`."""

    name: str
    host_name: str
    bridge: str
    mac: str


@dataclass(frozen=True, slots=True)
class Host:
    """What the file depends on of this host."""

    unified_cgroups: bool
    """cgroup v2 only (Debian's default), not the v1 hierarchies."""
    includes: tuple[Path, ...] = ()
    """Debian's defaults for all containers: capabilities dropped, devices, seccomp."""
    userns_includes: tuple[Path, ...] = ()
    """What unprivileged ones need on top."""
    apparmor: bool = False


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """A container with everything resolved. Memory in bytes, CPU time in thousandths of one CPU."""

    name: str
    hostname: str
    rootfs: Path
    console_log: Path
    cpus: int
    cpu_limit_milli: int
    memory_bytes: int
    halt_signal: str
    idmap: tuple[str, ...] = ()
    """Lines that map the ids; empty: privileged."""
    nics: Sequence[Nic] = ()
    read_only: bool = False


def render(container: ContainerConfig, host: Host) -> str:
    """Return the text of the file. Raises INVALID_ARGUMENT for a value that no line can hold."""
    lines = [*_includes(container, host), *_system(container, host), *_limits(container, host)]
    for number, nic in enumerate(container.nics):
        lines += _nic(number, nic)
    for line in lines:
        if not line.isprintable():
            raise invalid("guest", f"has control characters, which a container's file cannot hold: {line!r}")
    return "\n".join([*lines, ""])


def _includes(container: ContainerConfig, host: Host) -> Iterator[str]:
    yield from (f"lxc.include = {path}" for path in host.includes)
    if container.idmap:
        yield from (f"lxc.include = {path}" for path in host.userns_includes)
        yield from container.idmap


def _system(container: ContainerConfig, host: Host) -> Iterator[str]:
    yield f"lxc.uts.name = {container.hostname}"
    yield f"lxc.rootfs.path = dir:{container.rootfs}"
    if container.read_only:
        yield "lxc.rootfs.options = ro"
    yield f"lxc.signal.halt = {container.halt_signal}"
    yield f"lxc.console.logfile = {container.console_log}"
    yield f"lxc.console.size = {CONSOLE_LOG_MAX}"
    yield "lxc.console.rotate = 1"
    yield "lxc.tty.max = 0"
    if not host.apparmor:
        yield "lxc.apparmor.profile = unconfined"
    if not container.nics:
        yield "lxc.net.0.type = empty"


def _limits(container: ContainerConfig, host: Host) -> Iterator[str]:
    milli = container.cpu_limit_milli or container.cpus * 1000
    quota = max(milli * CPU_PERIOD_US // 1000, 1000)  # the kernel takes 1 ms at least
    if host.unified_cgroups:
        least, most = _WEIGHT_RANGE
        yield f"lxc.cgroup2.memory.max = {container.memory_bytes}"
        yield f"lxc.cgroup2.cpu.max = {quota} {CPU_PERIOD_US}"
        yield f"lxc.cgroup2.cpu.weight = {min(max(milli * _WEIGHT_PER_CPU // 1000, least), most)}"
        yield f"lxc.cgroup2.pids.max = {PIDS_MAX}"
    else:
        yield f"lxc.cgroup.memory.limit_in_bytes = {container.memory_bytes}"
        yield f"lxc.cgroup.cpu.cfs_period_us = {CPU_PERIOD_US}"
        yield f"lxc.cgroup.cpu.cfs_quota_us = {quota}"
        yield f"lxc.cgroup.cpu.shares = {max(milli * _SHARES_PER_CPU // 1000, 2)}"
        yield f"lxc.cgroup.pids.max = {PIDS_MAX}"


def _nic(number: int, nic: Nic) -> list[str]:
    key = f"lxc.net.{number}"
    return [
        f"{key}.type = veth",
        f"{key}.flags = up",
        f"{key}.name = {nic.name}",
        f"{key}.link = {nic.bridge}",
        f"{key}.veth.pair = {nic.host_name}",
        f"{key}.hwaddr = {nic.mac}",
    ]
