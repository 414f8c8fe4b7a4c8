"""VolumeService: pools and volumes on this host."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from gugus.agent.v1 import task_pb2, volume_pb2, volume_pb2_grpc

from agent.pools import Pools
from agent.storage.pool import VolumeRequest
from agent.tasks import Progress, Tasks
from agent.turns import Turns
from common import validate

T = TypeVar("T")


class VolumeService(volume_pb2_grpc.VolumeServiceServicer):
    """See proto/gugus/agent/v1/volume.proto. changed: called after what pools there are has changed."""

    def __init__(self, pools: Pools, tasks: Tasks, turns: Turns, changed: Callable[[], None]) -> None:
        self._pools, self._tasks, self._turns, self._changed = pools, tasks, turns, changed

    async def EnsurePool(self, request: volume_pb2.EnsurePoolRequest, context: Any) -> volume_pb2.Pool:
        """Make a pool usable."""
        ensure = partial(self._pools.ensure, request.spec)
        pool = await self._turns.run(f"pool/{request.spec.name}", request.epoch, ensure)
        self._changed()
        return pool

    async def ForgetPool(self, request: volume_pb2.ForgetPoolRequest, context: Any) -> volume_pb2.ForgetPoolResponse:
        """Forget a pool."""
        await self._turns.run(f"pool/{request.name}", request.epoch, partial(self._pools.forget, request.name))
        self._changed()
        return volume_pb2.ForgetPoolResponse()

    async def ListPools(self, request: volume_pb2.ListPoolsRequest, context: Any) -> volume_pb2.ListPoolsResponse:
        """Tell of all pools."""
        return volume_pb2.ListPoolsResponse(pools=await self._pools.statuses())

    async def CreateVolume(self, request: volume_pb2.CreateVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Make a volume."""
        validate.require("name", validate.name(request.name))
        wanted = VolumeRequest(
            name=request.name,
            format=request.format,
            size_bytes=request.size_bytes,
            source=request.source,
            privileged=request.privileged,
        )
        make = partial(self._pools.get(request.pool).create_volume, wanted)
        return await self._change(request, make)

    async def EnsureVolume(self, request: volume_pb2.EnsureVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Make an empty volume for a migration."""
        validate.require("name", validate.name(request.name))
        wanted = VolumeRequest(
            name=request.name,
            format=request.format,
            size_bytes=request.size_bytes,
            source=request.base,
            privileged=request.privileged,
        )
        return await self._change(request, partial(self._pools.get(request.pool).ensure_volume, wanted))

    async def ImportVolume(self, request: volume_pb2.ImportVolumeRequest, context: Any) -> task_pb2.Task:
        """Begin an import."""
        pool = self._pools.get(request.pool)

        async def work(progress: Progress) -> object:
            return await pool.import_volume(request.name, request.source, request.sha256, progress)

        return await self._begin("import-volume", request, work)

    async def CopyVolume(self, request: volume_pb2.CopyVolumeRequest, context: Any) -> task_pb2.Task:
        """Begin a copy."""
        self._pools.get(request.pool)

        async def work(progress: Progress) -> object:
            return await self._pools.copy_volume(request, progress)

        return await self._begin("copy-volume", request, work)

    async def FlattenVolume(self, request: volume_pb2.FlattenVolumeRequest, context: Any) -> task_pb2.Task:
        """Begin to make a linked clone independent."""
        pool = self._pools.get(request.pool)

        async def work(progress: Progress) -> object:
            return await pool.flatten_volume(request.name, progress, done_by_guest=request.done_by_guest)

        return await self._begin("flatten-volume", request, work)

    async def ResizeVolume(self, request: volume_pb2.ResizeVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Let a volume grow."""
        pool = self._pools.get(request.pool)
        resize = partial(pool.resize_volume, request.name, request.size_bytes, done_by_guest=request.done_by_guest)
        return await self._change(request, resize)

    async def FreezeVolume(self, request: volume_pb2.FreezeVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Make a volume a base."""
        return await self._change(request, partial(self._pools.get(request.pool).freeze_volume, request.name))

    async def RenameVolume(self, request: volume_pb2.RenameVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Give a volume another name."""
        rename = partial(self._pools.rename_volume, request.pool, request.name, request.new_name)
        return await self._change(request, rename)

    async def SnapshotVolume(
        self, request: volume_pb2.SnapshotVolumeRequest, context: Any
    ) -> volume_pb2.VolumeSnapshot:
        """Snapshot a volume."""
        pool = self._pools.get(request.pool)
        return await self._change(request, partial(pool.snapshot_volume, request.name, request.snapshot))

    async def RevertVolume(self, request: volume_pb2.RevertVolumeRequest, context: Any) -> volume_pb2.Volume:
        """Revert a volume to a snapshot."""
        pool = self._pools.get(request.pool)
        return await self._change(request, partial(pool.revert_volume, request.name, request.snapshot))

    async def DeleteVolumeSnapshot(
        self, request: volume_pb2.DeleteVolumeSnapshotRequest, context: Any
    ) -> volume_pb2.DeleteVolumeSnapshotResponse:
        """Delete a snapshot."""
        pool = self._pools.get(request.pool)
        await self._change(request, partial(pool.delete_snapshot, request.name, request.snapshot))
        return volume_pb2.DeleteVolumeSnapshotResponse()

    async def ListVolumeSnapshots(
        self, request: volume_pb2.ListVolumeSnapshotsRequest, context: Any
    ) -> volume_pb2.ListVolumeSnapshotsResponse:
        """Tell of the snapshots of a volume."""
        pool = self._pools.get(request.pool)
        return volume_pb2.ListVolumeSnapshotsResponse(
            snapshots=await pool.snapshots_of(request.name), obstacle=await pool.snapshot_obstacle(request.name)
        )

    async def BeginExport(self, request: volume_pb2.BeginExportRequest, context: Any) -> task_pb2.Task:
        """Begin to prepare an export."""
        transfer = self._pools.get(request.pool).transfer

        async def work(progress: Progress) -> object:
            return await transfer.begin_export(
                request.task_id, request.name, request.format, request.snapshot, progress
            )

        return await self._begin("export-volume", request, work)

    async def ReadExport(
        self, request: volume_pb2.ReadExportRequest, context: Any
    ) -> AsyncIterator[volume_pb2.ExportChunk]:
        """Send the bytes of an export."""
        async for chunk in self._pools.exporting(request.id).read_export(request.id, request.offset):
            yield chunk

    async def EndExport(self, request: volume_pb2.EndExportRequest, context: Any) -> volume_pb2.EndExportResponse:
        """Forget an export."""
        await self._pools.end_export(request.id)
        return volume_pb2.EndExportResponse()

    async def BeginUpload(self, request: volume_pb2.BeginUploadRequest, context: Any) -> volume_pb2.Upload:
        """Begin to receive a file."""
        await self._turns.admit(request.epoch)
        return await self._pools.get(request.pool).transfer.begin_upload(request.id, request.total_bytes)

    async def WriteUpload(self, request: volume_pb2.WriteUploadRequest, context: Any) -> volume_pb2.Upload:
        """Take a piece of a file."""
        await self._turns.admit(request.epoch)
        transfer = self._pools.get(request.pool).transfer
        return await transfer.write_upload(request.id, request.offset, request.data)

    async def GetUpload(self, request: volume_pb2.GetUploadRequest, context: Any) -> volume_pb2.Upload:
        """Tell how far an upload is."""
        return await self._pools.get(request.pool).transfer.get_upload(request.id)

    async def EndUpload(self, request: volume_pb2.EndUploadRequest, context: Any) -> volume_pb2.EndUploadResponse:
        """Forget an upload."""
        await self._turns.admit(request.epoch)
        await self._pools.get(request.pool).transfer.end_upload(request.id)
        return volume_pb2.EndUploadResponse()

    async def DeleteVolume(
        self, request: volume_pb2.DeleteVolumeRequest, context: Any
    ) -> volume_pb2.DeleteVolumeResponse:
        """Delete a volume."""
        delete = partial(self._pools.delete_volume, request.pool, request.name, orphan_age_s=request.orphan_age_s)
        await self._change(request, delete)
        return volume_pb2.DeleteVolumeResponse()

    async def ListVolumes(self, request: volume_pb2.ListVolumesRequest, context: Any) -> volume_pb2.ListVolumesResponse:
        """Tell of the volumes of a pool."""
        return volume_pb2.ListVolumesResponse(volumes=await self._pools.get(request.pool).list_volumes())

    async def _change(self, request: Any, change: Callable[[], Awaitable[T]]) -> T:
        """Change a volume when it is its turn."""
        return await self._turns.run(_subject(request), request.epoch, change)

    async def _begin(self, kind: str, request: Any, work: Callable[[Progress], Awaitable[object]]) -> task_pb2.Task:
        """Begin long work on a volume."""
        validate.require("name", validate.name(request.name))
        await self._turns.admit(request.epoch)
        return self._tasks.begin(request.task_id, kind, _subject(request), work)


def _subject(request: Any) -> str:
    return f"pool/{request.pool}/volume/{request.name}"
