"""Making a guest a template: from the first step on it never runs again, then its disks become bases."""

from typing import Final

from gugus.agent.v1 import volume_pb2
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_STOPPED, POWER_OFF, Guest

from common.errors import precondition
from manager.controllers import guest_node
from manager.controllers.context import with_epoch
from manager.guests import snapshots
from manager.guests.kept import check_kept
from manager.operations.operation import Operation
from manager.store import Store

KIND: Final = "convert-to-template"


class ConvertToTemplate:
    """Work of ConvertToTemplate. A call repeated upon a template finishes what an earlier one did not."""

    kind, verb, cancellable = KIND, "template", False

    async def run(self, op: Operation) -> str:
        """Mark it, take its definition from the node, freeze its disks."""
        check(op.context.store, op.guest)
        await op.note("freeze", log="from here on it does not run any more", node=op.guest.status.node)

        def mark(guest: Guest) -> None:
            if not guest.spec.template:
                guest.spec.template, guest.spec.power = True, POWER_OFF
                guest.spec_number += 1
                guest.status.phase, guest.status.reason = GUEST_PHASE_STOPPED, "a template"

        await op.change(mark)
        await guest_node.undefine(op.tell, op.name)
        for disk in op.guest.spec.disks:
            request = volume_pb2.FreezeVolumeRequest(pool=disk.pool, name=disk.volume)
            await op.tell(
                lambda agent, epoch, r=request: agent.volumes.FreezeVolume(  # type: ignore[misc]
                    with_epoch(r, epoch), timeout=guest_node.VOLUME_TIMEOUT_S
                )
            )
        return f"{op.name} is a template"

    async def undo(self, op: Operation) -> None:
        """Leave it a template: a disk that is a base is never written again. The call can be repeated."""


def check(store: Store, guest: Guest) -> None:
    """Raise why a guest cannot become a template: GUEST_DELETING, GUEST_RUNNING, GUEST_HAS_SNAPSHOTS."""
    name = guest.meta.name
    check_kept(guest)
    if guest.status.phase != GUEST_PHASE_STOPPED or guest.spec.power != POWER_OFF:
        raise precondition(
            "GUEST_RUNNING",
            f"guest {name} is not stopped: {guest.status.reason}.",
            remedy=f"`gugus guest stop {name}` first.",
            subject=f"guest/{name}",
        )
    if held := snapshots.of(store, guest.meta.uid):
        raise has_snapshots(guest, [one.name for one in held], "its disks would never be written again")


def has_snapshots(guest: Guest, names: list[str], why: str) -> Exception:
    """Return the error for what snapshots stand in the way of."""
    return precondition(
        "GUEST_HAS_SNAPSHOTS",
        f"guest {guest.meta.name} has the snapshots {', '.join(names)}: {why}.",
        remedy="Delete them first.",
        subject=f"guest/{guest.meta.name}",
    )
