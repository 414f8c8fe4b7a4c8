"""Migrations in the SDK: one typed method a call."""

from collections.abc import Sequence

from gugus.agent.v1.migration_pb2 import MigrationPolicy
from gugus.cluster.v1 import migration_pb2, migration_pb2_grpc, task_pb2

from client.caller import Caller, new_request_id

CHECK_TIMEOUT_S = 60.0
"""A check asks every node that is asked about, and its libvirt."""


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
