"""MigrationService: guests that leave this host, and guests that come to it."""

from functools import partial
from typing import Any

from gugus.agent.v1 import migration_pb2, migration_pb2_grpc, task_pb2

from agent.migration import survey
from agent.migration.host import Here
from agent.migration.source import Source
from agent.migration.target import Target
from agent.tasks import Tasks


class MigrationService(migration_pb2_grpc.MigrationServiceServicer):
    """See proto/gugus/agent/v1/migration.proto."""

    def __init__(self, here: Here, source: Source, target: Target, tasks: Tasks) -> None:
        self._here, self._source, self._target, self._tasks = here, source, target, tasks

    async def SurveyGuest(self, request: migration_pb2.SurveyGuestRequest, context: Any) -> migration_pb2.GuestSurvey:
        """Tell what a target has to know."""
        told = await survey.survey(self._here, request.name, with_files=request.with_files)
        told.obstacles.extend(await survey.unreachable(request))
        return told

    async def CheckArrival(
        self, request: migration_pb2.CheckArrivalRequest, context: Any
    ) -> migration_pb2.CheckArrivalResponse:
        """Tell what is in the way."""
        found = await survey.obstacles(self._here, request)
        return migration_pb2.CheckArrivalResponse(obstacles=found, way=self._target.way())

    async def PrepareMigration(
        self, request: migration_pb2.PrepareMigrationRequest, context: Any
    ) -> migration_pb2.PrepareMigrationResponse:
        """Make ready for a guest."""
        return await self._target.prepare(request.epoch, request)

    async def MigrateGuest(self, request: migration_pb2.MigrateGuestRequest, context: Any) -> task_pb2.Task:
        """Begin to send a guest off."""
        await self._here.turns.admit(request.epoch)
        work = partial(self._source.migrate, request)
        return self._tasks.begin(request.task_id, "migrate-guest", f"guest/{request.name}", work)

    async def InspectMigration(
        self, request: migration_pb2.InspectMigrationRequest, context: Any
    ) -> migration_pb2.MigrationReport:
        """Tell how it stands here, at whichever end this is."""
        if request.target or self._target.record(request.migration) is not None:
            return await self._target.report(request.migration)
        return await self._source.report(request.migration, request.name)

    async def KeepGuest(self, request: migration_pb2.KeepGuestRequest, context: Any) -> migration_pb2.MigrationReport:
        """Keep a guest at the source."""
        return await self._source.keep(request.epoch, request)

    async def TakeOverGuest(
        self, request: migration_pb2.TakeOverGuestRequest, context: Any
    ) -> migration_pb2.MigrationReport:
        """Let a guest run at the target."""
        return await self._target.take_over(request.epoch, request.migration)

    async def DropArrival(
        self, request: migration_pb2.DropArrivalRequest, context: Any
    ) -> migration_pb2.MigrationReport:
        """Remove what came."""
        return await self._target.drop(request.epoch, request.migration)

    async def ForgetMigration(
        self, request: migration_pb2.ForgetMigrationRequest, context: Any
    ) -> migration_pb2.ForgetMigrationResponse:
        """Forget a migration."""
        await self._here.turns.admit(request.epoch)
        await self._source.forget(request.migration)
        await self._target.forget(request.migration)
        return migration_pb2.ForgetMigrationResponse()
