"""The pools of a cluster and what is in them."""

from collections.abc import Sequence

from gugus.agent.v1.volume_pb2 import PoolSpec, Volume
from gugus.cluster.v1 import pool_pb2, pool_pb2_grpc, task_pb2

from client.caller import Caller, new_request_id

CHECK_TIMEOUT_S = 180.0
"""A check lists all volumes of a pool on all its nodes."""


class Pools:
    """Pools, the images in them and their volumes."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = pool_pb2_grpc.PoolServiceStub

    async def create(self, spec: PoolSpec, *, nodes: Sequence[str] = (), request_id: str = "") -> pool_pb2.Pool:
        """Make a pool on `nodes` (none: all). Raises INVALID_ARGUMENT, ALREADY_EXISTS."""
        request = pool_pb2.CreatePoolRequest(spec=spec, nodes=nodes, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "CreatePool", request, pool_pb2.Pool)

    async def get(self, name: str) -> pool_pb2.Pool:
        """Return a pool. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "GetPool", pool_pb2.GetPoolRequest(name=name), pool_pb2.Pool)

    async def list(self) -> Sequence[pool_pb2.Pool]:
        """Return all pools by name."""
        request = pool_pb2.ListPoolsRequest()
        return (await self._caller.call(self._stub, "ListPools", request, pool_pb2.ListPoolsResponse)).pools

    async def delete(self, name: str, *, request_id: str = "") -> None:
        """Forget a pool; what is stored in it stays. Raises NOT_FOUND, FAILED_PRECONDITION (POOL_IN_USE)."""
        request = pool_pb2.DeletePoolRequest(name=name, request_id=request_id or new_request_id())
        await self._caller.call(self._stub, "DeletePool", request, pool_pb2.DeletePoolResponse)

    async def import_image(
        self, pool: str, image: str, source: str, *, sha256: str = "", node: str = "", request_id: str = ""
    ) -> task_pb2.Task:
        """Bring an image into a pool from a path on `node` (empty: any) or an http(s) address."""
        request = pool_pb2.ImportImageRequest(
            pool=pool, image=image, source=source, sha256=sha256, node=node, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "ImportImage", request, task_pb2.Task)

    async def images(self, *, pool: str = "") -> Sequence[pool_pb2.Image]:
        """Return the images of a pool, or of all."""
        request = pool_pb2.ListImagesRequest(pool=pool)
        return (await self._caller.call(self._stub, "ListImages", request, pool_pb2.ListImagesResponse)).images

    async def delete_image(self, pool: str, image: str, *, request_id: str = "") -> task_pb2.Task:
        """Delete an image. Raises NOT_FOUND, FAILED_PRECONDITION (IMAGE_IN_USE)."""
        request = pool_pb2.DeleteImageRequest(pool=pool, image=image, request_id=request_id or new_request_id())
        return await self._caller.call(self._stub, "DeleteImage", request, task_pb2.Task)

    async def check(self, name: str) -> pool_pb2.CheckPoolResponse:
        """Return the volumes that nobody knows, and the known ones that are missing. Raises NOT_FOUND."""
        request = pool_pb2.CheckPoolRequest(name=name)
        return await self._caller.call(
            self._stub,
            "CheckPool",
            request,
            pool_pb2.CheckPoolResponse,
            timeout_s=CHECK_TIMEOUT_S,
            attempt_s=CHECK_TIMEOUT_S,
        )

    async def repair(
        self, name: str, orphans: Sequence[pool_pb2.StrayVolume], *, least_age_s: int = 0
    ) -> pool_pb2.RepairPoolResponse:
        """Delete orphans that a check found, those that are orphans still and at least so old (0: 600 s). Idempotent."""
        request = pool_pb2.RepairPoolRequest(name=name, orphans=orphans, least_age_s=least_age_s)
        return await self._caller.call(
            self._stub,
            "RepairPool",
            request,
            pool_pb2.RepairPoolResponse,
            timeout_s=CHECK_TIMEOUT_S,
            attempt_s=CHECK_TIMEOUT_S,
        )

    async def volumes(self, pool: str, *, node: str = "") -> Sequence[Volume]:
        """Return the volumes of a pool on every node that has it, or as one node sees it."""
        return (await self.list_volumes(pool, node=node)).volumes

    async def list_volumes(self, pool: str, *, node: str = "") -> pool_pb2.ListVolumesResponse:
        """Return the volumes of a pool with the node of each, and which nodes could not be asked."""
        request = pool_pb2.ListVolumesRequest(pool=pool, node=node)
        return await self._caller.call(self._stub, "ListVolumes", request, pool_pb2.ListVolumesResponse)
