"""Migration of a guest from node to node.

What may be true of the guest is in the state before any node is told: from the moment at which `status.migration` is written until it is
unset, the guest may run at either end, and the operation does not end before it knows at which.
"""

from typing import Final

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.guest_pb2 import GUEST_STATE_PAUSED
from gugus.agent.v1.migration_pb2 import MIGRATION_MODE_LIVE, MIGRATION_MODE_OFFLINE, MIGRATION_MODE_RESTART
from gugus.agent.v1.task_pb2 import Task as AgentTask
from gugus.cluster.v1.guest_pb2 import Guest, GuestMigration
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest, MigrationNotes

from common.errors import GugusError, from_status, to_status, unavailable
from common.units import format_size
from manager.controllers.compile import agent_spec
from manager.controllers.context import with_epoch
from manager.ha import account
from manager.ha.migration import ALIVE, Verdict
from manager.operations import migrate_check
from manager.operations.handler import moved
from manager.operations.migrate_settle import assign, cleaned, dropped, settled, told
from manager.operations.operation import Operation

KIND: Final = "migrate-guest"

PREPARE_TIMEOUT_S = 120.0
"""The target makes volumes, which may be preallocated."""

_CHOSEN, _PREPARING, _MOVING, _SETTLING, _CLEANING = "chosen", "preparing", "moving", "settling", "cleaning"
_HOW: Final = {
    MIGRATION_MODE_LIVE: "while it runs",
    MIGRATION_MODE_RESTART: "stopped, copied, and started there",
    MIGRATION_MODE_OFFLINE: "as it stands",
}

_ENDS: Final = frozenset({"TASK_NOT_FOUND", "NODE_NOT_ONLINE", "TASK_CANCELLED"})
"""What ends the following of the source's work without saying how the work ended."""

_AGAIN: Final = frozenset(
    {"NOT_ACTING", "STALE_EPOCH", "CONFLICT", "RPC_UNAVAILABLE", "RPC_DEADLINE_EXCEEDED", "RPC_CANCELLED"}
)
"""Errors after which the same is tried again: they say nothing of the work."""


class Migrate:
    """Work of MigrateGuest."""

    kind, verb, cancellable = KIND, "migrate", True

    async def run(self, op: Operation) -> str:
        """Check, note, prepare the target, have the source send, find out how it ended, clean up."""
        if not op.step:
            op.check_cancel()
            await self._choose(op)
        if op.step == _CHOSEN:
            await self._announce(op)
        notes = op.notes(MigrationNotes)
        if op.step == _PREPARING:
            await self._prepare(op, notes)
        if op.step == _MOVING:
            await self._follow(op)
        if op.step in (_SETTLING, "adopting"):
            await self._settle(op)
        notes = op.notes(MigrationNotes)
        if op.step == _CLEANING and notes.adopted:
            await self._clean(op, notes)
            return _ending(op, notes)
        raise from_status(notes.error) if notes.HasField("error") else _interrupted(op.name)

    async def undo(self, op: Operation) -> None:
        """Find out where the guest is, if that is not known yet; then remove what came to the target."""
        if op.step in ("", _CHOSEN):
            return
        if op.guest.status.HasField("migration"):
            await settled(op, went_well=False)
        notes = op.notes(MigrationNotes)
        if notes.adopted:
            await self._clean(op, notes)
        else:
            await dropped(op, notes.target)

    async def _choose(self, op: Operation) -> None:
        request, guest = op.request(MigrateGuestRequest), op.guest
        survey = await migrate_check.survey(op.context, guest)
        plan = await migrate_check.choose(op.context, guest, survey, request.target, request.policy)
        notes = MigrationNotes(
            target=plan.target,
            mode=plan.mode,
            volumes=plan.volumes,
            run=plan.state in ALIVE and plan.state != GUEST_STATE_PAUSED,
        )
        copied = sum(volume.used_bytes for volume in plan.volumes)
        what = f", {format_size(copied)} of disks copied" if plan.volumes else ""
        log = f"from {guest.status.node} to {plan.target}, {_HOW[plan.mode]}{what}"
        await op.note(_CHOSEN, notes, log=log, node=guest.status.node)

    async def _announce(self, op: Operation) -> None:
        """Write down that the guest may be at either end from now on; one that is nowhere but in shared pools is simply given away."""
        notes, source = op.notes(MigrationNotes), op.task.node
        given_away = notes.mode == MIGRATION_MODE_OFFLINE and not notes.volumes
        if op.guest.status.node != source and not (given_away and op.guest.status.node == notes.target):
            raise moved(op)
        if given_away:
            await op.change(lambda guest: _give(guest, source, notes.target))
            notes.adopted = True
            await op.note(_CLEANING, notes)
            return
        op.check_cancel()

        def announce(guest: Guest) -> None:
            generation = guest.meta.generation + 1
            migration = GuestMigration(task=op.id, source=source, target=notes.target, generation=generation)
            guest.status.migration.CopyFrom(migration)

        if not op.guest.status.HasField("migration"):
            await op.change(announce)
        await op.note(_PREPARING)

    async def _prepare(self, op: Operation, notes: MigrationNotes) -> None:
        """Prepare the target, then begin. From the note on the source may have begun, and the target is not prepared again."""
        try:
            op.check_cancel()
            survey = await migrate_check.survey(op.context, op.guest, with_files=True)
            answer = await self._ready(op, notes, list(survey.files))
        except GugusError as error:
            if error.reason in _AGAIN:
                raise
            await self._to_settle(op, error)
            return
        await op.note(_MOVING, log=f"{notes.target} is ready")
        migration = op.guest.status.migration
        request = migration_pb2.MigrateGuestRequest(
            migration=op.id,
            name=op.name,
            grant=agent_pb2.Grant(generation=op.guest.meta.generation),
            target=answer,
            target_grant=agent_pb2.Grant(generation=migration.generation),
            mode=notes.mode,
            volumes=notes.volumes,
            policy=op.request(MigrateGuestRequest).policy,
            task_id=op.id,
        )
        source = migration.source
        try:
            await op.tell(lambda agent, epoch: agent.migrations.MigrateGuest(with_epoch(request, epoch)), source)
        except GugusError as error:
            await self._to_settle(op, error)

    async def _ready(
        self, op: Operation, notes: MigrationNotes, files: list[migration_pb2.MovingFile]
    ) -> migration_pb2.PrepareMigrationResponse:
        guest = op.guest
        request = migration_pb2.PrepareMigrationRequest(
            migration=op.id,
            source=guest.status.migration.source,
            spec=agent_spec(guest, ha=account.held(guest)),
            grant=agent_pb2.Grant(generation=guest.status.migration.generation),
            mode=notes.mode,
            volumes=notes.volumes,
            run=notes.run,
            files=files,
        )
        return await op.tell(
            lambda agent, epoch: agent.migrations.PrepareMigration(
                with_epoch(request, epoch), timeout=PREPARE_TIMEOUT_S
            ),
            notes.target,
        )

    async def _follow(self, op: Operation) -> None:
        """Follow the source's work. When it cannot be followed to its end, who has the guest is found out."""
        source = op.guest.status.migration.source
        try:
            await op.follow(AgentTask(id=op.id), source, share=(0, 95))
        except GugusError as error:
            if error.reason in _AGAIN:
                raise
            await self._to_settle(op, error)
            return
        await op.note(_SETTLING)

    async def _to_settle(self, op: Operation, error: GugusError) -> None:
        notes = op.notes(MigrationNotes)
        why = _interrupted(op.name) if error.reason == "TASK_NOT_FOUND" else error
        notes.error.CopyFrom(to_status(why))
        await op.note(_SETTLING, notes, log=str(why))

    async def _settle(self, op: Operation) -> None:
        notes = op.notes(MigrationNotes)
        verdict = await settled(op, went_well=not notes.HasField("error") and op.step == _SETTLING)
        if verdict is Verdict.MOVED:
            notes = op.notes(MigrationNotes)
            notes.report.CopyFrom(await told(op))
            await op.note(_CLEANING, notes)
            return
        if not notes.HasField("error"):
            notes.error.CopyFrom(to_status(_interrupted(op.name)))
        await op.note(_CLEANING, notes)

    async def _clean(self, op: Operation, notes: MigrationNotes) -> None:
        try:
            await cleaned(op, notes)
        except GugusError as error:
            if error.reason in _AGAIN:
                raise
            await op.log(f"{op.task.node} keeps what is left there for now: {error.message}")


def _give(guest: Guest, source: str, target: str) -> None:
    """Give a guest that does not run, and whose disks are in reach of all, to another node."""
    if guest.status.node == source:
        guest.status.previous_node = source
        assign(guest, target, guest.meta.generation + 1)


def _ending(op: Operation, notes: MigrationNotes) -> str:
    report = notes.report
    still = f"; it stood still for {report.downtime_ms} ms" if report.downtime_ms else ""
    return f"{op.name} is on {notes.target}{still}"


def _interrupted(name: str) -> GugusError:
    return unavailable(
        "MIGRATION_INTERRUPTED",
        f"the migration of guest {name} was interrupted; it stays where it was.",
        remedy="Ask for it again.",
    )
