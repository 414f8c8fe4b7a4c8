"""What only containers have: features, mounts, devices, the first process."""

import re
from collections.abc import Iterator

from gugus.agent.v1.container_pb2 import ContainerSpec
from gugus.cluster.v1.guest_pb2 import GuestSpec

from common.errors import GugusError, invalid
from manager.guests.known import Known
from manager.guests.rules import check

MAX_TTYS = 6
MAX_MOUNTS = 32
MAX_DEVICES = 32
MAX_ID = 65_535
"""User and group ids of an unprivileged container: its range has 65,536."""

MAX_MODE = 0o777
MAX_TEXT_BYTES = 8 * 1024
RESERVED_TARGETS = ("/proc", "/sys", "/dev", "/run")

COMMON_DEVICES = frozenset(
    {
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
        "/dev/fuse",
        "/dev/net/tun",
        "/dev/kvm",
        "/dev/ppp",
    }
)
"""Devices that are the same on every host: a guest with them is not bound to its own."""

CAPABILITIES = frozenset({
    "audit_control", "audit_read", "audit_write", "block_suspend", "bpf", "checkpoint_restore", "chown", "dac_override",
    "dac_read_search", "fowner", "fsetid", "ipc_lock", "ipc_owner", "kill", "lease", "linux_immutable", "mac_admin", "mac_override",
    "mknod", "net_admin", "net_bind_service", "net_broadcast", "net_raw", "perfmon", "setfcap", "setgid", "setpcap", "setuid",
    "sys_admin", "sys_boot", "sys_chroot", "sys_module", "sys_nice", "sys_pacct", "sys_ptrace", "sys_rawio", "sys_resource",
    "sys_time", "sys_tty_config", "syslog", "wake_alarm",
})  # fmt: skip
"""capabilities(7) of Linux 6.1."""

_TYPE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_DEVICE = re.compile(r"/dev(/[A-Za-z0-9_.:-]+)+")

AT = "spec.container"


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Everything in `container`."""
    own = spec.container
    for index, name in enumerate(own.features.mount_types):
        yield from check.matching(f"{AT}.features.mount_types[{index}]", name, _TYPE, 'a file system type like "ext4"')
    if own.features.mknod and not own.privileged:
        yield invalid(
            f"{AT}.features.mknod", "true needs a privileged container: the kernel lets no other make device nodes."
        )
    yield from _mounts(spec)
    yield from _devices(own)
    yield from _process(own)
    yield from check.ranged(f"{AT}.ttys", own.ttys, 1, MAX_TTYS)
    for index, name in enumerate(own.drop_capabilities):
        if name not in CAPABILITIES:
            yield invalid(f"{AT}.drop_capabilities[{index}]", f'{check.shown(name)} is no capability, like "net_raw".')


def local_devices(own: ContainerSpec) -> list[str]:
    """Return what of its host a container has that other hosts need not have."""
    mounts = [mount.source for mount in own.mounts if not mount.shared]
    return mounts + [device.path for device in own.devices if device.path not in COMMON_DEVICES]


def _mounts(spec: GuestSpec) -> Iterator[GugusError]:
    yield from check.at_most(f"{AT}.mounts", len(spec.container.mounts), MAX_MOUNTS, "mounts")
    targets = {disk.settings.mount_path for disk in spec.disks if disk.settings.mount_path}
    for index, disk in enumerate(spec.disks):
        path = disk.settings.mount_path
        if path and any(other.settings.mount_path == path for other in spec.disks[:index]):
            yield invalid(f"spec.disks[{index}].settings.mount_path", f'"{path}" is where another disk is mounted.')
        if path and _reserved(path):
            yield invalid(f"spec.disks[{index}].settings.mount_path", f'"{path}" is the system\'s; choose another.')
    for index, mount in enumerate(spec.container.mounts):
        at = f"{AT}.mounts[{index}]"
        yield from check.path(f"{at}.source", mount.source)
        yield from check.path(f"{at}.target", mount.target)
        if _reserved(mount.target):
            yield invalid(f"{at}.target", f"{check.shown(mount.target)} is the system's; choose another.")
        if mount.target in targets:
            yield invalid(f"{at}.target", f"{check.shown(mount.target)} is where something else is mounted.")
        targets.add(mount.target)


def _reserved(path: str) -> bool:
    return any(path == top or path.startswith(f"{top}/") for top in RESERVED_TARGETS)


def _devices(own: ContainerSpec) -> Iterator[GugusError]:
    yield from check.at_most(f"{AT}.devices", len(own.devices), MAX_DEVICES, "devices")
    seen: set[str] = set()
    for index, device in enumerate(own.devices):
        at = f"{AT}.devices[{index}]"
        yield from check.matching(f"{at}.path", device.path, _DEVICE, "a device under /dev, like /dev/ttyUSB0")
        if {".", ".."} & set(device.path.split("/")):
            yield invalid(f"{at}.path", f'{check.shown(device.path)} has "." or ".." in it.')
        if device.path in seen:
            yield invalid(f"{at}.path", f"{check.shown(device.path)} is given twice.")
        seen.add(device.path)
        yield from check.ranged(f"{at}.uid", device.uid, 1, MAX_ID)
        yield from check.ranged(f"{at}.gid", device.gid, 1, MAX_ID)
        yield from check.ranged(f"{at}.mode", device.mode, 1, MAX_MODE, show=lambda mode: f"{mode:04o}")


def _process(own: ContainerSpec) -> Iterator[GugusError]:
    if own.init:
        yield from check.path(f"{AT}.init[0]", own.init[0])
    for index, word in enumerate(own.init):
        if "\0" in word or "\n" in word:
            yield invalid(f"{AT}.init[{index}]", f"{check.shown(word)} has a line break or a zero byte in it.")
    yield from check.size_of_text(f"{AT}.init", " ".join(own.init), MAX_TEXT_BYTES)
    for name, value in sorted(own.environment.items()):
        at = f"{AT}.environment[{name[:20]}]"
        yield from check.matching(at, name, _VARIABLE, "the name of a variable, like LANG")
        if "\0" in value or "\n" in value:
            yield invalid(at, f"{check.shown(value)} has a line break or a zero byte in it.")
    text = "".join(f"{name}={value} " for name, value in own.environment.items())
    yield from check.size_of_text(f"{AT}.environment", text, MAX_TEXT_BYTES)
