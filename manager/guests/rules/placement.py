"""Where a guest may run: nodes that it names, and what binds it to one; its project."""

from collections.abc import Iterator

from gugus.cluster.v1.guest_pb2 import POWER_HIBERNATED, POWER_OFF, GuestSpec, QuorumLoss

from common.errors import GugusError, invalid
from manager.guests.known import Known, absent
from manager.guests.rules import check
from manager.guests.rules.container import local_devices

MOST_TRIES = 100
"""Most restarts on a node, and most other nodes, that HA may try a guest on; as cluster.v1.HaSpec says."""

MOST_PRIORITY = 1_000
"""Highest priority; as cluster.v1.HaSpec says."""


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """The nodes and the project are there, and nothing asks a guest to move that cannot."""
    for field, name in (("spec.pinned_node", spec.pinned_node), ("spec.preferred_node", spec.preferred_node)):
        if name and name not in known.nodes:
            yield absent("node", field, name, known.nodes)
    if spec.pinned_node and spec.ha.enabled:
        yield invalid("spec.pinned_node", "a guest under HA must be able to move; prefer the node instead.")
    yield from _ha_faults(spec)
    if spec.project and spec.project not in known.projects:
        yield absent("project", "spec.project", spec.project, known.projects)
    elif spec.project and known.projects[spec.project].meta.deleting:
        yield invalid("spec.project", f'"{spec.project}" is being deleted.')
    bound = bound_by(spec)
    if bound and spec.ha.enabled:
        yield invalid("spec.ha.enabled", f"another host has no {', '.join(bound)}; leave HA off.")
    if bound and not spec.pinned_node:
        yield invalid("spec.pinned_node", f"is not set; name the node that has {', '.join(bound)}.")


def _ha_faults(spec: GuestSpec) -> Iterator[GugusError]:
    for field, most in (("max_restart", MOST_TRIES), ("max_relocate", MOST_TRIES), ("priority", MOST_PRIORITY)):
        value = getattr(spec.ha, field)
        if value > most:
            yield invalid(f"spec.ha.{field}", f"{value} is out of range: 0 to {most}.")
    yield from check.enum("spec.ha.quorum_loss", spec.ha.quorum_loss, QuorumLoss)
    if spec.ha.disabled and not spec.ha.enabled:
        yield invalid("spec.ha.disabled", "is only for guests under HA; set ha.enabled, too, or leave it off.")
    if spec.ha.disabled and spec.power not in (POWER_OFF, POWER_HIBERNATED):
        yield invalid("spec.ha.disabled", "a guest out of use is not to run; ask for power off, too.")


def bound_by(spec: GuestSpec) -> list[str]:
    """Return what of its host a guest uses, so that it runs there only."""
    machine = spec.virtual_machine
    return [
        *(f"USB device {device.id or device.port}" for device in machine.usb_devices),
        *(f"PCI device {device.address}" for device in machine.pci_devices),
        *local_devices(spec.container),
    ]
