"""The configuration file of a container, made from what the guest is to be. Pure.

Invariant: every value that comes from outside is checked to fit on one line, so no guest can add a setting of its own.
Keys: lxc.container.conf(5) of LXC 5.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gugus.agent.v1 import container_pb2

from agent.compute.lxc import security
from agent.compute.lxc.limits import Limit
from agent.compute.lxc.security import DeviceAccess
from common.errors import invalid

CONSOLE_LOG_MAX = "1MB"
"""Size at which liblxc begins a new console log; as much as `console_log` can return."""

TTYS = 2
"""Terminals beside the console of a container that names no number."""

NO_CONSOLE = "lxc.console.path = none"

_ESCAPES = {"\\": "\\134", " ": "\\040", "\t": "\\011", "\n": "\\012"}  # fstab(5)


@dataclass(frozen=True, slots=True)
class Nic:
    """A veth pair: `name` inside, `host_name` outside, plugged into `bridge`.

    `addresses` (with prefix) and `gateways` are set from outside, for images without a network system of their own.
    """

    name: str
    host_name: str
    bridge: str
    mac: str
    mtu: int = 0
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of the host in a container. `device`: it is a node that must be usable there."""

    source: Path
    target: str
    is_folder: bool = True
    read_only: bool = False
    device: bool = False
    idmapped: bool = True
    """Whether its ids are translated when the container runs in a range of its own."""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Init:
    """What runs as first process instead of /sbin/init. The command itself is an argument of lxc-start."""

    uid: int = 0
    gid: int = 0
    folder: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Host:
    """What the file depends on of this host."""

    unified_cgroups: bool
    """cgroup v2 only (Debian's default), not the v1 hierarchies."""
    includes: tuple[Path, ...] = ()
    """Debian's defaults for all containers."""
    userns_includes: tuple[Path, ...] = ()
    """What unprivileged ones need on top."""
    apparmor: bool = False


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """A container with everything resolved."""

    name: str
    hostname: str
    rootfs: Path
    console_log: Path
    seccomp: Path
    halt_signal: str
    spec: container_pb2.ContainerSpec = field(default_factory=container_pb2.ContainerSpec)
    limits: Sequence[Limit] = ()
    idmap: tuple[str, ...] = ()
    """Lines that map the ids; empty: privileged."""
    userns: Path | None = None
    """User namespace that translates the ids of its file systems; None: they are on disk as the container has them."""
    nics: Sequence[Nic] = ()
    mounts: Sequence[Mount] = ()
    devices: Sequence[DeviceAccess] = ()
    init: Init | None = None
    read_only: bool = False
    may_start: Path | None = None
    """File whose absence keeps the monitor from starting the container again when the guest reboots."""


def render(container: ContainerConfig, host: Host) -> str:
    """Return the text of the file. Raises INVALID_ARGUMENT for a value that no line can hold."""
    parts = (_includes, _system, _init, _security, _mounts)
    lines = [line for part in parts for line in part(container, host)]
    lines += [limit.line(unified=host.unified_cgroups) for limit in container.limits]
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


def _system(container: ContainerConfig, _host: Host) -> Iterator[str]:
    yield f"lxc.uts.name = {container.hostname}"
    yield f"lxc.rootfs.path = dir:{container.rootfs}"
    options = (["ro"] if container.read_only else []) + ([f"idmap={container.userns}"] if container.userns else [])
    if options:
        yield f"lxc.rootfs.options = {','.join(options)}"
    yield f"lxc.signal.halt = {container.halt_signal}"
    if (
        container.spec.features.checkpoint
    ):  # CRIU knows terminals only with both of their ends, and one is the monitor's
        yield NO_CONSOLE
        yield "lxc.tty.max = 0"
    else:
        yield f"lxc.console.logfile = {container.console_log}"
        yield f"lxc.console.size = {CONSOLE_LOG_MAX}"
        yield "lxc.console.rotate = 1"
        yield f"lxc.tty.max = {container.spec.ttys or TTYS}"
    if container.may_start is not None:
        yield "lxc.hook.version = 1"  # hooks get no arguments
        yield f"lxc.hook.pre-start = /usr/bin/test -e {container.may_start}"
    if not container.nics:
        yield "lxc.net.0.type = empty"


def _init(container: ContainerConfig, _host: Host) -> Iterator[str]:
    if (init := container.init) is None:
        return
    yield from (f"lxc.environment = {name}={value}" for name, value in sorted(init.environment.items()))
    if init.uid or init.gid:
        yield f"lxc.init.uid = {init.uid}"
        yield f"lxc.init.gid = {init.gid}"
    if init.folder:
        yield f"lxc.init.cwd = {init.folder}"


def _security(container: ContainerConfig, host: Host) -> Iterator[str]:
    yield f"lxc.seccomp.profile = {container.seccomp}"
    yield from security.lines(
        container.spec,
        container.devices,
        privileged=not container.idmap,
        apparmor=host.apparmor,
        unified=host.unified_cgroups,
    )


def _mounts(container: ContainerConfig, _host: Host) -> Iterator[str]:
    if container.spec.features.nesting:
        # Whole mounts of proc and sys: the kernel lets a user namespace mount new ones only where it can see such.
        yield "lxc.mount.entry = proc dev/.lxc/proc proc create=dir,optional 0 0"
        yield "lxc.mount.entry = sys dev/.lxc/sys sysfs create=dir,optional 0 0"
    if container.spec.features.fuse:
        yield "lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file,optional 0 0"
    for mount in container.mounts:
        options = ["bind", f"create={'dir' if mount.is_folder else 'file'}"]
        options += ["ro"] if mount.read_only else []
        options += [] if mount.device else ["nodev"]
        options += ["optional"] if mount.optional else []
        options += [f"idmap={container.userns}"] if container.userns and mount.idmapped else []
        source, target = _escaped(str(mount.source)), _escaped(mount.target.lstrip("/"))
        yield f"lxc.mount.entry = {source} {target} none {','.join(options)} 0 0"


def _nic(number: int, nic: Nic) -> list[str]:
    key = f"lxc.net.{number}"
    lines = [
        f"{key}.type = veth",
        f"{key}.flags = up",
        f"{key}.name = {nic.name}",
        f"{key}.link = {nic.bridge}",
        f"{key}.veth.pair = {nic.host_name}",
        f"{key}.hwaddr = {nic.mac}",
        *([f"{key}.mtu = {nic.mtu}"] if nic.mtu else []),
    ]
    for address in nic.addresses:
        lines.append(f"{key}.{_family(address)}.address = {address}")
    for gateway in nic.gateways:
        lines.append(f"{key}.{_family(gateway)}.gateway = {gateway}")
    return lines


def _family(address: str) -> str:
    return "ipv6" if ":" in address else "ipv4"


def _escaped(path: str) -> str:
    return "".join(_ESCAPES.get(char, char) for char in path)
