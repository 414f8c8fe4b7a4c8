"""SnapshotService: snapshots of guests on this host."""

from typing import Any

from gugus.agent.v1 import guest_pb2, snapshot_pb2, snapshot_pb2_grpc

from agent.snapshots import Snapshots


class SnapshotService(snapshot_pb2_grpc.SnapshotServiceServicer):
    """See proto/gugus/agent/v1/snapshot.proto."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    async def PrepareSnapshot(
        self, request: snapshot_pb2.PrepareSnapshotRequest, context: Any
    ) -> snapshot_pb2.PrepareSnapshotResponse:
        """Tell what stands in the way of a snapshot."""
        return await self._snapshots.prepare(request)

    async def TakeSnapshot(
        self, request: snapshot_pb2.TakeSnapshotRequest, context: Any
    ) -> snapshot_pb2.TakeSnapshotResponse:
        """Take a snapshot."""
        return await self._snapshots.take(request)

    async def DeleteSnapshot(
        self, request: snapshot_pb2.DeleteSnapshotRequest, context: Any
    ) -> snapshot_pb2.DeleteSnapshotResponse:
        """Delete a snapshot."""
        await self._snapshots.delete(request)
        return snapshot_pb2.DeleteSnapshotResponse()

    async def RevertSnapshot(
        self, request: snapshot_pb2.RevertSnapshotRequest, context: Any
    ) -> snapshot_pb2.RevertSnapshotResponse:
        """Go back to a snapshot."""
        await self._snapshots.revert(request)
        return snapshot_pb2.RevertSnapshotResponse()

    async def StartFromSnapshot(self, request: snapshot_pb2.StartFromSnapshotRequest, context: Any) -> guest_pb2.Guest:
        """Start a guest with its memory."""
        return await self._snapshots.start_from(request)
