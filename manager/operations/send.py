"""A running guest that goes to another cluster. The source decides, as within one; what became of it there is told by a client of both.

Invariant: from the moment at which `status.migration` is written until it is unset, nobody starts the guest here. It is unset when the
source keeps the guest, when it runs there, or when it is neither there nor here any more: then it is started anew from its disks,
which stay until the other cluster is known to have it.
"""

from functools import partial
from typing import Final

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.migration_pb2 import MIGRATION_MODE_LIVE, MIGRATION_PRESENCE_ABSENT
from gugus.agent.v1.task_pb2 import Task as AgentTask
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_OFF, Guest, GuestMigration
from gugus.cluster.v1.migration_pb2 import MigrationNotes, SendGuestRequest
from gugus.cluster.v1.node_pb2 import Node

from common.errors import GugusError, from_status, precondition, to_status, unavailable
from manager.controllers import guest_node
from manager.controllers.context import TRANSIENT_REASONS, with_epoch
from manager.events import INFO, record
from manager.guests.volumes import volumes_of
from manager.ha.migration import WORDS, Verdict, Word, settle
from manager.operations import migrate_check
from manager.operations.handler import moved
from manager.operations.migrate_settle import source_word, stays
from manager.operations.operation import Operation

KIND: Final = "send-guest"

_BEGINNING, _MOVING, _SETTLING, _OVER = "beginning", "moving", "settling", "over"

_AGAIN: Final = frozenset(
    {"NOT_ACTING", "STALE_EPOCH", "CONFLICT", "RPC_UNAVAILABLE", "RPC_DEADLINE_EXCEEDED", "RPC_CANCELLED"}
)
"""Errors after which the same is tried again: they say nothing of the work."""


class SendGuest:
    """Work of SendGuest."""

    kind, verb, cancellable = KIND, "send", True

    async def run(self, op: Operation) -> str:
        """Note, have the source send, find out how it ended."""
        if not op.step:
            await self._announce(op)
        if op.step == _BEGINNING:
            await self._begin(op)
        if op.step == _MOVING:
            await self._follow(op)
        if op.step == _SETTLING:
            await _settle(op)
        notes, request = op.notes(MigrationNotes), op.request(SendGuestRequest)
        if notes.adopted:
            still = f"; it stood still for {notes.report.downtime_ms} ms" if notes.report.downtime_ms else ""
            return f"{op.name} is in {request.cluster_name}{still}"
        error = from_status(notes.error)
        # An error that says nothing of the work would have it called again, for ever.
        says_nothing = error.reason in TRANSIENT_REASONS or error.reason == "TASK_NOT_FOUND"
        raise _interrupted(op) if says_nothing else error

    async def undo(self, op: Operation) -> None:
        """Find out where the guest is, if that is not known yet."""
        if op.step and op.guest.status.HasField("migration"):
            await _settle(op)
        if op.notes(MigrationNotes).adopted:
            await self.clean(op)

    async def clean(self, op: Operation) -> None:
        """Delete what is left of a guest that went: first its node's part, which waits for a node that is away, then the guest."""
        guest = op.guest
        if op.context.store.peek(Node, guest.status.node) is not None:
            await guest_node.take_away(op.tell, op.name)
            await guest_node.delete_volumes(op.tell, volumes_of(guest))

        def delete(guest: Guest) -> None:
            guest.meta.deleting = True

        await op.change(delete)

    async def _announce(self, op: Operation) -> None:
        """Write down that the guest may be in the other cluster from now on."""
        op.check_cancel()
        request, guest = op.request(SendGuestRequest), op.guest
        place, phase = (guest.status.node, guest.meta.generation), guest.status.phase
        if place != (request.node, request.generation) or phase != GUEST_PHASE_RUNNING:
            raise moved(op)
        if request.target_generation <= request.generation:
            raise precondition(
                "STALE_GENERATION",
                f"generation {request.target_generation} there is not above {request.generation} here.",
            )
        target = f"{request.target.way.node} of {request.cluster_name}"
        migration = GuestMigration(
            task=request.migration, source=request.node, target=target, generation=request.target_generation
        )
        migration.abroad.cluster_id, migration.abroad.cluster_name = request.cluster_id, request.cluster_name

        def announce(guest: Guest) -> None:
            if (guest.status.node, guest.meta.generation) != place:
                raise moved(op)
            guest.status.migration.CopyFrom(migration)

        notes = MigrationNotes(target=target, mode=MIGRATION_MODE_LIVE)
        await op.note(_BEGINNING, notes, node=request.node, guest=announce)

    async def _begin(self, op: Operation) -> None:
        """Have the source begin. From the note on it may have, and its ticket may be used up."""
        request, notes = op.request(SendGuestRequest), op.notes(MigrationNotes)
        try:
            op.check_cancel()
            told = await migrate_check.survey(op.context, op.guest)
        except GugusError as error:
            if error.reason in _AGAIN:
                raise
            await _to_settle(op, error)
            return
        notes.volumes.extend(told.volumes)
        await op.note(_MOVING, notes, log=f"from {request.node} to {notes.target}, while it runs")
        work = migration_pb2.MigrateGuestRequest(
            migration=request.migration,
            name=op.name,
            grant=agent_pb2.Grant(generation=request.generation),
            target=request.target,
            target_grant=agent_pb2.Grant(generation=request.target_generation),
            mode=MIGRATION_MODE_LIVE,
            volumes=notes.volumes,
            policy=request.policy,
            task_id=op.id,
        )
        try:
            await op.tell(lambda agent, epoch: agent.migrations.MigrateGuest(with_epoch(work, epoch)), request.node)
        except GugusError as error:
            await _to_settle(op, error)

    async def _follow(self, op: Operation) -> None:
        """Follow the source's work. When it cannot be followed to its end, who has the guest is found out."""
        try:
            work = await op.follow(AgentTask(id=op.id), op.guest.status.migration.source, share=(0, 95))
        except GugusError as error:
            if error.reason in _AGAIN:
                raise
            await _to_settle(op, error)
            return
        notes = op.notes(MigrationNotes)
        notes.report.CopyFrom(migration_pb2.MigrationReport.FromString(work.result))
        await op.note(_SETTLING, notes)


async def _to_settle(op: Operation, error: GugusError) -> None:
    notes = op.notes(MigrationNotes)
    says_nothing = (
        error.reason in TRANSIENT_REASONS or error.reason == "TASK_NOT_FOUND"
    )  # and would be tried again for ever
    notes.error.CopyFrom(to_status(_interrupted(op) if says_nothing else error))
    await op.note(_SETTLING, notes, log=str(error))


async def _settle(op: Operation) -> None:
    """Find out who has the guest, and write it down. Raises until that is known."""
    guest, notes = op.guest, op.notes(MigrationNotes)
    if not guest.status.HasField("migration"):
        await op.note(_OVER)
        return
    abroad = guest.status.migration.abroad
    given = abroad.given or notes.report.presence == MIGRATION_PRESENCE_ABSENT
    source = Word.ABSENT if given else await source_word(op, guest)
    if source in (Word.ABSENT, Word.GONE) and not abroad.given:
        await _given(op, source)
    verdict = settle(source, WORDS.get(abroad.told, Word.UNKNOWN))
    if verdict is Verdict.WAIT:
        raise _untold(op, source)
    if not notes.HasField("error"):
        notes.error.CopyFrom(to_status(_interrupted(op)))
    await _forget(op, guest.status.migration.source)
    if verdict is Verdict.MOVED:
        await _gone(op, notes)
    else:
        await op.note(op.step, notes)
        await stays(op, lost=verdict is Verdict.LOST)
        await op.note(_OVER)


async def _given(op: Operation, source: Word) -> None:
    """Write down that the source has let go of the guest, for whoever is to tell what became of it."""

    def change(guest: Guest) -> None:
        guest.status.migration.abroad.given = True
        cluster = guest.status.migration.abroad.cluster_name
        how = f"was handed over to {cluster}" if source is Word.ABSENT else f"was lost on its way to {cluster}"
        guest.status.reason = (
            f"it {how}; what became of it there is to be told (`gugus guest migrate --to-cluster` again)"
        )

    await op.change(change)


async def _gone(op: Operation, notes: MigrationNotes) -> None:
    """It is the other cluster's: what is left here is to be deleted (`SendGuest.clean`)."""
    notes.adopted = True
    notes.ClearField("error")
    cluster = op.guest.status.migration.abroad.cluster_name

    def leave(guest: Guest) -> None:
        guest.spec.power = POWER_OFF
        guest.status.phase, guest.status.reason = GUEST_PHASE_STOPPED, f"it went to {cluster}"
        guest.status.ClearField("migration")

    event = partial(
        record, about=f"guest/{op.name}", reason="GUEST_MIGRATED", message=f"{op.name} went to {cluster}", severity=INFO
    )
    await op.note(_OVER, notes, guest=leave, txn=event)


async def _forget(op: Operation, source: str) -> None:
    """Have the source forget the migration; one that does not answer only keeps an empty file."""
    request = migration_pb2.ForgetMigrationRequest(migration=op.request(SendGuestRequest).migration)
    try:
        await op.tell(lambda agent, epoch: agent.migrations.ForgetMigration(with_epoch(request, epoch)), source)
    except GugusError as error:
        await op.log(f"{source} keeps a note of the migration: {error.message}")


def _interrupted(op: Operation) -> GugusError:
    return unavailable(
        "MIGRATION_INTERRUPTED",
        f"guest {op.name} did not get over; it stays where it was.",
        remedy="Ask for it again.",
    )


def _untold(op: Operation, source: Word) -> GugusError:
    migration = op.guest.status.migration
    doubt = (
        f"{migration.source} has let go of it" if source is not Word.UNKNOWN else f"{migration.source} does not answer"
    )
    return precondition(
        "NODE_NOT_ONLINE",
        f"{doubt}, and what {migration.abroad.cluster_name} has of it is to be told.",
        remedy=f"Run `gugus guest migrate {op.name} --to-cluster` again: it asks both clusters and goes on. When that cluster is gone "
        f"for good, `gugus guest migrate {op.name} --take-back` starts it here.",
    )
