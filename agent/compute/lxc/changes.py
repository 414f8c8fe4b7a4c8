"""What of a container's definition can be changed while it runs, and what waits for its next start. Pure."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gugus.agent.v1 import container_pb2, guest_pb2, resources_pb2

from agent.compute.differences import Difference, differences

_NOTHING_TO_DO = re.compile(
    r"ha|uid|hibernation_.*|policies(\..*)?|virtual_machine(\..*)?|cluster_cpu(\..*)?|resources\.memory_weight|disks|nics"
    r"|disks\[.*\]\.settings\.(bus|cache|discard|io_thread|ssd|serial|no_snapshot|boot_order)"
    r"|nics\[.*\]\.settings\.(model|queues|boot_order)"
)
"""Fields that change nothing of a container that runs."""

_LIMITS = re.compile(
    r"cpus|cpu_limit_milli|memory_bytes|resources\.(cpu_weight|cpuset|memory_reserved_bytes|swap_bytes|pids|io_weight)"
    r"|disks\[.*\]\.settings\.limits\..*"
)
_NIC = re.compile(r"nics\[.*\](\.network|\.settings\.(rate_bytes_per_s|burst_bytes|link_down|mtu))?")
_DISK = re.compile(r"disks\[.*\]")
_MOUNTS = "container.mounts"
_STEP = re.compile(r"(?P<field>[a-z0-9_]+)(\[(?P<item>[^\]]*)\])?")

NEXT_START = "it takes effect at the next start"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done to a running container, in this order; `rest` waits."""

    disks_go: tuple[Difference, ...] = ()
    disks_come: tuple[Difference, ...] = ()
    mounts: Difference | None = None
    nics: tuple[Difference, ...] = ()
    limits: tuple[Difference, ...] = ()
    rest: tuple[Difference, ...] = ()


def plan(present: guest_pb2.GuestSpec, wanted: guest_pb2.GuestSpec) -> Plan:
    """Sort what differs by how it is done."""
    found = open_differences(present, wanted)
    root = present.disks[0].name if present.disks else ""
    disks = [each for each in found if _DISK.fullmatch(each.field) and each.item != root]
    mounts = next((each for each in found if each.field == _MOUNTS), None)
    nics = [each for each in found if _NIC.fullmatch(each.field)]
    limits = [each for each in found if _LIMITS.fullmatch(each.field)]
    done = {id(each) for each in (*disks, mounts, *nics, *limits)}
    return Plan(
        tuple(each for each in disks if each.goes),
        tuple(each for each in disks if each.comes),
        mounts,
        tuple(nics),
        tuple(limits),
        tuple(each for each in found if id(each) not in done),
    )


def open_differences(present: guest_pb2.GuestSpec, wanted: guest_pb2.GuestSpec) -> list[Difference]:
    """Return what a running container lacks of what it is to be."""
    return [each for each in differences(present, wanted) if not _NOTHING_TO_DO.fullmatch(each.field)]


def reboots_in_place(started: guest_pb2.GuestSpec, wanted: guest_pb2.GuestSpec) -> bool:
    """Whether a reboot of the guest may be left to its monitor, which knows nothing but what it was started with."""
    if wanted.policies.on_reboot == resources_pb2.END_POLICY_STOP:
        return False
    return not open_differences(started, wanted)


def pending(difference: Difference, reason: str = NEXT_START) -> guest_pb2.PendingChange:
    """Return a difference as it is told."""
    return guest_pb2.PendingChange(
        field=difference.field, present=difference.present, wanted=difference.wanted, reason=reason
    )


def mounts_changed(
    present: container_pb2.ContainerSpec, wanted: container_pb2.ContainerSpec
) -> tuple[list[container_pb2.BindMount], list[container_pb2.BindMount]]:
    """Return the bind mounts that go and those that come."""
    before, after = list(present.mounts), list(wanted.mounts)
    return [each for each in before if each not in after], [each for each in after if each not in before]


def taken_over(
    present: guest_pb2.GuestSpec, wanted: guest_pb2.GuestSpec, done: Sequence[Difference]
) -> guest_pb2.GuestSpec:
    """Return the present spec with these differences taken over from the wanted one; list items in the wanted order."""
    result = guest_pb2.GuestSpec()
    result.CopyFrom(present)
    for each in done:
        _take(result, wanted, list(_STEP.finditer(each.field)))
    for field in ("disks", "nics"):
        order = [item.name for item in getattr(wanted, field)]
        items = sorted(getattr(result, field), key=lambda item: order.index(item.name) if item.name in order else -1)
        copies = [_copy(item) for item in items]
        del getattr(result, field)[:]
        getattr(result, field).extend(copies)
    return result


def _take(present: Any, wanted: Any, steps: list[re.Match[str]]) -> None:
    field, item, last = steps[0]["field"], steps[0]["item"], len(steps) == 1
    if item is not None:
        before, after = (_named(getattr(message, field), item) for message in (present, wanted))
        if before is not None and after is not None and not last:
            _take(before, after, steps[1:])
        elif before is not None:
            getattr(present, field).remove(before)
        elif after is not None:
            getattr(present, field).append(after)
    elif not last:
        _take(getattr(present, field), getattr(wanted, field), steps[1:])
    elif field in {each.name for each, _ in wanted.ListFields()}:
        present.ClearField(field)
        _set(present, wanted, field)
    else:
        present.ClearField(field)


def _set(present: Any, wanted: Any, field: str) -> None:
    value = getattr(wanted, field)
    if hasattr(value, "CopyFrom") or hasattr(value, "extend"):
        getattr(present, field).MergeFrom(value)
    else:
        setattr(present, field, value)


def _named(items: Any, name: str) -> Any:
    return next((item for item in items if item.name == name), None)


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def of_item(found: Sequence[Difference]) -> Iterator[tuple[str, list[Difference]]]:
    """Group differences by the list item that they are of, in order."""
    for name in dict.fromkeys(each.item for each in found):
        yield name, [each for each in found if each.item == name]
