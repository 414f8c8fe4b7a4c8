"""What of a changed definition can be brought into a running domain, and how; the rest waits for its next start. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from gugus.agent.v1 import guest_pb2

from agent.compute.definitions import Definition
from agent.compute.differences import Difference, differences
from agent.compute.kvm.xml.mark import veiled


class Way(Enum):
    """How a change is brought into a running domain."""

    CPUS = "number of CPUs"
    CPU_SHARE = "weight and limit of the CPUs"
    CPU_PINS = "CPUs of the host"
    MEMORY = "memory"
    IO_SHARE = "weight of the disks"
    DISK = "a disk that comes or goes"
    DISK_SIZE = "size of a disk"
    DISK_LIMITS = "limits of a disk"
    NIC = "an interface that comes or goes"
    NIC_SETTINGS = "limits, cable and network of an interface"
    DISC = "the disc in a CD-ROM drive"
    USB = "USB devices"
    PCI = "PCI devices"
    NOTE = "nothing that the domain has to know"


@dataclass(frozen=True, slots=True)
class Change:
    """One field that differs, and the way it goes; None: it waits for the next start."""

    difference: Difference
    way: Way | None
    reason: str = ""

    @property
    def item(self) -> str:
        """Disk, interface or drive that it is about."""
        return self.difference.item


FIXED = "it is fixed while the guest runs"
UNPLUGGED = "the guest takes no changes while it runs (no_hotplug)"
NOT_YET = "it was not applied yet"

_WAYS: tuple[tuple[re.Pattern[str], Way | None], ...] = tuple(
    (re.compile(pattern), way)
    for pattern, way in (
        (r"cpus", Way.CPUS),
        (r"cpu_limit_milli|resources\.cpu_weight", Way.CPU_SHARE),
        (r"resources\.cpuset|virtual_machine\.cpu\.pins\[.*\]", Way.CPU_PINS),
        (r"memory_bytes", Way.MEMORY),
        (r"resources\.io_weight", Way.IO_SHARE),
        (r"disks\[[^]]*\]", Way.DISK),
        (r"disks\[[^]]*\]\.settings\.limits\..*", Way.DISK_LIMITS),
        (r"disks\[[^]]*\]\.(pool|volume)", Way.DISK),
        (r"disks\[[^]]*\]\.size_bytes", Way.DISK_SIZE),
        (r"disks\[[^]]*\]\.settings\.(no_snapshot|mount_path)", Way.NOTE),
        (r"nics\[[^]]*\]", Way.NIC),
        (r"nics\[[^]]*\]\.(network|settings\.(rate_bytes_per_s|burst_bytes|link_down))", Way.NIC_SETTINGS),
        (r"virtual_machine\.cdroms\[[^]]*\]\.(pool|image)", Way.DISC),
        (r"virtual_machine\.usb_devices", Way.USB),
        (r"virtual_machine\.pci_devices", Way.PCI),
        (r"ha|id|name|boot_order|shutdown_timeout_ms|policies\..*|cluster_cpu\..*|hibernation_.*", Way.NOTE),
        (r"resources\.(memory_reserved_bytes|memory_weight|pids|swap_bytes)", Way.NOTE),
        (r"virtual_machine\.(no_hotplug|boot_into_setup)", Way.NOTE),
    )
)
_ALWAYS = frozenset({Way.NOTE})
"""Ways that go also for a guest that takes no changes while it runs."""


def plan(running: Definition, wanted: Definition) -> list[Change]:
    """Return what differs between what a domain runs with and its definition, field by field."""
    before, after = veiled(running).spec, veiled(wanted).spec
    plugged = not after.virtual_machine.no_hotplug
    return [_change(each, plugged) for each in differences(before, after)]


def pending(changes: list[Change], reasons: Mapping[str, str]) -> tuple[guest_pb2.PendingChange, ...]:
    """Return what waits, of a plan; `reasons` has by field why something that could be applied was not."""
    return tuple(
        guest_pb2.PendingChange(
            field=change.difference.field,
            present=change.difference.present,
            wanted=change.difference.wanted,
            reason=change.reason or reasons.get(change.difference.field, NOT_YET),
        )
        for change in changes
        if change.way is not Way.NOTE
    )


def _change(difference: Difference, plugged: bool) -> Change:
    way = next((way for pattern, way in _WAYS if pattern.fullmatch(difference.field)), None)
    if way is None:
        return Change(difference, None, FIXED)
    if not plugged and way not in _ALWAYS:
        return Change(difference, None, UNPLUGGED)
    return Change(difference, way)
