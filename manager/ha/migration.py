"""Migration: where a guest is whose migration was interrupted, and what keeps a guest from moving. Pure.

Invariant: a guest that was to go from a source to a target is either on one of the two, or surely on none; a third copy is
started only when both are known to be gone. The source decides: once it has said that it keeps the guest it never gives it
away, and a target runs only what a source has let go of, or what is known to be gone from there.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto

from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_STATE_PAUSED, GuestState
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_MODE_CHECKPOINT,
    MIGRATION_MODE_LIVE,
    MIGRATION_MODE_OFFLINE,
    MIGRATION_MODE_RESTART,
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_COMING,
    MIGRATION_PRESENCE_RUNNING,
    MIGRATION_PRESENCE_STOPPED,
    MIGRATION_PRESENCE_WAITING,
    MigrationMode,
    MigrationObstacle,
    MigrationPresence,
)
from gugus.cluster.v1.guest_pb2 import DiskSpec, Guest
from gugus.cluster.v1.pool_pb2 import Pool

from manager.scheduler import GuestRequest, NodeView, Terms, place

ALIVE = (GuestState.GUEST_STATE_RUNNING, GUEST_STATE_PAUSED, GuestState.GUEST_STATE_STOPPING)


class Word(Enum):
    """What is known of one end."""

    UNKNOWN = auto()
    """It does not answer, and nothing proves it dead."""
    GONE = auto()
    """It is fenced, and the guest was under HA there; or a person removed the node: nothing runs there, nothing will."""
    ABSENT = auto()
    """Its agent says that it has nothing of the guest that could run; of a source: that it has let go of it."""
    COMING = auto()
    """A target's copy is not complete."""
    WAITING = auto()
    """A target's copy is complete and waits for the source's end."""
    RUNNING = auto()
    """It runs there; of a source: and it stays there, for it was told to keep it."""
    STOPPED = auto()
    """It is there as a whole and does not run; of a source: and it stays there."""


WORDS: Mapping[MigrationPresence.ValueType, Word] = {
    MIGRATION_PRESENCE_ABSENT: Word.ABSENT,
    MIGRATION_PRESENCE_COMING: Word.COMING,
    MIGRATION_PRESENCE_WAITING: Word.WAITING,
    MIGRATION_PRESENCE_RUNNING: Word.RUNNING,
    MIGRATION_PRESENCE_STOPPED: Word.STOPPED,
}
"""An agent's presences as words."""


class Verdict(Enum):
    """Where the guest is."""

    WAIT = auto()
    """That cannot be told yet."""
    STAYS = auto()
    """At the source."""
    MOVED = auto()
    """At the target."""
    TAKE_OVER = auto()
    """At the target, which is to let it run first."""
    LOST = auto()
    """Nowhere: it is started anew from its disks, which are at the source, or in shared pools."""


def settle(source: Word, target: Word) -> Verdict:
    """Return where a guest is. The source must have been told to keep the guest before it was asked.

    A target that runs it proves that the source let go of it, whatever is known of that.
    """
    if source in (Word.RUNNING, Word.STOPPED):
        return Verdict.STAYS
    if target is Word.RUNNING:
        return Verdict.MOVED
    if Word.UNKNOWN in (source, target):
        return Verdict.WAIT
    if target is Word.WAITING:
        return Verdict.TAKE_OVER
    if target is Word.STOPPED:
        return Verdict.MOVED
    return Verdict.LOST


def arrival(told: MigrationPresence.ValueType, target: Word, *, expected: bool) -> Verdict:
    """Return what becomes of a guest of another cluster at its target here.

    told: what is known for good of its source. expected: the source is connected to the target, or may still come. MOVED: it is a guest
    here. STAYS and LOST: what came is removed; of the source it is then said that the guest is not here.
    """
    if target in (Word.RUNNING, Word.STOPPED):
        return Verdict.MOVED
    source = WORDS.get(told, Word.UNKNOWN)
    if source is Word.UNKNOWN and target in (Word.COMING, Word.ABSENT, Word.GONE) and not expected:
        return Verdict.STAYS  # only a complete copy is ever let run: the source has the guest, or its disks
    return settle(source, target)


def mode_of(guest: Guest, state: GuestState.ValueType, *, checkpoint: bool = False) -> MigrationMode.ValueType:
    """Return how a guest moves, by what its node says of it. checkpoint: a container is to go over as it runs."""
    if state not in ALIVE:
        return MIGRATION_MODE_OFFLINE
    if guest.spec.kind != GUEST_KIND_CONTAINER:
        return MIGRATION_MODE_LIVE
    return MIGRATION_MODE_CHECKPOINT if checkpoint else MIGRATION_MODE_RESTART


def copied_disks(guest: Guest, pools: Mapping[str, Pool]) -> list[DiskSpec]:
    """Return the disks that are not where the target can reach them."""
    return [disk for disk in guest.spec.disks if not _shared(pools.get(disk.pool))]


def obstacles(
    guest: Guest,
    state: GuestState.ValueType,
    target: NodeView,
    request: GuestRequest,
    pools: Mapping[str, Pool],
    snapshots: Sequence[str],
    terms: Terms | None = None,
) -> list[MigrationObstacle]:
    """Return everything in the state that keeps a guest from moving to a node. `request`: what it needs of a node."""
    found = []
    if guest.status.node == target.name:
        found.append(_obstacle("ALREADY_THERE", f"node/{target.name}", f"It is on {target.name} already.", ""))
    if guest.meta.deleting:
        found.append(_obstacle("GUEST_DELETING", "", "It is being deleted.", ""))
    local = [disk.name for disk in copied_disks(guest, pools)]
    if local and request.pinned == guest.status.node:
        request = replace(
            request, pinned=""
        )  # it is pinned to where its disks are, and these go along: so does the pin
    for verdict in place(request, [target], terms).verdicts:
        for refusal in verdict.refusals:
            name = refusal.partition(":")[0].strip().upper().replace("-", "_")
            remedy = _remedy(name, guest.meta.name)
            found.append(_obstacle(f"NODE_{name}", f"node/{target.name}", f"{_sentence(refusal)}", remedy))
    if local and snapshots:
        what = f"Its snapshots ({', '.join(sorted(snapshots))}) lie in disks of this node alone ({', '.join(local)})."
        found.append(
            _obstacle("GUEST_HAS_SNAPSHOTS", "disks", what, "Delete them, or move these disks to a shared pool.")
        )
    found += _left_behind(guest, pools)
    if state in ALIVE:
        found += _bound(guest)
    if state == GUEST_STATE_PAUSED and guest.spec.kind == GUEST_KIND_CONTAINER:
        found.append(_obstacle("GUEST_PAUSED", "", "A container that is held cannot be stopped.", "Resume it first."))
    return found


def words_of(found: Collection[MigrationObstacle]) -> str:
    """Return obstacles as one text: each with what it is about, but for the target itself, and what to do."""
    lines = []
    for one in found:
        subject = f"{one.subject}: " if one.subject and not one.subject.startswith("node/") else ""
        lines.append(f"{subject}{one.message.rstrip('.')}." + (f" {one.remedy}" if one.remedy else ""))
    return " ".join(f"({index}) {line}" if len(lines) > 1 else line for index, line in enumerate(lines, 1))


def _bound(guest: Guest) -> list[MigrationObstacle]:
    """Return what a running guest has of its host."""
    machine = guest.spec.virtual_machine
    devices = [f"usb_devices[{d.id or d.port}]" for d in machine.usb_devices]
    devices += [f"pci_devices[{d.address}]" for d in machine.pci_devices]
    remedy = "Take it away; what runs with a host's device cannot leave the host."
    return [_obstacle("HOST_DEVICE", name, "It is a device of its host.", remedy) for name in devices]


def _left_behind(guest: Guest, pools: Mapping[str, Pool]) -> list[MigrationObstacle]:
    """Return what belongs to a guest, is on its node alone, and does not move with it."""
    found = []
    status = guest.status
    if status.hibernation_volume and not _shared(pools.get(status.hibernation_pool)):
        what = f"Its memory lies in pool {status.hibernation_pool}, which is its node's alone."
        found.append(_obstacle("GUEST_HIBERNATED", "", what, "Start it first; then it can go over while it runs."))
    for disk in (*status.unused_disks, *status.leaving_disks):
        if not _shared(pools.get(disk.pool)):
            what = f"Volume {disk.volume} of a disk that was taken from it is on its node alone."
            found.append(_obstacle("UNUSED_DISK", f"disks[{disk.name}]", what, "Delete it, or take the disk up again."))
    return found


def _shared(pool: Pool | None) -> bool:
    return pool is not None and pool.spec.dir.shared


def _sentence(refusal: str) -> str:
    """Return a refusal of a filter as a sentence."""
    words = refusal.partition(":")[2].strip() or refusal
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _remedy(name: str, guest: str) -> str:
    remedies = {
        "CORDONED": "`gugus node uncordon` opens it.",
        "PINNED": f"`gugus guest set {guest} --node ''` lets it run anywhere.",
        "POOLS": "Make the pool there.",
        "NETWORKS": "Make the network there.",
    }
    return remedies.get(name, "Choose another node.")


def _obstacle(reason: str, subject: str, message: str, remedy: str) -> MigrationObstacle:
    return migration_pb2.MigrationObstacle(reason=reason, subject=subject, message=message, remedy=remedy)
