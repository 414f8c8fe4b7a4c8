"""What a container cannot be; all that is wrong is told at once. Pure, but for `host_problems`, which looks at this host."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from gugus.agent.v1 import boot_pb2, container_pb2, guest_pb2, volume_pb2

from agent.compute.hypervisor import AttachedDisk, AttachedNic
from agent.compute.lxc import security
from common import validate
from common.errors import GugusError, invalid, several

MOST_TTYS = 6
MOST_PIDS = 4_194_304
"""PID_MAX_LIMIT of the kernel (linux/threads.h)."""

WEIGHTS = (1, 10_000)
MTUS = (576, 65_520)

_CPUSET = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
_HASH = re.compile(r"[!-9;-~]{2,512}")  # printable, without the colon that ends the field (shadow(5))
_BURSTS = ("read_burst_bytes_per_s", "write_burst_bytes_per_s", "read_burst_iops", "write_burst_iops")
_OWN_PLACES = ("/proc", "/sys", "/dev", "/run")
"""What the container mounts itself when it starts; a mount below would be hidden, or break it."""


def check(spec: guest_pb2.GuestSpec, disks: Sequence[AttachedDisk], nics: Sequence[AttachedNic]) -> None:
    """Raise INVALID_ARGUMENT naming every field that is wrong."""
    errors = [*_guest(spec), *_disks(disks), *_nics(nics), *_container(spec.container), *_boot(spec)]
    if errors:
        raise several(errors)


def _guest(spec: guest_pb2.GuestSpec) -> Iterator[GugusError]:
    for field, message in (("name", validate.name(spec.name)), ("first_boot.hostname", _hostname(spec))):
        if message:
            yield invalid(field, message)
    if spec.cpus < 1:
        yield invalid("cpus", "is 0.", remedy="A guest has at least one CPU.")
    if spec.memory_bytes < 1:
        yield invalid("memory_bytes", "is 0.", remedy="Say how much memory the container may use.")
    given = spec.resources
    for field in ("cpu_weight", "io_weight"):
        if (value := getattr(given, field)) and not WEIGHTS[0] <= value <= WEIGHTS[1]:
            yield invalid(f"resources.{field}", f"is {value}; it must be {WEIGHTS[0]} to {WEIGHTS[1]}.")
    if given.cpuset and not _CPUSET.fullmatch(given.cpuset):
        yield invalid("resources.cpuset", f'"{given.cpuset[:80]}" is no set of CPUs.', remedy="Write it like 0-3,8.")
    if given.pids > MOST_PIDS:
        yield invalid("resources.pids", f"is {given.pids}; at most {MOST_PIDS} processes exist on a host.")
    if given.memory_reserved_bytes > spec.memory_bytes:
        yield invalid("resources.memory_reserved_bytes", "is more than the container's memory.")


def _hostname(spec: guest_pb2.GuestSpec) -> str:
    return validate.name(spec.first_boot.hostname or spec.name)


def _disks(disks: Sequence[AttachedDisk]) -> Iterator[GugusError]:
    if not disks:
        yield invalid("disks", "is empty.", remedy="A container's first disk is its root file system.")
    seen: set[str] = set()
    for number, disk in enumerate(disks):
        where, path = f"disks[{disk.spec.name}]", disk.spec.settings.mount_path
        if disk.format != volume_pb2.VOLUME_FORMAT_FILESYSTEM:
            yield invalid(where, "is no FILESYSTEM volume.", remedy="Import a root file system archive for it.")
        if any(getattr(disk.spec.settings.limits, burst) for burst in _BURSTS):
            yield invalid(f"{where}.settings.limits", "has bursts, which the kernel does not allow containers.")
        if number == 0:
            if path not in ("", "/"):
                yield invalid(f"{where}.settings.mount_path", "is set, but the first disk is the root file system.")
            continue
        if message := _place(path):
            yield invalid(f"{where}.settings.mount_path", message)
        elif path in seen:
            yield invalid(f"{where}.settings.mount_path", f'"{path}" is there twice.')
        seen.add(path)


def _nics(nics: Sequence[AttachedNic]) -> Iterator[GugusError]:
    for number, nic in enumerate(nics):
        where, mtu = f"nics[{number}]", nic.spec.settings.mtu
        if message := validate.mac(nic.spec.mac):
            yield invalid(f"{where}.mac", message)
        if message := validate.bridge_name(nic.spec.name):
            yield invalid(f"{where}.name", message)
        if mtu and not MTUS[0] <= mtu <= MTUS[1]:
            yield invalid(f"{where}.settings.mtu", f"is {mtu}; it must be {MTUS[0]} to {MTUS[1]} bytes.")


def _container(spec: container_pb2.ContainerSpec) -> Iterator[GugusError]:
    if spec.ttys > MOST_TTYS:
        yield invalid("container.ttys", f"is {spec.ttys}; at most {MOST_TTYS} are possible.")
    if unknown := sorted({*spec.drop_capabilities} - security.CAPABILITIES):
        yield invalid("container.drop_capabilities", f"has unknown ones: {', '.join(unknown)}.", remedy="Like net_raw.")
    if spec.features.mknod and not spec.privileged:
        yield invalid("container.features.mknod", "needs a privileged container: the kernel lets no other make nodes.")
    for name in spec.features.mount_types:
        if not security.is_file_system(name):
            yield invalid("container.features.mount_types", f'"{name[:80]}" is no file system.', remedy="Like ext4.")
    for name in spec.environment:
        if not _VARIABLE.fullmatch(name):
            yield invalid("container.environment", f'"{name[:80]}" cannot be the name of a variable.')
    if spec.init and not spec.init[0].startswith("/"):
        yield invalid("container.init", f'"{spec.init[0][:80]}" is no absolute path of a program.')
    targets = [mount.target for mount in spec.mounts]
    for number, mount in enumerate(spec.mounts):
        if message := _place(mount.target):
            yield invalid(f"container.mounts[{number}].target", message)
        elif targets.count(mount.target) > 1:
            yield invalid(f"container.mounts[{number}].target", f'"{mount.target}" is there twice.')
        if not _is_plain(mount.source):
            yield invalid(f"container.mounts[{number}].source", f'"{mount.source[:80]}" is no absolute path.')
    for number, device in enumerate(spec.devices):
        if not (_is_plain(device.path) and device.path.startswith("/dev/")):
            yield invalid(f"container.devices[{number}].path", f'"{device.path[:80]}" is not under /dev.')
        if device.mode > 0o777:
            yield invalid(f"container.devices[{number}].mode", f"is {device.mode:#o}; at most 0777 is possible.")


def _boot(spec: guest_pb2.GuestSpec) -> Iterator[GugusError]:
    boot = spec.first_boot
    if any("\n" in key.strip() for key in boot.ssh_authorized_keys):
        yield invalid("first_boot.ssh_authorized_keys", "has several lines in one entry.", remedy="One key each.")
    if boot.user and not _USER.fullmatch(boot.user):
        yield invalid("first_boot.user", f'"{boot.user[:80]}" is no name of a user.')
    if boot.password_hash and not _HASH.fullmatch(boot.password_hash):
        yield invalid("first_boot.password_hash", "is no hash as crypt(5) makes it.")
    if boot.timezone and not _ZONE.fullmatch(boot.timezone):
        yield invalid("first_boot.timezone", f'"{boot.timezone[:80]}" is no time zone.', remedy="Like Europe/Vienna.")
    for server in boot.dns_servers:
        if message := validate.ip(server):
            yield invalid("first_boot.dns_servers", message)
    if any(not domain or not domain.isprintable() or " " in domain for domain in boot.dns_search):
        yield invalid("first_boot.dns_search", "has an entry that is no domain.")
    names = {nic.name for nic in spec.nics}
    for address in boot.addresses:
        yield from _address(address, names)


def _address(address: boot_pb2.NicAddress, nics: set[str]) -> Iterator[GugusError]:
    where = f"first_boot.addresses[{address.nic}]"
    if address.nic not in nics:
        yield invalid(where, f'the guest has no interface "{address.nic}".')
    for family, words in (("ipv4", ("", "dhcp", "none")), ("ipv6", ("", "auto", "dhcp", "none"))):
        value, gateway = getattr(address, family), getattr(address, f"{family}_gateway")
        plain, slash, prefix = value.partition("/")
        right = not validate.ip(plain) and slash and prefix.isdigit() and (":" in plain) == (family == "ipv6")
        if value not in words and not right:
            yield invalid(f"{where}.{family}", f'"{value[:80]}" is no address with prefix, like 10.0.0.5/24.')
        if gateway and (validate.ip(gateway) or (":" in gateway) != (family == "ipv6")):
            yield invalid(f"{where}.{family}_gateway", f'"{gateway[:80]}" is no address.')


def _place(path: str) -> str:
    if not _is_plain(path) or path == "/":
        return f'"{path[:80]}" is no absolute path in the container.'
    if any(path == place or path.startswith(f"{place}/") for place in _OWN_PLACES):
        return f'"{path[:80]}" lies in what the container mounts itself ({", ".join(_OWN_PLACES)}).'
    return ""


def _is_plain(path: str) -> bool:
    parts = path.split("/")[1:]
    return path.startswith("/") and path.isprintable() and not {"", ".", ".."} & {*(parts if path != "/" else ())}


def host_problems(spec: container_pb2.ContainerSpec, roots: Sequence[Path]) -> list[str]:
    """Return what of the host that a container is to be given is not there, or not allowed. Blocks."""
    problems = [problem for mount in spec.mounts if (problem := _mount_problem(mount, roots))]
    return problems + [problem for device in spec.devices if (problem := _device_problem(device))]


def _mount_problem(mount: container_pb2.BindMount, roots: Sequence[Path]) -> str:
    real = Path(os.path.realpath(mount.source))
    if not real.exists():
        return f"the folder {mount.source} does not exist on this host"
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        allowed = ", ".join(map(str, roots)) or "none"
        return f"{mount.source} may not be mounted in containers (bind_mount_roots of agent.yaml allows: {allowed})"
    return ""


def _device_problem(device: container_pb2.ContainerDevice) -> str:
    real = os.path.realpath(device.path)
    try:
        mode = os.stat(real).st_mode
    except OSError as error:
        return f"the device {device.path} cannot be used: {error.strerror}"
    if not real.startswith("/dev/") or not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)):
        return f"{device.path} is no device"
    return ""
