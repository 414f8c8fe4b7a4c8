"""Migrations in the SDK: one typed method a call."""

from collections.abc import Sequence

from gugus.agent.v1.migration_pb2 import GuestSurvey, MigrationPolicy, MigrationPresence
from gugus.cluster.v1 import migration_pb2, migration_pb2_grpc, task_pb2
from gugus.cluster.v1.guest_pb2 import Guest

from client.caller import Caller, new_request_id

CHECK_TIMEOUT_S = 60.0
"""A check asks every node that is asked about, and its libvirt."""

RECEIVE_TIMEOUT_S = 180.0
"""The target makes volumes, which may be preallocated."""


class Migrations:
    """Moving guests from node to node. A migration is a task that goes on by itself: `tasks.wait(task)` waits for its end."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = migration_pb2_grpc.MigrationServiceStub

    async def migrate(
        self, guest: str, target: str = "", *, policy: MigrationPolicy | None = None, request_id: str = ""
    ) -> task_pb2.Task:
        """Move a guest to a node, or to the best of the others. Raises NOT_FOUND; the task tells every obstacle."""
        request = migration_pb2.MigrateGuestRequest(
            name=guest, target=target, policy=policy, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "MigrateGuest", request, task_pb2.Task)

    async def check(
        self, guest: str, target: str = "", *, policy: MigrationPolicy | None = None
    ) -> Sequence[migration_pb2.MigrationCheck]:
        """Tell how a guest would move to a node, or to each of the others, and all that is in the way. Raises NOT_FOUND."""
        request = migration_pb2.CheckMigrationRequest(name=guest, target=target, policy=policy)
        answer = await self._caller.call(
            self._stub, "CheckMigration", request, migration_pb2.CheckMigrationResponse, timeout_s=CHECK_TIMEOUT_S
        )
        return answer.checks

    async def survey(
        self, guest: str, *, with_files: bool = False, reach_address: str = "", reach_port: int = 0
    ) -> GuestSurvey:
        """Ask what another cluster has to know of a guest, and whether its node reaches a target there. Raises NOT_FOUND."""
        request = migration_pb2.SurveyGuestRequest(
            name=guest, with_files=with_files, reach_address=reach_address, reach_port=reach_port
        )
        return await self._caller.call(self._stub, "SurveyGuest", request, GuestSurvey, timeout_s=CHECK_TIMEOUT_S)

    async def receive(self, request: migration_pb2.ReceiveGuestRequest) -> migration_pb2.ReceiveGuestResponse:
        """Have a guest of another cluster expected, or (`dry_run`) tell what is in the way. Raises MIGRATION_IMPOSSIBLE."""
        answer = migration_pb2.ReceiveGuestResponse
        return await self._caller.call(
            self._stub, "ReceiveGuest", request, answer, timeout_s=RECEIVE_TIMEOUT_S, attempt_s=RECEIVE_TIMEOUT_S
        )

    async def send(self, request: migration_pb2.SendGuestRequest) -> task_pb2.Task:
        """Send a running guest to another cluster, which expects it. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "SendGuest", request, task_pb2.Task)

    async def tell(self, guest: str, migration: str, told: MigrationPresence.ValueType) -> Guest:
        """Tell a cluster how a migration ended in the other one: RUNNING or ABSENT. Raises MIGRATION_SETTLED, TOLD_OTHERWISE."""
        request = migration_pb2.TellMigrationRequest(name=guest, migration=migration, told=told)
        return await self._caller.call(self._stub, "TellMigration", request, Guest)
