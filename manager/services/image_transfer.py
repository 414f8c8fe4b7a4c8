"""Images and volumes on their way between clients and nodes: pieces are passed on one by one, and nothing is held here.

An upload is a task that stands in the state with its node before the first piece; its id is the upload's on that node. So whoever acts
can take the next piece, and the node says where it belongs.
"""

import time
from collections.abc import AsyncGenerator

import grpc
from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.task_pb2 import TASK_STATE_SUCCEEDED
from gugus.cluster.v1 import pool_pb2
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.task_pb2 import Task

from common.errors import from_rpc_error, from_status, invalid, precondition, resource_exhausted
from common.units import format_size
from manager.controllers import images
from manager.controllers.context import Context, with_epoch
from manager.services.requests import upon_latest
from manager.store import Store, Txn
from manager.tasks import ENDED, log_line

PIECE_BYTES = 8 * 1024 * 1024
"""Largest piece; half of what a message may have (common.rpc.options.MAX_MESSAGE_BYTES)."""

RECEIVED_PERCENT = 50
"""Progress of an upload that was received whole; the rest is its import."""

TOLD_S = 2.0
"""Progress of an upload is stored so often at most."""


def refuse_without_room(store: Store, pool: Pool, node: str, size_bytes: int) -> None:
    """Raise NO_SPACE when an upload can never fit into what the node last said is free, less what others will fill."""
    state = pool.status.nodes[node]
    coming = [_to_come(task) for task in store.peek_all(Task) if _goes_into(task, pool, node)]
    if not state.capacity_bytes or size_bytes <= state.available_bytes - sum(coming):
        return  # an older agent does not say, or there is room
    others = f", of which {len(coming)} uploads under way need {format_size(sum(coming))}" if coming else ""
    raise resource_exhausted(
        "NO_SPACE",
        f"the file has {format_size(size_bytes)}; pool {pool.meta.name} on {node} has {format_size(state.available_bytes)} free{others}.",
        remedy="Delete volumes, enlarge the file system, or choose another pool or node.",
    )


def _goes_into(task: Task, pool: Pool, node: str) -> bool:
    """Return whether a task is an upload under way that takes room in a pool on a node."""
    if task.kind != images.UPLOAD or task.state in ENDED or task.step == images.RECEIVED:
        return False
    same_pool = pool_pb2.UploadImageRequest.FromString(task.request).pool == pool.meta.name
    return same_pool and (pool.spec.dir.shared or task.node == node)


def _to_come(task: Task) -> int:
    """Return how many bytes of an upload are still to be received, as far as its progress tells: half of it is the receiving."""
    size_bytes = pool_pb2.UploadImageRequest.FromString(task.request).size_bytes
    return size_bytes - size_bytes * min(task.progress_percent, RECEIVED_PERCENT) // RECEIVED_PERCENT


class Transfers:
    """The calls that carry bytes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._told_s: dict[str, float] = {}

    async def write(self, request: pool_pb2.WriteImageRequest) -> pool_pb2.WriteImageResponse:
        """Pass a piece on, or tell how far the upload is; when all have come, the task goes on by itself."""
        if len(request.data) > PIECE_BYTES:
            raise invalid("data", f"has {len(request.data)} bytes.", remedy=f"Send at most {PIECE_BYTES} at once.")
        task = await self._task(request.task, images.UPLOAD)
        asked = pool_pb2.UploadImageRequest.FromString(task.request)
        if task.state == TASK_STATE_SUCCEEDED or task.step == images.RECEIVED:
            return pool_pb2.WriteImageResponse(received_bytes=asked.size_bytes)
        if task.state in ENDED or task.cancel_requested:
            raise _ended(task)
        node = images.node_for(self._context, asked.pool, task.node)
        upload = await self._pass_on(node, asked, request)
        if upload.received_bytes == upload.total_bytes:
            await upon_latest(lambda: self._note(request.task, 100, done=True))
            self._told_s.pop(request.task, None)
        elif time.monotonic() - self._told_s.get(request.task, 0) > TOLD_S:
            self._told_s[request.task] = time.monotonic()
            percent = upload.received_bytes * RECEIVED_PERCENT // upload.total_bytes
            await upon_latest(lambda: self._note(request.task, percent, done=False))
        return pool_pb2.WriteImageResponse(received_bytes=upload.received_bytes)

    async def read(self, request: pool_pb2.ReadExportRequest) -> AsyncGenerator[volume_pb2.ExportChunk, None]:
        """Pass the bytes of an export on, as fast as the client takes them."""
        task = await self._task(request.task, images.EXPORT)
        if task.state != TASK_STATE_SUCCEEDED:
            if task.state in ENDED:
                raise _ended(task)
            raise precondition("EXPORT_NOT_READY", "the export is being prepared.", remedy="Wait for its task.")
        node = await self._store.require(Node, task.node)
        call = self._context.agents.of(node).volumes.ReadExport(
            volume_pb2.ReadExportRequest(id=request.task, offset=request.offset)
        )
        try:
            async for chunk in call:
                yield chunk
        except grpc.aio.AioRpcError as error:
            known = from_rpc_error(error)
            known.metadata["node"] = task.node
            raise known from error
        finally:
            call.cancel()

    async def end(self, id_: str) -> None:
        """End an export, if its node can be reached."""
        task = await self._task(id_, images.EXPORT)
        if task.node:
            node = await self._store.require(Node, task.node)
            await self._context.tell(
                node, lambda agent, _: agent.volumes.EndExport(volume_pb2.EndExportRequest(id=id_))
            )

    async def _pass_on(
        self, node: Node, asked: pool_pb2.UploadImageRequest, request: pool_pb2.WriteImageRequest
    ) -> volume_pb2.Upload:
        if not request.data:
            begin = volume_pb2.BeginUploadRequest(pool=asked.pool, id=request.task, total_bytes=asked.size_bytes)
            return await self._context.tell(
                node, lambda agent, epoch: agent.volumes.BeginUpload(with_epoch(begin, epoch))
            )
        write = volume_pb2.WriteUploadRequest(
            pool=asked.pool, id=request.task, offset=request.offset, data=request.data
        )
        return await self._context.tell(node, lambda agent, epoch: agent.volumes.WriteUpload(with_epoch(write, epoch)))

    async def _note(self, id_: str, percent: int, *, done: bool) -> None:
        task = await self._store.require(Task, id_)
        if task.state in ENDED or task.step == images.RECEIVED:
            return
        task.progress_percent = max(task.progress_percent, percent // 2 if done else percent)
        log_line(task, "received whole; importing it" if done else "receiving")
        if done:
            task.step = images.RECEIVED
        await self._store.txn(Txn().put(task, expect_revision=task.meta.revision))

    async def _task(self, id_: str, kind: str) -> Task:
        task = await self._store.require(Task, id_)
        if task.kind != kind:
            raise invalid("task", f"is a task of the kind {task.kind}.", remedy=f"Name one of the kind {kind}.")
        return task


def _ended(task: Task) -> Exception:
    if task.HasField("error"):
        return from_status(task.error)
    return precondition("TASK_ENDED", "the task was cancelled.", remedy="Begin anew.")
