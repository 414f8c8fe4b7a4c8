"""The pool service: pools, and the images in them."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

from gugus.agent.v1 import volume_pb2 as agent_volume
from gugus.cluster.v1 import pool_pb2, pool_pb2_grpc
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.pool_pb2 import Image, Pool
from gugus.cluster.v1.task_pb2 import Task

from common import validate
from common.errors import GugusError, already_exists, invalid, not_found, precondition, several, unavailable
from manager.controllers import images
from manager.controllers.compile import image_name
from manager.controllers.context import Context
from manager.controllers.guest_step import ALIVE_STATES
from manager.events import record
from manager.services import pool_check, pool_volumes
from manager.services.forward import actor
from manager.services.image_transfer import Transfers, refuse_without_room
from manager.services.requests import (
    begin,
    begun,
    change_once,
    create_once,
    known_hosts,
    made_on_nodes,
    upon_latest,
    users_of,
)
from manager.store import Txn
from manager.store.kinds import new
from manager.tasks import active, new_task

LIST_ANSWER_S = 5.0
"""A node that takes longer to list its volumes is told as one that cannot be asked; clients wait 10 s for one answer."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 46
_SOURCES = ("/", "https://", "http://", "docker://", "oci:/", "oci-archive:/", "docker-archive:/")

ImageRequest = pool_pb2.ImportImageRequest | pool_pb2.UploadImageRequest | pool_pb2.CreateImageRequest
"""Requests that make an image."""


class PoolService(pool_pb2_grpc.PoolServiceServicer):
    """Serves `gugus pool`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._transfers = Transfers(context)

    async def CreatePool(self, request: pool_pb2.CreatePoolRequest, context: object) -> Pool:
        """Write a pool down, and answer when the nodes that are online have it."""
        faults = _spec_faults(request.spec)
        if faults:
            raise several(faults)
        known_hosts(self._store, request.nodes)
        pool = new(Pool, request.spec.name)
        pool.spec.CopyFrom(request.spec)
        pool.nodes.extend(request.nodes)
        return await made_on_nodes(self._context, await create_once(self._store, pool, request.request_id))

    async def GetPool(self, request: pool_pb2.GetPoolRequest, context: object) -> Pool:
        """Return one pool."""
        return await self._store.require(Pool, request.name)

    async def ListPools(self, request: pool_pb2.ListPoolsRequest, context: object) -> pool_pb2.ListPoolsResponse:
        """Return all pools."""
        return pool_pb2.ListPoolsResponse(pools=await self._store.list(Pool))

    async def DeletePool(self, request: pool_pb2.DeletePoolRequest, context: object) -> pool_pb2.DeletePoolResponse:
        """Forget a pool; nodes forget it as they are reached, and then it is gone."""

        async def change(key: str) -> None:
            pool = await self._store.require(Pool, request.name)
            if users := users_of(self._store.peek_all(Guest), pool=request.name):
                raise precondition(
                    "POOL_IN_USE",
                    f"pool {request.name} has disks of {', '.join(users)}.",
                    remedy="`gugus guest disk move` moves them to another pool; or delete these guests first.",
                )
            pool.meta.deleting = True
            txn = Txn(key).put(pool, expect_revision=pool.meta.revision)
            for image in self._store.peek_all(Image):
                if image.pool == request.name:
                    txn.delete(Image, image.meta.name)
            await self._store.txn(record(txn, f"pool/{request.name}", "POOL_DELETED", f"deleted by {actor()}"))

        async with self._context.admission:
            await change_once(self._store, f"delete pool/{request.name}", request.request_id, change)
        return pool_pb2.DeletePoolResponse()

    async def ImportImage(self, request: pool_pb2.ImportImageRequest, context: object) -> Task:
        """Bring an image into a pool."""
        faults = _import_faults(request)
        if faults:
            raise several(faults)
        return await self._begin_image(images.IMPORT, request)

    async def _begin_image(self, kind: str, request: ImageRequest) -> Task:
        """Begin the task that makes an image, unless there is one of that name or one is being made."""
        name = image_name(request.pool, request.image)
        async with self._context.admission:
            if done := await begun(self._store, kind, f"image/{name}", request.request_id):
                return done
            pool = await self._store.require(Pool, request.pool)
            if pool.meta.deleting:
                raise precondition(
                    "POOL_DELETING", f"pool {request.pool} is being deleted.", remedy="Choose another pool."
                )
            task = self._task(kind, name, request)
            if not isinstance(request, pool_pb2.CreateImageRequest):
                known_hosts(self._store, [request.node] if request.node else [])
            if isinstance(request, pool_pb2.UploadImageRequest):  # its pieces come before any controller looks at it
                task.node = images.node_for(self._context, request.pool, request.node).meta.name
                refuse_without_room(self._store, pool, task.node, request.size_bytes)
            if self._store.peek(Image, name) is not None:
                raise already_exists("image", request.image, remedy="Choose another name, or delete the image first.")
            if others := active(self._store, f"image/{name}"):
                raise already_exists(
                    "image", request.image, remedy=f"Task {others[0].meta.name} is making it right now."
                )
            return await begin(self._store, task, Txn(spare_reserve=True))

    async def UploadImage(self, request: pool_pb2.UploadImageRequest, context: object) -> Task:
        """Make ready to receive an image from the client."""
        faults = _image_faults(request.image, request.sha256)
        if not 0 < request.size_bytes <= _MOST_BYTES:
            faults.append(invalid("size_bytes", f"is {request.size_bytes}; it is the size of the file in bytes."))
        if faults:
            raise several(faults)
        return await self._begin_image(images.UPLOAD, request)

    async def WriteImage(self, request: pool_pb2.WriteImageRequest, context: object) -> pool_pb2.WriteImageResponse:
        """Take a piece of an upload."""
        return await self._transfers.write(request)

    async def CreateImage(self, request: pool_pb2.CreateImageRequest, context: object) -> Task:
        """Make an image from the disk of a guest that does not run."""
        if faults := _image_faults(request.image, ""):
            raise several(faults)
        guest = await self._store.get(Guest, request.guest)
        if guest is None:
            raise not_found("guest", request.guest)
        if request.disk and request.disk not in {disk.name for disk in guest.spec.disks}:
            raise not_found(
                "disk", request.disk, remedy=f"{request.guest} has {', '.join(d.name for d in guest.spec.disks)}."
            )
        if guest.status.observed in ALIVE_STATES:
            raise precondition(
                "GUEST_RUNNING", f"guest {request.guest} runs and writes to it.", remedy="Stop it first."
            )
        return await self._begin_image(images.CREATE, request)

    async def ExportVolume(self, request: pool_pb2.ExportVolumeRequest, context: object) -> Task:
        """Prepare the download of a volume."""
        if message := validate.name(request.volume):
            raise invalid("volume", message)
        target = f"volume/{request.pool}.{request.volume}"
        if done := await begun(self._store, images.EXPORT, target, request.request_id):
            return done
        await self._store.require(Pool, request.pool)
        known_hosts(self._store, [request.node] if request.node else [])
        request.node = request.node or self._holder(request.pool, request.volume)
        task = new_task(images.EXPORT, target, str(actor()), request.request_id, request)
        return await begin(self._store, task, Txn(spare_reserve=True))

    async def ReadExport(
        self, request: pool_pb2.ReadExportRequest, context: object
    ) -> AsyncIterator[agent_volume.ExportChunk]:
        """Send the bytes of an export."""
        async with aclosing(self._transfers.read(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def EndExport(self, request: pool_pb2.EndExportRequest, context: object) -> pool_pb2.EndExportResponse:
        """End an export."""
        await self._transfers.end(request.task)
        return pool_pb2.EndExportResponse()

    async def CheckPool(self, request: pool_pb2.CheckPoolRequest, context: object) -> pool_pb2.CheckPoolResponse:
        """Look for orphans and missing volumes."""
        return await pool_check.check(self._context, await self._store.require(Pool, request.name))

    async def RepairPool(self, request: pool_pb2.RepairPoolRequest, context: object) -> pool_pb2.RepairPoolResponse:
        """Delete orphans."""
        return await pool_check.repair(self._context, await self._store.require(Pool, request.name), request)

    async def ListImages(self, request: pool_pb2.ListImagesRequest, context: object) -> pool_pb2.ListImagesResponse:
        """Return images."""
        if request.pool:
            await self._store.require(Pool, request.pool)
        found = [image for image in await self._store.list(Image) if request.pool in ("", image.pool)]
        return pool_pb2.ListImagesResponse(images=found)

    async def DeleteImage(self, request: pool_pb2.DeleteImageRequest, context: object) -> Task:
        """Delete an image that no guest reads from."""
        name = image_name(request.pool, request.image)

        async def change() -> Task:
            if done := await begun(self._store, images.DELETE, f"image/{name}", request.request_id):
                return done
            image = await self._store.get(Image, name)
            if image is None:
                raise not_found("image", request.image)
            if users := users_of(self._store.peek_all(Guest), pool=request.pool, image=request.image):
                raise precondition(
                    "IMAGE_IN_USE",
                    f"image {request.image} is what {', '.join(users)} read from.",
                    remedy="`gugus guest disk flatten` makes a disk stand alone; or delete these guests first.",
                )
            image.meta.deleting = True
            txn = Txn().put(image, expect_revision=image.meta.revision)
            return await begin(self._store, self._task(images.DELETE, name, request), txn)

        async with self._context.admission:
            return await upon_latest(change)

    async def ListVolumes(self, request: pool_pb2.ListVolumesRequest, context: object) -> pool_pb2.ListVolumesResponse:
        """Ask nodes for the volumes of a pool: all that have it, or the one that is named."""
        pool = await self._store.require(Pool, request.pool)
        known_hosts(self._store, [request.node] if request.node else [])
        found = await pool_volumes.ask(self._context, pool, LIST_ANSWER_S, request.node)
        if not found.listed:
            raise _no_reader(pool.meta.name, request.node, found.unasked)
        answer = pool_pb2.ListVolumesResponse(unasked_nodes=found.unasked)
        shared = pool.spec.dir.shared
        pairs = [(volume, "" if shared else there.node) for there in found.listed for volume in there.volumes]
        for volume, node in sorted(pairs, key=lambda pair: (pair[0].name, pair[1])):
            answer.volumes.append(volume)
            answer.nodes.append(node)
        return answer

    def _holder(self, pool: str, volume: str) -> str:
        """Return the node that has a volume as far as the state says; "" for any."""
        if (image := self._store.peek(Image, image_name(pool, volume))) is not None:
            return image.node
        for guest in self._store.peek_all(Guest):
            if any((disk.pool, disk.volume) == (pool, volume) for disk in guest.spec.disks):
                return guest.status.node
        return ""

    def _task(self, kind: str, image: str, request: ImageRequest | pool_pb2.DeleteImageRequest) -> Task:
        return new_task(kind, f"image/{image}", str(actor()), request.request_id, request)


def _no_reader(pool: str, node: str, unasked: Mapping[str, str]) -> GugusError:
    who = f"node {node}" if node else "no node that has it"
    why = "; ".join(f"{name}: {reason}" for name, reason in sorted(unasked.items())) or "it has no such pool"
    what = f"pool {pool}: {who} {'cannot' if node else 'can'} be asked for its volumes ({why})."
    return unavailable("NO_NODE", what, remedy=f"`gugus pool show {pool}` and `gugus node list` say how they are.")


def _spec_faults(spec: agent_volume.PoolSpec) -> list[GugusError]:
    faults = []
    if message := validate.name(spec.name):
        faults.append(invalid("spec.name", message))
    driver = spec.WhichOneof("driver")
    if driver is None:
        faults.append(invalid("spec.driver", "is not set; the drivers are: btrfs, dir."))
    else:
        path = getattr(spec, driver).path
        if not path.startswith("/") or ".." in path.split("/"):
            faults.append(invalid(f"spec.{driver}.path", f'"{path}" is no absolute path without "..".'))
    return faults


def _import_faults(request: pool_pb2.ImportImageRequest) -> list[GugusError]:
    faults = _image_faults(request.image, request.sha256)
    if not request.source.startswith(_SOURCES):
        what = (
            f'"{request.source}" is neither an absolute path nor an address that begins with {", ".join(_SOURCES[1:])}.'
        )
        faults.append(invalid("source", what))
    return faults


def _image_faults(image: str, sha256: str) -> list[GugusError]:
    faults = []
    if message := validate.name(image):
        faults.append(invalid("image", message))
    if sha256 and not _SHA256.fullmatch(sha256):
        faults.append(invalid("sha256", "is not 64 hexadecimal digits in lower case."))
    return faults
