"""The image controller: carries out imports and deletions of images as tasks, on a node that has the pool."""

import asyncio

from gugus.agent.v1 import task_pb2 as agent_task
from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1 import pool_pb2
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Image, Pool
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, from_status, precondition, to_status
from manager.controllers.context import TRANSIENT_REASONS, Context, with_epoch
from manager.controllers.queue import WorkQueue
from manager.events import INFO, record
from manager.store import Change, Conflict, Txn
from manager.store.kinds import new
from manager.tasks import ENDED, finish, log_line

IMPORT = "import-image"
DELETE = "delete-image"

SLOTS = 8
"""Imports and deletions carried out at once; the agents have bounds of their own."""

WAIT_S = 2.0
"""A task that waits for a node is looked at so often, and at once when a node changes."""

POLL_S = 0.3
"""The agent's task is looked at so often; progress is stored when it moved by at least PROGRESS_STEP percent."""
PROGRESS_STEP = 5


class ImageController:
    """Tasks about images; the queue's keys are task ids."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._queue = WorkQueue("task", self._turn, slots=SLOTS)

    def changed(self, change: Change) -> None:
        """Take in a change of a task, or of a node on which one may be waiting."""
        if change.kind == "task" and not change.deleted:
            self._queue.wake(change.name)
        elif change.kind == "node":
            for task in self._context.store.peek_all(Task):
                if task.kind in (IMPORT, DELETE) and task.state not in ENDED:
                    self._queue.wake(task.meta.name)

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run()

    async def _turn(self, task_id: str) -> float | None:
        task = self._context.store.peek(Task, task_id)
        if task is None or task.state in ENDED or task.kind not in (IMPORT, DELETE):
            return None
        try:
            if task.kind == IMPORT:
                await self._import(task)
            else:
                await self._delete(task)
        except GugusError as error:
            return await self._failed(task_id, error)
        return None

    async def _failed(self, task_id: str, error: GugusError) -> float | None:
        """Fail the task; or, when the error says nothing of the request, note for what it waits and look again soon."""
        task = self._context.store.peek(Task, task_id)
        if isinstance(error, Conflict):
            raise error
        if task is None or task.state in ENDED:
            return None
        if error.reason in TRANSIENT_REASONS or error.reason == "TASK_NOT_FOUND":
            # TASK_NOT_FOUND: the agent was restarted in the middle; the import begins anew under the same id.
            if task.cancel_requested and error.reason == "NODE_NOT_ONLINE":
                finish(task, TASK_STATE_CANCELLED, f"cancelled; {error.message}")
                await self._put(task)
                return None
            if log_line(task, f"waiting: {error.message}"):
                await self._put(task)
            return WAIT_S
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
        if task.cancel_requested and not task.node:
            finish(task, TASK_STATE_CANCELLED, "cancelled before it began")
            await self._put(task)
            return
        node = self._node_for(request.pool, task.node or request.node)
        if task.node != node.meta.name:
            task.node = node.meta.name
            log_line(task, f"importing on {node.meta.name} from {request.source}")
            task = await self._put(task)
        volume = volume_pb2.ImportVolumeRequest(
            pool=request.pool, name=request.image, source=request.source, sha256=request.sha256, task_id=task.meta.name
        )
        work = await self._context.tell(
            node, lambda agent, epoch: agent.volumes.ImportVolume(with_epoch(volume, epoch))
        )
        while work.state not in ENDED:
            await asyncio.sleep(POLL_S)
            task = await self._follow(task, node, work)
            work = await self._context.tell(
                node, lambda agent, _: agent.tasks.GetTask(agent_task.GetTaskRequest(id=volume.task_id))
            )
        task = self._context.store.peek(Task, task.meta.name) or task
        if work.state == TASK_STATE_CANCELLED:
            finish(task, TASK_STATE_CANCELLED, "cancelled; nothing was left behind")
            await self._put(task)
        elif work.state == TASK_STATE_FAILED:
            raise from_status(work.error)
        else:
            await self._imported(task, node, request)

    async def _follow(self, task: Task, node: Node, work: agent_task.Task) -> Task:
        current = self._context.store.peek(Task, task.meta.name) or task
        if current.cancel_requested:
            await self._context.tell(
                node, lambda agent, _: agent.tasks.CancelTask(agent_task.CancelTaskRequest(id=task.meta.name))
            )
        if work.progress_percent < current.progress_percent + PROGRESS_STEP:
            return current
        current.progress_percent = work.progress_percent
        log_line(current, work.message)
        return await self._put(current)

    async def _imported(self, task: Task, node: Node, request: pool_pb2.ImportImageRequest) -> None:
        listed = await self._context.tell(
            node,
            lambda agent, _: agent.volumes.ListVolumes(volume_pb2.ListVolumesRequest(pool=request.pool)),
        )
        volume = next((v for v in listed.volumes if v.name == request.image), None)
        if volume is None:
            raise precondition(
                "VOLUME_MISSING", f"node {node.meta.name} imported {request.image} but does not list it."
            )
        pool = self._context.store.peek(Pool, request.pool)
        image = new(Image, f"{request.pool}.{request.image}")
        image.pool = request.pool
        image.volume.CopyFrom(volume)
        image.node = "" if pool is not None and pool.spec.dir.shared else node.meta.name
        finish(task, TASK_STATE_SUCCEEDED, f"imported, SHA-256 {volume.sha256}")
        txn = Txn().put(task, expect_revision=task.meta.revision).put(image)
        record(txn, f"image/{image.meta.name}", "IMAGE_IMPORTED", f"imported on {node.meta.name}", INFO)
        await self._context.store.txn(txn)

    async def _delete(self, task: Task) -> None:
        request = pool_pb2.DeleteImageRequest.FromString(task.request)
        image = self._context.store.peek(Image, f"{request.pool}.{request.image}")
        node = self._node_for(request.pool, image.node if image else "")
        await self._context.tell(
            node,
            lambda agent, epoch: agent.volumes.DeleteVolume(
                volume_pb2.DeleteVolumeRequest(epoch=epoch, pool=request.pool, name=request.image)
            ),
        )
        finish(task, TASK_STATE_SUCCEEDED, "deleted")
        txn = Txn().put(task, expect_revision=task.meta.revision)
        await self._context.store.txn(txn.delete(Image, f"{request.pool}.{request.image}"))

    def _node_for(self, pool_name: str, wanted: str) -> Node:
        """Return the node that does the work: the wanted one, or the first online one on which the pool is ready."""
        pool = self._context.store.peek(Pool, pool_name)
        if pool is None:
            raise precondition("POOL_GONE", f'pool "{pool_name}" was deleted meanwhile.')
        online = {node.meta.name: node for node in self._context.online_nodes()}
        ready = sorted(name for name, state in pool.status.nodes.items() if state.ready and name in online)
        if wanted and wanted in ready:
            return online[wanted]
        if wanted and wanted in online and wanted in pool.status.nodes:
            raise precondition("POOL_NOT_READY", f"pool {pool_name}: {pool.status.nodes[wanted].reason}")
        if wanted or not ready:
            # The node or the pool may be on its way up: wait for it rather than fail.
            raise precondition("NODE_NOT_ONLINE", f"no online node has pool {pool_name} ready.")
        return online[ready[0]]

    async def _put(self, task: Task) -> Task:
        result = await self._context.store.txn(Txn().put(task, expect_revision=task.meta.revision))
        task.meta.revision = result.revision
        return task
