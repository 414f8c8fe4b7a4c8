"""The image controller: carries out what is asked of images as tasks, on a node that has the pool.

Imports, uploads (whose pieces the pool service passes on; here their import), images made from guests' disks, exports, deletions.
"""

import time
from collections.abc import Awaitable, Callable

from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1 import pool_pb2
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Image, Pool
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, precondition, to_status
from manager.controllers import agent_work
from manager.controllers.compile import image_name
from manager.controllers.context import TRANSIENT_REASONS, Context, with_epoch
from manager.controllers.queue import WorkQueue
from manager.events import INFO, record
from manager.store import Change, Conflict, Txn
from manager.store.kinds import new
from manager.tasks import ENDED, finish, log_line

IMPORT = "import-image"
DELETE = "delete-image"
UPLOAD = "upload-image"
CREATE = "create-image"
EXPORT = "export-volume"
KINDS = frozenset({IMPORT, DELETE, UPLOAD, CREATE, EXPORT})
CANCELLABLE = frozenset({IMPORT, UPLOAD, CREATE, EXPORT})

RECEIVED = "received"
"""Step of an upload whose pieces have all come."""

SLOTS = 8
"""Tasks carried out at once; the agents have bounds of their own."""

WAIT_S = 2.0
"""A task that waits for a node is looked at so often, and at once when a node changes."""

POLL_S = 0.3
"""The agent's task is looked at so often."""

UPLOAD_LOOK_S = 60.0
UPLOAD_BEGIN_S = 3600.0
"""An upload that the node does not know is given up so long after it was asked for."""


class ImageController:
    """Tasks about images; the queue's keys are task ids."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._queue = WorkQueue("task", self._turn, slots=SLOTS)
        self._work: dict[str, Callable[[Task], Awaitable[float | None]]] = {
            IMPORT: self._import,
            DELETE: self._delete,
            UPLOAD: self._upload,
            CREATE: self._create,
            EXPORT: self._export,
        }

    def changed(self, change: Change) -> None:
        """Take in a change of a task, or of a node on which one may be waiting."""
        if change.kind == "task" and not change.deleted:
            self._queue.wake(change.name)
        elif change.kind == "node":
            for task in self._context.store.peek_all(Task):
                if task.kind in KINDS and task.state not in ENDED:
                    self._queue.wake(task.meta.name)

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run()

    async def _turn(self, task_id: str) -> float | None:
        task = self._context.store.peek(Task, task_id)
        if task is None or task.state in ENDED or task.kind not in KINDS:
            return None
        try:
            if task.cancel_requested and task.kind in CANCELLABLE and not task.node:
                finish(task, TASK_STATE_CANCELLED, "cancelled before it began")
                await agent_work.put(self._context, task)
                return None
            return await self._work[task.kind](task)
        except GugusError as error:
            return await self._failed(task_id, error)

    async def _failed(self, task_id: str, error: GugusError) -> float | None:
        """Fail the task; or, when the error says nothing of the request, note for what it waits and look again soon."""
        task = self._context.store.peek(Task, task_id)
        if isinstance(error, Conflict):
            raise error
        if task is None or task.state in ENDED:
            return None
        if error.reason in TRANSIENT_REASONS or error.reason == "TASK_NOT_FOUND":
            # TASK_NOT_FOUND: the agent was restarted in the middle; the work begins anew under the same id.
            if task.cancel_requested and error.reason == "NODE_NOT_ONLINE":
                finish(task, TASK_STATE_CANCELLED, f"cancelled; {error.message}")
                await agent_work.put(self._context, task)
                return None
            if log_line(task, f"waiting: {error.message}"):
                await agent_work.put(self._context, task)
            return WAIT_S
        if task.kind == UPLOAD:
            await self._end_upload(task)
        task.error.CopyFrom(to_status(error))
        finish(task, TASK_STATE_FAILED, str(error))
        txn = Txn().put(task, expect_revision=task.meta.revision)
        image = self._context.store.peek(Image, task.target.removeprefix("image/"))
        if image is not None and image.meta.deleting:
            image.meta.deleting = False  # it is still there, and may be used or deleted again
            txn.put(image, expect_revision=image.meta.revision)
        await self._context.store.txn(txn)
        return None

    async def _import(self, task: Task) -> None:
        request = pool_pb2.ImportImageRequest.FromString(task.request)
        node = node_for(self._context, request.pool, task.node or request.node)
        words = f"importing on {node.meta.name} from {request.source}"
        task = await agent_work.assign(self._context, task, node, words)
        await self._bring_in(task, node, request.pool, request.image, request.source, request.sha256)

    async def _upload(self, task: Task) -> float | None:
        request = pool_pb2.UploadImageRequest.FromString(task.request)
        node = node_for(self._context, request.pool, task.node)
        if task.step == RECEIVED:
            source = f"upload:{task.meta.name}"
            await self._bring_in(task, node, request.pool, request.image, source, request.sha256)
            return None
        if task.cancel_requested:
            await self._end_upload(task)
            finish(task, TASK_STATE_CANCELLED, "cancelled; what was received is removed")
            await agent_work.put(self._context, task)
            return None
        try:
            ask = volume_pb2.GetUploadRequest(pool=request.pool, id=task.meta.name)
            await self._context.tell(node, lambda agent, _: agent.volumes.GetUpload(ask))
        except GugusError as error:
            if error.reason != "UPLOAD_NOT_FOUND":
                raise
            age_s = time.time() - task.meta.created_at.ToMilliseconds() / 1000
            if age_s < UPLOAD_BEGIN_S and not task.progress_percent:
                return UPLOAD_LOOK_S  # the client has not begun yet
            raise precondition("UPLOAD_GIVEN_UP", "nothing came for too long.", remedy="Upload it again.") from error
        return UPLOAD_LOOK_S

    async def _end_upload(self, task: Task) -> None:
        """Remove what a node has received, if it can be reached; it removes what is idle by itself."""
        request = pool_pb2.UploadImageRequest.FromString(task.request)
        end = volume_pb2.EndUploadRequest(pool=request.pool, id=task.meta.name)
        try:
            node = node_for(self._context, request.pool, task.node)
            await self._context.tell(node, lambda agent, epoch: agent.volumes.EndUpload(with_epoch(end, epoch)))
        except GugusError as error:
            log_line(task, f"what was received is left to be removed by the node: {error.message}")

    async def _bring_in(self, task: Task, node: Node, pool: str, image: str, source: str, sha256: str) -> None:
        volume = volume_pb2.ImportVolumeRequest(
            pool=pool, name=image, source=source, sha256=sha256, task_id=task.meta.name
        )
        done = await agent_work.carry(
            self._context,
            task,
            node,
            lambda agent, epoch: agent.volumes.ImportVolume(with_epoch(volume, epoch)),
            POLL_S,
        )
        if done is not None:
            await self._made(done, node, pool, image, "IMAGE_IMPORTED")

    async def _create(self, task: Task) -> None:
        request = pool_pb2.CreateImageRequest.FromString(task.request)
        guest = self._context.store.peek(Guest, request.guest)
        disk = next((d for d in guest.spec.disks if request.disk in ("", d.name)), None) if guest else None
        if guest is None or disk is None:
            raise precondition(
                "GUEST_GONE",
                f'guest "{request.guest}" or its disk is there no more.',
                remedy="Choose a disk that is there.",
            )
        node = node_for(self._context, request.pool, task.node or guest.status.node)
        words = f"copying the disk {disk.name} of {request.guest} on {node.meta.name}"
        task = await agent_work.assign(self._context, task, node, words)
        copy = volume_pb2.CopyVolumeRequest(
            pool=request.pool,
            name=request.image,
            source_pool=disk.pool,
            source_volume=disk.volume,
            as_image=True,
            task_id=task.meta.name,
        )
        done = await agent_work.carry(
            self._context, task, node, lambda agent, epoch: agent.volumes.CopyVolume(with_epoch(copy, epoch)), POLL_S
        )
        if done is not None:
            await self._made(done, node, request.pool, request.image, "IMAGE_CREATED")

    async def _made(self, task: Task, node: Node, pool_name: str, image_: str, reason: str) -> None:
        """Write the images down that a node has made: the one asked for, and further disks of its source."""
        listed = await self._context.tell(
            node, lambda agent, _: agent.volumes.ListVolumes(volume_pb2.ListVolumesRequest(pool=pool_name))
        )
        volumes = {v.name: v for v in listed.volumes if v.name == image_ or v.part_of == image_}
        if image_ not in volumes:
            raise precondition(
                "VOLUME_MISSING",
                f"node {node.meta.name} made {image_} but does not list it.",
                remedy=f"`gugus pool check {pool_name}` tells what is wrong there.",
            )
        pool = self._context.store.peek(Pool, pool_name)
        txn = Txn()
        for volume in volumes.values():
            image = new(Image, image_name(pool_name, volume.name))
            image.pool = pool_name
            image.volume.CopyFrom(volume)
            image.node = "" if pool is not None and pool.spec.dir.shared else node.meta.name
            txn.put(image)
            record(txn, f"image/{image.meta.name}", reason, f"made on {node.meta.name}", INFO)
        sha256 = volumes[image_].sha256
        others = f" with {', '.join(sorted(volumes.keys() - {image_}))}" if len(volumes) > 1 else ""
        words = f"imported, SHA-256 {sha256}" if sha256 else "made"
        finish(task, TASK_STATE_SUCCEEDED, words + others)
        await self._context.store.txn(txn.put(task, expect_revision=task.meta.revision))

    async def _export(self, task: Task) -> None:
        request = pool_pb2.ExportVolumeRequest.FromString(task.request)
        node = node_for(self._context, request.pool, task.node or request.node)
        words = f"preparing {request.volume} on {node.meta.name}"
        task = await agent_work.assign(self._context, task, node, words)
        export = volume_pb2.BeginExportRequest(
            pool=request.pool, name=request.volume, format=request.format, task_id=task.meta.name
        )
        done = await agent_work.carry(
            self._context, task, node, lambda agent, epoch: agent.volumes.BeginExport(with_epoch(export, epoch)), POLL_S
        )
        if done is not None:
            finish(done, TASK_STATE_SUCCEEDED, f"ready to be read on {node.meta.name}")
            await agent_work.put(self._context, done)

    async def _delete(self, task: Task) -> None:
        request = pool_pb2.DeleteImageRequest.FromString(task.request)
        image = self._context.store.peek(Image, image_name(request.pool, request.image))
        node = node_for(self._context, request.pool, image.node if image else "")
        await self._context.tell(
            node,
            lambda agent, epoch: agent.volumes.DeleteVolume(
                volume_pb2.DeleteVolumeRequest(epoch=epoch, pool=request.pool, name=request.image)
            ),
        )
        finish(task, TASK_STATE_SUCCEEDED, "deleted")
        txn = Txn().put(task, expect_revision=task.meta.revision)
        await self._context.store.txn(txn.delete(Image, image_name(request.pool, request.image)))


def node_for(context: Context, pool_name: str, wanted: str) -> Node:
    """Return the node that works on a pool: the wanted one, or the first online one on which it is ready.

    Raises POOL_GONE, POOL_NOT_READY, NODE_NOT_ONLINE.
    """
    pool = context.store.peek(Pool, pool_name)
    if pool is None:
        raise precondition("POOL_GONE", f'pool "{pool_name}" was deleted meanwhile.', remedy="Choose another pool.")
    online = {node.meta.name: node for node in context.online_nodes()}
    ready = sorted(name for name, state in pool.status.nodes.items() if state.ready and name in online)
    if wanted and wanted in ready:
        return online[wanted]
    if wanted and wanted in online and wanted in pool.status.nodes:
        raise precondition(
            "POOL_NOT_READY", f"pool {pool_name}: {pool.status.nodes[wanted].reason}", remedy=_pool_remedy(pool_name)
        )
    if wanted or not ready:
        # The node or the pool may be on its way up: wait for it rather than fail.
        raise precondition(
            "NODE_NOT_ONLINE", f"no online node has pool {pool_name} ready.", remedy=_pool_remedy(pool_name)
        )
    return online[ready[0]]


def _pool_remedy(pool: str) -> str:
    return f"`gugus pool show {pool}` tells how it is on each node."
