"""What a guest must be for something to be asked of it."""

from collections.abc import Callable

from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_RUNNING,
    POWER_ON,
    POWER_PAUSED,
    Guest,
    ListGuestsRequest,
)
from gugus.cluster.v1.node_pb2 import Node

from common.errors import precondition, resource_exhausted
from manager.controllers.context import Context
from manager.guests import snapshots
from manager.scheduler import Terms, place
from manager.scheduler.views import guest_request, node_views
from manager.store import Store

RUNNING_PHASES = frozenset({GUEST_PHASE_RUNNING, GUEST_PHASE_PAUSED})


def selects(request: ListGuestsRequest, guest: Guest) -> bool:
    """Return whether a guest is one of those that a list asks for."""
    labels, spec = guest.meta.labels, guest.spec
    return (
        request.node in ("", guest.status.node)
        and request.project in ("", spec.project)
        and request.kind in (0, spec.kind)
        and set(request.tags) <= set(spec.tags)
        and all(key in labels and value in ("", labels[key]) for key, value in request.labels.items())
    )


def refuse_deleting(guest: Guest) -> None:
    """Raise GUEST_DELETING."""
    if guest.meta.deleting:
        raise precondition(
            "GUEST_DELETING",
            f"guest {guest.meta.name} is being deleted.",
            remedy="Wait until it is gone, or choose another guest.",
        )


def refuse_unless_runs(guest: Guest) -> None:
    """Raise GUEST_NOT_RUNNING unless a guest runs, or is held, as it was asked to."""
    if guest.status.phase not in RUNNING_PHASES or guest.spec.power not in (POWER_ON, POWER_PAUSED):
        raise precondition(
            "GUEST_NOT_RUNNING",
            f"guest {guest.meta.name} does not run: {guest.status.reason}.",
            remedy=f"`gugus guest start {guest.meta.name}` first.",
        )


def snapshots_holding(store: Store, guest: Guest) -> Callable[[str], list[str]]:
    """Return a function from a disk's name to the snapshots of the guest that hold it."""
    return lambda disk: snapshots.holding(snapshots.of(store, guest.meta.uid), guest.meta.uid, disk)


def linked(store: Store, guest: Guest) -> list[str]:
    """Return the guests whose disks read from a guest's own."""
    own = {disk.volume for disk in [*guest.spec.disks, *guest.status.unused_disks]}
    return sorted(
        other.meta.name
        for other in store.peek_all(Guest)
        if other.meta.uid != guest.meta.uid
        and any(disk.base_volume in own for disk in [*other.spec.disks, *other.status.unused_disks] if disk.base_volume)
    )


def refuse_change_beyond_node(context: Context, before: Guest, after: Guest) -> None:
    """Raise NO_NODE_FITS when a change asks its node for what that node does not have; other nodes are no help to a guest that is there.

    What was too much already before the change is no reason to refuse it.
    """
    node = context.store.peek(Node, before.status.node) if before.status.node else None
    if node is None:
        return
    views = node_views([node], context.store.peek_all(Guest), ignoring=before.meta.name)
    settings = Terms(settings=context.planner_settings())
    refusals = []
    for guest in (before, after):
        decision = place(guest_request(guest), views, settings)
        refusals.append([text for verdict in decision.verdicts for text in verdict.refusals])
    old = {text.partition(":")[0] for text in refusals[0]}
    if new := [text for text in refusals[1] if text.partition(":")[0] not in old]:
        raise resource_exhausted(
            "NO_NODE_FITS",
            f"node {node.meta.name} cannot give that to guest {before.meta.name}: {'; '.join(new)}.",
            remedy="Ask for less, or migrate it to a bigger node first.",
        )
