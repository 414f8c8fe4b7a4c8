"""What a container may not do: system calls, capabilities, devices and AppArmor rules. Pure.

The denied system calls and dropped capabilities of every container are those of Incus (its default seccomp policy:
kexec_load, open_by_handle_at, init_module, finit_module, delete_module; the capabilities of privileged ones: mac_admin,
mac_override, sys_module, sys_rawio, sys_time). What goes beyond is said at each list.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gugus.agent.v1 import container_pb2

_DENIED = ("kexec_load", "kexec_file_load", "open_by_handle_at", "init_module", "finit_module", "delete_module")
"""For all: loading kernels and modules, and reaching files by numbers past the mount they are shown in."""

_DENIED_PRIVILEGED = (
    "acct",
    "bpf",
    "lookup_dcookie",
    "perf_event_open",
    "quotactl",
    "swapoff",
    "swapon",
    "userfaultfd",
)
"""Beyond Incus: what the host's root may do to the whole host, and a container that is the host's root could as well."""

_KEYRINGS = ("add_key", "keyctl", "request_key")
"""The kernel's keyrings know no containers; the feature `keyctl` allows them."""

_ENOSYS = 38  # asm-generic/errno.h: programs take such a call for one that the kernel does not have

CAPABILITIES = frozenset(
    [
        "audit_control",
        "audit_read",
        "audit_write",
        "block_suspend",
        "bpf",
        "checkpoint_restore",
        "chown",
        "dac_override",
        "dac_read_search",
        "fowner",
        "fsetid",
        "ipc_lock",
        "ipc_owner",
        "kill",
        "lease",
        "linux_immutable",
        "mac_admin",
        "mac_override",
        "mknod",
        "net_admin",
        "net_bind_service",
        "net_broadcast",
        "net_raw",
        "perfmon",
        "setfcap",
        "setgid",
        "setpcap",
        "setuid",
        "sys_admin",
        "sys_boot",
        "sys_chroot",
        "sys_module",
        "sys_nice",
        "sys_pacct",
        "sys_ptrace",
        "sys_rawio",
        "sys_resource",
        "sys_time",
        "sys_tty_config",
        "syslog",
        "wake_alarm",
    ]
)
"""capabilities(7), in the spelling of lxc.cap.drop."""

_DROPPED_PRIVILEGED = ("mac_admin", "mac_override", "sys_module", "sys_rawio", "sys_time")

DEVICES = (
    "c 1:3 rwm",  # null
    "c 1:5 rwm",  # zero
    "c 1:7 rwm",  # full
    "c 1:8 rwm",  # random
    "c 1:9 rwm",  # urandom
    "c 5:0 rwm",  # tty
    "c 5:1 rwm",  # console
    "c 5:2 rwm",  # ptmx
    "c 136:* rwm",  # pseudo terminals
)
"""Devices that every container may use (Documentation/admin-guide/devices.txt)."""

_ANY_NODE = ("c *:* m", "b *:* m")  # making a node gives no access to what is behind it
FUSE = "c 10:229 rwm"

_FILE_SYSTEM = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_GENERATED, _NESTING = "generated", "lxc-container-default-with-nesting"


@dataclass(frozen=True, slots=True)
class DeviceAccess:
    """A device of the host that a container is given."""

    kind: str
    """"b" or "c"."""
    major: int
    minor: int
    read_only: bool = False

    def rule(self) -> str:
        """Return the rule of the device controller."""
        return f"{self.kind} {self.major}:{self.minor} {'r' if self.read_only else 'rw'}"


def seccomp_policy(features: container_pb2.ContainerFeatures, *, privileged: bool) -> str:
    """Return the text of the policy file (version 2 of liblxc's format)."""
    denied = [*_DENIED, *(_DENIED_PRIVILEGED if privileged else ()), *(() if features.keyctl else _KEYRINGS)]
    head = ["2", "denylist", "reject_force_umount", "[all]"]
    return "\n".join([*head, *(f"{call} errno {_ENOSYS}" for call in sorted(denied)), ""])


def lines(
    spec: container_pb2.ContainerSpec,
    devices: Sequence[DeviceAccess],
    *,
    privileged: bool,
    apparmor: bool,
    unified: bool,
) -> Iterator[str]:
    """Return the lines of a container's configuration that hold it back (lxc.container.conf(5))."""
    yield from (f"lxc.cap.drop = {name}" for name in dropped(spec, privileged=privileged))
    key = "lxc.cgroup2.devices" if unified else "lxc.cgroup.devices"
    yield from (f"{key}.{word} = {rule}" for word, rule in device_rules(spec, devices))
    yield from _apparmor(spec.features) if apparmor else ("lxc.apparmor.profile = unconfined",)


def device_rules(spec: container_pb2.ContainerSpec, devices: Sequence[DeviceAccess] = ()) -> Iterator[tuple[str, str]]:
    """Return the rules of the device controller in their order: "deny" or "allow", and what."""
    yield "deny", "a"
    rules = [*DEVICES, *_ANY_NODE, *([FUSE] if spec.features.fuse else []), *(device.rule() for device in devices)]
    yield from (("allow", rule) for rule in rules)


def dropped(spec: container_pb2.ContainerSpec, *, privileged: bool) -> list[str]:
    """Return the capabilities that a container does not have, in lower case.

    An unprivileged one has the others within its own user namespace only. Beyond Incus, a privileged one makes no device
    nodes without the feature `mknod`.
    """
    names = {*spec.drop_capabilities}
    if privileged:
        names |= {*_DROPPED_PRIVILEGED, *(() if spec.features.mknod else ("mknod",))}
    return sorted(names)


def is_file_system(name: str) -> bool:
    """Whether a word can be the name of a file system in an AppArmor rule."""
    return bool(_FILE_SYSTEM.fullmatch(name))


def _apparmor(features: container_pb2.ContainerFeatures) -> Iterator[str]:
    """The profile: Debian's for containers, or one that liblxc generates when more than nesting is asked for."""
    types = [*features.mount_types, *(["fuse", "fuse.*"] if features.fuse else [])]
    if types:
        yield f"lxc.apparmor.profile = {_GENERATED}"
        yield f"lxc.apparmor.allow_nesting = {int(features.nesting)}"
        yield from (f"lxc.apparmor.raw = mount fstype={name}," for name in types)
    elif features.nesting:
        yield f"lxc.apparmor.profile = {_NESTING}"
