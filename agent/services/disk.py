"""DiskService: disks of guests, in use or not, on this host."""

from functools import partial
from typing import Any

from gugus.agent.v1 import disk_pb2, disk_pb2_grpc, task_pb2

from agent.disks import Disks
from agent.tasks import Tasks


class DiskService(disk_pb2_grpc.DiskServiceServicer):
    """See proto/gugus/agent/v1/disk.proto."""

    def __init__(self, disks: Disks, tasks: Tasks) -> None:
        self._disks, self._tasks = disks, tasks

    async def MirrorDisk(self, request: disk_pb2.MirrorDiskRequest, context: Any) -> task_pb2.Task:
        """Begin to copy a disk."""
        await self._disks.admit(request.epoch)
        return self._tasks.begin(
            request.task_id, "mirror-disk", f"guest/{request.name}", partial(self._disks.mirror, request)
        )

    async def PivotDisk(self, request: disk_pb2.PivotDiskRequest, context: Any) -> disk_pb2.PivotDiskResponse:
        """Go over to the copy."""
        await self._disks.pivot(request)
        return disk_pb2.PivotDiskResponse()

    async def DropMirror(self, request: disk_pb2.DropMirrorRequest, context: Any) -> disk_pb2.DropMirrorResponse:
        """Give the copy up."""
        await self._disks.drop(request)
        return disk_pb2.DropMirrorResponse()

    async def FlattenDisk(self, request: disk_pb2.FlattenDiskRequest, context: Any) -> task_pb2.Task:
        """Begin to make a disk stand alone."""
        await self._disks.admit(request.epoch)
        return self._tasks.begin(
            request.task_id, "flatten-disk", f"guest/{request.name}", partial(self._disks.flatten, request)
        )
