"""Migration of a guest from node to node.

What may be true of the guest is in the state before any node is told: from the moment at which `status.migration` is written until it is
unset, the guest may run at either end, and the operation does not end before it knows at which.
"""

from typing import Final

from gugus.agent.v1 import guest_pb2 as agent_pb2
from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.guest_pb2 import GUEST_STATE_PAUSED
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_MODE_CHECKPOINT,
    MIGRATION_MODE_LIVE,
    MIGRATION_MODE_OFFLINE,
    MIGRATION_MODE_RESTART,
    MIGRATION_PRESENCE_ABSENT,
    GuestSurvey,
    MigrationReport,
)
from gugus.agent.v1.task_pb2 import Task as AgentTask
from gugus.cluster.v1.guest_pb2 import Guest, GuestMigration
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest, MigrationNotes

from common.errors import GugusError, aborted, from_status, precondition, to_status, unavailable
from common.units import format_size
from manager.controllers.compile import agent_spec
from manager.controllers.context import TRANSIENT_REASONS, with_epoch
from manager.ha import account
from manager.ha.migration import ALIVE, Verdict, Word
from manager.operations import migrate_check
from manager.operations.handler import moved
from manager.operations.migrate_settle import CLEANING, adopt, cleaned, dropped, settled, source_word
from manager.operations.operation import Operation

KIND: Final = "migrate-guest"

PREPARE_TIMEOUT_S = 120.0
"""The target makes volumes, which may be preallocated."""

_GIVING, _PREPARING, _MOVING, _SETTLING = "giving", "preparing", "moving", "settling"
_HOW: Final = {
    MIGRATION_MODE_LIVE: "while it runs",
    MIGRATION_MODE_CHECKPOINT: "as it runs, by CRIU",
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
        """Check, note, prepare the target, have the source send, and write down where the guest is."""
        survey = None
        if not op.step:
            op.check_cancel()
            survey = await self._choose(op)
        if op.step == _GIVING:
            await self._give(op)
        if op.step == _PREPARING:
            await self._prepare(op, survey)
        if op.step == _MOVING:
            await self._follow(op)
        if op.step == _SETTLING:
            await self._settle(op)
        notes = op.notes(MigrationNotes)
        if op.step == CLEANING and notes.adopted:
            return _ending(op, notes)
        raise from_status(notes.error) if notes.HasField("error") else _interrupted(op.name)

    async def clean(self, op: Operation) -> None:
        """Remove what is left at the source: the guest runs elsewhere, which is all that its user waits for."""
        try:
            await cleaned(op, op.notes(MigrationNotes))
        except GugusError as error:
            if error.reason in _AGAIN:
                raise
            await op.log(f"{op.task.node} keeps what is left there for now: {error.message}")

    async def undo(self, op: Operation) -> None:
        """Find out where the guest is, if that is not known yet; then remove what came to the target."""
        if not op.step:
            return
        if op.guest.status.HasField("migration"):
            await settled(op)
        notes = op.notes(MigrationNotes)
        if notes.adopted:
            await self.clean(op)
        else:
            await dropped(op, notes.target)

    async def _choose(self, op: Operation) -> GuestSurvey:
        """Choose the target, and write down that the guest may be at either end from now on, before any node is told."""
        request, guest = op.request(MigrateGuestRequest), op.guest
        survey = await migrate_check.survey(op.context, guest, with_files=True)
        plan = await migrate_check.choose(op.context, guest, survey, request.target, request.policy)
        notes = MigrationNotes(
            target=plan.target,
            mode=plan.mode,
            volumes=plan.volumes,
            run=plan.state in ALIVE and plan.state != GUEST_STATE_PAUSED,
        )
        source = guest.status.node

        def announce(guest: Guest) -> None:
            if guest.status.node != source:
                raise moved(op)
            generation = guest.meta.generation + 1
            migration = GuestMigration(task=op.id, source=source, target=notes.target, generation=generation)
            guest.status.migration.CopyFrom(migration)

        op.check_cancel()
        copied = sum(volume.used_bytes for volume in plan.volumes)
        what = f", {format_size(copied)} of disks copied" if plan.volumes else ""
        log = f"from {source} to {plan.target}, {_HOW[plan.mode]}{what}"
        nothing_moves = plan.mode == MIGRATION_MODE_OFFLINE and not plan.volumes
        async with (
            op.context.admission,
            op.context.room,
        ):  # nodes were asked since it was chosen: others may be there by now
            migrate_check.refuse_unless_it_still_fits(op.context, op.guest, plan)
            await op.note(_GIVING if nothing_moves else _PREPARING, notes, log=log, node=source, guest=announce)
        return survey

    async def _give(self, op: Operation) -> None:
        """Give away a guest that does not run, and whose disks are in reach of all.

        Its node refuses older starts from now on: one that was asked for before, and comes late, must not run it there.
        """
        guest = op.guest
        source = await source_word(op, guest, guest.status.migration.generation)
        if source is Word.UNKNOWN:
            way = guest.status.migration
            what = f"{way.source} must promise to start {op.name} no more before it is given to {way.target}."
            raise precondition("NODE_NOT_ONLINE", what, remedy="It is asked again until it answers.")
        if source is Word.RUNNING:
            await self._to_settle(op, _started(op.name))
        else:
            await adopt(op, MigrationReport())

    async def _prepare(self, op: Operation, survey: GuestSurvey | None) -> None:
        """Prepare the target, then begin. From the note on the source may have begun, and the target is not prepared again.

        survey: what the source said a moment ago; None when that was another turn.
        """
        notes = op.notes(MigrationNotes)
        try:
            op.check_cancel()
            survey = survey or await migrate_check.survey(op.context, op.guest, with_files=True)
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
        """Follow the source's work. When it succeeded, the source has heard from the target that it has the guest, for good.

        When it did not, or cannot be followed to its end, who has the guest is found out.
        """
        source = op.guest.status.migration.source
        try:
            work = await op.follow(AgentTask(id=op.id), source, share=(0, 95))
        except GugusError as error:
            if error.reason in _AGAIN:
                raise
            await self._to_settle(op, error)
            return
        report = MigrationReport.FromString(work.result)
        if report.presence == MIGRATION_PRESENCE_ABSENT:
            await adopt(op, report)
        else:
            await op.note(_SETTLING)

    async def _to_settle(self, op: Operation, error: GugusError) -> None:
        notes = op.notes(MigrationNotes)
        says_nothing = (
            error.reason in TRANSIENT_REASONS or error.reason == "TASK_NOT_FOUND"
        )  # and would be tried again for ever
        why = _interrupted(op.name) if says_nothing else error
        notes.error.CopyFrom(to_status(why))
        await op.note(_SETTLING, notes, log=str(why))

    async def _settle(self, op: Operation) -> None:
        verdict = await settled(op)
        if verdict is Verdict.MOVED:
            return
        notes = op.notes(MigrationNotes)
        if verdict is Verdict.LOST:
            notes.error.CopyFrom(to_status(_lost(op.name, notes.target)))
        elif not notes.HasField("error"):
            notes.error.CopyFrom(to_status(_interrupted(op.name)))
        await op.note(CLEANING, notes)


def _ending(op: Operation, notes: MigrationNotes) -> str:
    report = notes.report
    still = f"; it stood still for {report.downtime_ms} ms" if report.downtime_ms and notes.run else ""
    anew = f"; it was started anew: {report.restarted}" if report.restarted else ""
    return f"{op.name} is on {notes.target}{still}{anew}"


def _interrupted(name: str) -> GugusError:
    return unavailable(
        "MIGRATION_INTERRUPTED",
        f"the migration of guest {name} was interrupted.",
        remedy="Ask for it again.",
    )


def _lost(name: str, target: str) -> GugusError:
    return aborted(
        "GUEST_LOST",
        f"guest {name} was lost on its way to {target}: neither node has it as it ran.",
        remedy="It is started anew, from its disks, if it is to run.",
    )


def _started(name: str) -> GugusError:
    return aborted(
        "GUEST_RUNNING", f"guest {name} was started meanwhile.", remedy="Ask again: it goes over while it runs."
    )
