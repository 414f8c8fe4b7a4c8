"""What a recovered cluster may do with guests and nodes of the cluster before it.

The cluster before may have moved, made and deleted guests after the moment of the state that was recovered, and it may live still. So
nothing that the state says of where a guest runs is believed, and time proves nothing: leases of hosts that have not joined anew are not
ours to count. A *former* node is one of before whose copies were not taken in yet; an *inherited* guest one that no node was given by this
cluster yet; a *former* copy one that was granted before, known by a generation below the floor.

Invariant: an inherited guest is started, moved or deleted only when no host of before can have a running copy of it that we do not see:
each has joined anew and told what runs there, or a person said that it is off. A former copy that runs is never killed.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gugus.cluster.v1.guest_pb2 import POWER_ON, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.pool_pb2 import Pool

from manager.ha.recovery import CopyReport


@dataclass(frozen=True, slots=True)
class Adopt:
    """Give an inherited guest to the node that runs it, or that alone has it, whatever the state says."""

    guest: str
    node: str
    reason: str
    running: bool = True


def is_former(generation: int, floor: int) -> bool:
    """Return whether a copy was granted before the last recovery. floor: `Cluster.generation_floor`."""
    return generation < floor


def obstacle(guest: Guest, home: Node | None, former: Collection[str], *, alive_at_home: bool, movable: bool) -> str:
    """Return why a guest may not be placed, made, started or deleted now; "" when it may.

    home: the node that it is given to, None when there is none any more. former: names of nodes not taken in yet. alive_at_home: its node
    reports a running copy. movable: another host could have its disks.
    """
    if not guest.status.inherited:
        return ""
    at_home = home is not None and home.status.state == NODE_STATE_ONLINE
    if at_home and (alive_at_home or not movable):
        return ""
    if former:
        return waiting_for(guest.meta.name, former)
    gone = home is None and bool(guest.status.node)
    if gone and not movable and guest.status.volumes_ready and not guest.meta.deleting:
        return f"its disks were on {guest.status.node}, which is no node any more: delete it, or bring that host back"
    return ""


def waiting_for(guest: str, former: Collection[str]) -> str:
    """Return what an inherited guest waits for."""
    names = ", ".join(sorted(former))
    return (
        f"{guest} is from before the recovery of the cluster, and may run on {names}: join each of these hosts anew, or "
        "`gugus node remove NODE --off` when it is off for good"
    )


def movable(guest: Guest, pools: Mapping[str, Pool]) -> bool:
    """Return whether more than one host can have the guest's disks, or it is not known to have any yet."""
    made = guest.status.volumes_ready and bool(guest.status.node)
    return not made or any(disk.pool in pools and pools[disk.pool].spec.dir.shared for disk in guest.spec.disks)


def adoptions(
    node: str, reports: Sequence[CopyReport], guests: Mapping[str, Guest], floor: int, alive_at_home: Collection[str]
) -> list[Adopt]:
    """Return the inherited guests that a node runs although the state gives them to another, or wants them off; and those that it has and
    the state gives to none: they were placed after it was taken, and their disks may be there.

    alive_at_home: guests whose own node reports them running, too; these stay where they are. Of a guest that is at home and is to run,
    nothing is to be decided: its start finds it running.
    """
    adopted = []
    for report in reports:
        guest = guests.get(report.name)
        if guest is None or not is_former(report.generation, floor):
            continue
        if not guest.status.inherited or guest.meta.uid != report.uid or guest.meta.deleting:
            continue
        elsewhere = guest.status.node != node
        if not report.running:
            if not guest.status.node:
                adopted.append(
                    Adopt(report.name, node, f"{node} has it; the recovered state gave it to no node", False)
                )
        elif elsewhere and report.name not in alive_at_home:
            reason = f"{node} runs it; the recovered state gave it to {guest.status.node or 'no node'}"
            adopted.append(Adopt(report.name, node, reason))
        elif not elsewhere and guest.spec.power != POWER_ON:
            adopted.append(Adopt(report.name, node, f"{node} runs it; the recovered state said that it is off"))
    return adopted


def unknown_copies(reports: Sequence[CopyReport], guests: Mapping[str, Guest], floor: int) -> list[CopyReport]:
    """Return former copies of guests that the state does not know: made after it was taken. They are left alone."""
    return [
        report
        for report in reports
        if is_former(report.generation, floor)
        and (report.name not in guests or report.uid not in ("", guests[report.name].meta.uid))
    ]
