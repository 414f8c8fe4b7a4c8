"""Snapshots in the SDK: one typed method a call."""

from collections.abc import Sequence

from gugus.cluster.v1 import snapshot_pb2, snapshot_pb2_grpc, task_pb2

from client.caller import Caller, new_request_id


class Snapshots:
    """Snapshots of guests. What returns a task goes on by itself: `tasks.wait(task)` waits for its end."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = snapshot_pb2_grpc.SnapshotServiceStub

    async def create(
        self,
        guest: str,
        name: str,
        *,
        memory: bool = False,
        description: str = "",
        no_freeze: bool = False,
        request_id: str = "",
    ) -> task_pb2.Task:
        """Take a snapshot, of the memory as well if asked. Raises NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION."""
        request = snapshot_pb2.CreateSnapshotRequest(
            guest=guest,
            name=name,
            memory=memory,
            description=description,
            no_freeze=no_freeze,
            request_id=request_id or new_request_id(),
        )
        return await self._caller.call(self._stub, "CreateSnapshot", request, task_pb2.Task)

    async def get(self, guest: str, name: str) -> snapshot_pb2.Snapshot:
        """Return a snapshot. Raises NOT_FOUND."""
        request = snapshot_pb2.GetSnapshotRequest(guest=guest, name=name)
        return await self._caller.call(self._stub, "GetSnapshot", request, snapshot_pb2.Snapshot)

    async def list(self, guest: str = "") -> Sequence[snapshot_pb2.Snapshot]:
        """Return the snapshots of a guest, or of all: each after its parent. Raises NOT_FOUND."""
        request = snapshot_pb2.ListSnapshotsRequest(guest=guest)
        answer = await self._caller.call(self._stub, "ListSnapshots", request, snapshot_pb2.ListSnapshotsResponse)
        return answer.snapshots

    async def delete(self, guest: str, name: str, *, request_id: str = "") -> task_pb2.Task:
        """Delete a snapshot; those that stem from it stay. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = snapshot_pb2.DeleteSnapshotRequest(guest=guest, name=name, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "DeleteSnapshot", request, task_pb2.Task)

    async def rollback(self, guest: str, name: str, *, start: bool = False, request_id: str = "") -> task_pb2.Task:
        """Make a guest what it was; what it wrote since is lost. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = snapshot_pb2.RollbackGuestRequest(
            guest=guest, name=name, start=start, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "RollbackGuest", request, task_pb2.Task)
