"""Finding out where a guest is whose migration is over, or was interrupted, and writing it down.

The source is told to keep the guest first, which it refuses by saying that it has let go of it; only then the target is asked.
See `manager.ha.migration` for what follows from the answers.
"""

from functools import partial
from typing import Final

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.agent.v1 import migration_pb2, volume_pb2
from gugus.agent.v1.migration_pb2 import MIGRATION_PRESENCE_UNSPECIFIED, MigrationReport
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_RECOVERING,
    Guest,
)
from gugus.cluster.v1.migration_pb2 import MigrationNotes
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE, Node

from common.errors import GugusError, precondition
from common.logs import get_logger
from manager.controllers.context import with_epoch
from manager.events import INFO, WARNING, record
from manager.ha.migration import WORDS, Verdict, Word, settle
from manager.ha.stored import assign
from manager.operations.operation import Operation

SAY_TIMEOUT_S = 90.0
"""An end that is in the middle of the hand-over answers when that is over; a container's start is in it."""

REMOVE_TIMEOUT_S = 300.0

CLEANING: Final = "cleaning"
"""Step of an operation that knows where the guest is."""

_LOST_NODE = frozenset({"NODE_NOT_ONLINE", "RPC_UNAVAILABLE", "RPC_DEADLINE_EXCEEDED", "RPC_CANCELLED"})
_log = get_logger("migrate")


async def settled(op: Operation) -> Verdict:
    """Settle a migration: afterwards the guest belongs to one node, and `status.migration` is unset.

    Raises an error that has the operation called again while that cannot be told.
    """
    guest = op.guest
    if not guest.status.HasField("migration"):
        return Verdict.MOVED if op.notes(MigrationNotes).adopted else Verdict.STAYS
    source = await source_word(op, guest)
    target, report = await target_word(op, guest)
    verdict = settle(source, target)
    _log.info("migration settled", guest=op.name, source=source.name, target=target.name, verdict=verdict.name)
    if verdict is Verdict.WAIT:
        raise _undecided(guest, source, target)
    if verdict is Verdict.TAKE_OVER:
        request = migration_pb2.TakeOverGuestRequest(migration=guest.status.migration.task, name=op.name)
        report = await op.tell(
            lambda agent, epoch: agent.migrations.TakeOverGuest(with_epoch(request, epoch), timeout=SAY_TIMEOUT_S),
            guest.status.migration.target,
        )
        verdict = Verdict.MOVED
    if verdict is Verdict.MOVED:
        await adopt(op, report)
    else:
        await stays(op, lost=verdict is Verdict.LOST)
    return verdict


async def cleaned(op: Operation, notes: MigrationNotes) -> None:
    """Remove what is left of a guest on the node that it left. Raises when the node is online and refuses."""
    source = op.task.node
    guest = op.guest
    if notes.adopted and source != guest.status.node:
        name = op.name
        try:
            await op.tell(
                lambda agent, epoch: agent.guests.KillGuest(agent_pb2.KillGuestRequest(epoch=epoch, name=name)), source
            )
        except GugusError as error:
            if error.reason != "GUEST_NOT_FOUND":
                raise
        await op.tell(
            lambda agent, epoch: agent.guests.DeleteGuest(agent_pb2.DeleteGuestRequest(epoch=epoch, name=name)), source
        )
        for volume in notes.volumes:
            request = volume_pb2.DeleteVolumeRequest(pool=volume.pool, name=volume.volume)
            await op.tell(
                lambda agent, epoch, r=request: agent.volumes.DeleteVolume(  # type: ignore[misc]
                    with_epoch(r, epoch), timeout=REMOVE_TIMEOUT_S
                ),
                source,
            )
    for node in (source, notes.target):
        await op.tell(
            lambda agent, epoch: agent.migrations.ForgetMigration(
                migration_pb2.ForgetMigrationRequest(epoch=epoch, migration=op.id)
            ),
            node,
        )


async def dropped(op: Operation, target: str) -> None:
    """Have a target remove what came of a guest that stays. One that does not answer is cleaned when it is back."""
    request = migration_pb2.DropArrivalRequest(migration=op.id, name=op.name)
    try:
        await op.tell(
            lambda agent, epoch: agent.migrations.DropArrival(with_epoch(request, epoch), timeout=REMOVE_TIMEOUT_S),
            target,
        )
    except GugusError as error:
        if error.reason not in _LOST_NODE:
            raise
        await op.log(f"{target} does not answer; what came there is removed when it is back")


async def source_word(op: Operation, guest: Guest, generation: int = 0) -> Word:
    """Have the source keep the guest, and return what it says. generation: under which; above the target's if it is not given."""
    migration = guest.status.migration
    if (proof := proof_of(op, guest, migration.source)) is not None:
        return proof
    request = migration_pb2.KeepGuestRequest(
        migration=migration.task,
        name=op.name,
        grant=agent_pb2.Grant(generation=generation or migration.generation + 1),
    )
    try:
        report = await op.tell(
            lambda agent, epoch: agent.migrations.KeepGuest(with_epoch(request, epoch), timeout=SAY_TIMEOUT_S),
            migration.source,
        )
    except GugusError as error:
        if error.reason == "GUEST_NOT_FOUND":
            return Word.ABSENT
        if error.reason not in _LOST_NODE:
            raise
        return Word.UNKNOWN
    return WORDS.get(report.presence, Word.UNKNOWN)


async def target_word(op: Operation, guest: Guest) -> tuple[Word, MigrationReport]:
    """Ask the target what it has of the guest."""
    migration = guest.status.migration
    nothing = MigrationReport(presence=MIGRATION_PRESENCE_UNSPECIFIED)
    if (proof := proof_of(op, guest, migration.target)) is not None:
        return proof, nothing
    request = migration_pb2.InspectMigrationRequest(migration=migration.task, name=op.name, target=True)
    try:
        report = await op.tell(
            lambda agent, _: agent.migrations.InspectMigration(request, timeout=SAY_TIMEOUT_S), migration.target
        )
    except GugusError as error:
        if error.reason not in _LOST_NODE:
            raise
        return Word.UNKNOWN, nothing
    return WORDS.get(report.presence, Word.UNKNOWN), report


def proof_of(op: Operation, guest: Guest, name: str) -> Word | None:
    """Return GONE when the state proves that a node runs nothing of the guest; None when it has to be asked."""
    node = op.context.store.peek(Node, name)
    if node is None:
        return Word.GONE  # a person removed it, which says that it is off for good
    held = guest.status.ha_armed and guest.spec.ha.enabled
    if held and node.status.state == NODE_STATE_FENCED:
        return Word.GONE
    if held and name == guest.status.node and guest.status.phase == GUEST_PHASE_RECOVERING:
        # It was fenced after recovery looked at the guest, even if it is back by now.
        return Word.GONE if node.status.state == NODE_STATE_ONLINE else None
    return None


async def adopt(op: Operation, report: MigrationReport) -> None:
    """Give the guest to the target, where it is: with the generation that the target was granted. What is left is to clean up."""

    def give(guest: Guest) -> None:
        migration, status = guest.status.migration, guest.status
        copied = {volume.disk for volume in notes.volumes}
        for disk in guest.spec.disks:
            if disk.name in copied:
                disk.base_volume = disk.image = ""  # a copy stands alone
        if copied and guest.spec.pinned_node == migration.source:
            guest.spec.pinned_node = migration.target
        guest.spec_number += bool(copied)
        status.previous_node = migration.source
        assign(guest, migration.target, migration.generation)
        status.volumes_ready = True
        status.ClearField("migration")

    notes = op.notes(MigrationNotes)
    notes.adopted = True
    notes.report.CopyFrom(report)
    where = f"{op.name} moved to {notes.target}"
    event = partial(record, about=f"guest/{op.name}", reason="GUEST_MIGRATED", message=where, severity=INFO)
    await op.note(CLEANING, notes, guest=give, txn=event)
    _log.info("guest moved", guest=op.name, node=notes.target)


async def stays(op: Operation, *, lost: bool) -> None:
    """The guest is its source's, under a generation above the one that the target was granted: what is left there is stale.

    One that is lost is started anew: by the guest controller where it was, or by recovery.
    """

    def keep(guest: Guest) -> None:
        migration = guest.status.migration
        guest.meta.generation = migration.generation + 1
        guest.status.ClearField("migration")

    text = f"{op.name} did not get to {op.guest.status.migration.target}" + (" and was lost on its way" if lost else "")
    await op.change(keep, lambda txn: record(txn, f"guest/{op.name}", "GUEST_NOT_MIGRATED", text, WARNING))


def _undecided(guest: Guest, source: Word, target: Word) -> GugusError:
    migration = guest.status.migration
    unknown = [node for node, word in ((migration.source, source), (migration.target, target)) if word is Word.UNKNOWN]
    return precondition(
        "NODE_NOT_ONLINE",
        f"guest {guest.meta.name} is on {migration.source} or on {migration.target}, and {' and '.join(unknown)} must say which.",
        remedy="It is asked again until it answers, is fenced, or is removed.",
    )
