"""VolumeService: pools and volumes on this host."""

from collections.abc import Callable
from functools import partial
from typing import Any

from gugus.agent.v1 import task_pb2, volume_pb2, volume_pb2_grpc

from agent.pools import Pools
from agent.storage.pool import VolumeRequest
from agent.tasks import Progress, Tasks
from agent.turns import Turns
from common import validate


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
        return await self._turns.run(_subject(request.pool, request.name), request.epoch, make)

    async def ImportVolume(self, request: volume_pb2.ImportVolumeRequest, context: Any) -> task_pb2.Task:
        """Begin an import."""
        validate.require("name", validate.name(request.name))
        await self._turns.admit(request.epoch)
        pool, target = self._pools.get(request.pool), _subject(request.pool, request.name)

        async def work(progress: Progress) -> object:
            return await pool.import_volume(request.name, request.source, request.sha256, progress)

        return self._tasks.begin(request.task_id, "import-volume", target, work)

    async def DeleteVolume(
        self, request: volume_pb2.DeleteVolumeRequest, context: Any
    ) -> volume_pb2.DeleteVolumeResponse:
        """Delete a volume."""
        delete = partial(self._pools.delete_volume, request.pool, request.name)
        await self._turns.run(_subject(request.pool, request.name), request.epoch, delete)
        return volume_pb2.DeleteVolumeResponse()

    async def ListVolumes(self, request: volume_pb2.ListVolumesRequest, context: Any) -> volume_pb2.ListVolumesResponse:
        """Tell of the volumes of a pool."""
        return volume_pb2.ListVolumesResponse(volumes=await self._pools.get(request.pool).list_volumes())


def _subject(pool: str, volume: str) -> str:
    return f"pool/{pool}/volume/{volume}"
