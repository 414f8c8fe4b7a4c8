"""The task service: look at tasks, follow one to its end, ask one to end."""

from collections.abc import AsyncIterator

from gugus.cluster.v1 import task_pb2, task_pb2_grpc
from gugus.cluster.v1.task_pb2 import Task

from common.errors import precondition
from manager.controllers.context import Context
from manager.services.cancel import cancellable
from manager.tasks import ENDED


class TaskService(task_pb2_grpc.TaskServiceServicer):
    """Serves `gugus task`."""

    def __init__(self, context: Context) -> None:
        self._store = context.store

    async def GetTask(self, request: task_pb2.GetTaskRequest, context: object) -> Task:
        """Return one task."""
        return await self._store.require(Task, request.id)

    async def ListTasks(self, request: task_pb2.ListTasksRequest, context: object) -> task_pb2.ListTasksResponse:
        """Return tasks, newest first."""
        tasks = [
            task
            for task in await self._store.list(Task)
            if request.target in ("", task.target) and not (request.active and task.state in ENDED)
        ]
        tasks.sort(key=lambda task: task.meta.created_at.ToNanoseconds(), reverse=True)
        return task_pb2.ListTasksResponse(tasks=tasks)

    async def WatchTask(self, request: task_pb2.WatchTaskRequest, context: object) -> AsyncIterator[Task]:
        """Send the task now and after each change, until it ends."""
        task = await self._store.require(Task, request.id)
        revision = self._store.revision
        task = self._store.peek(Task, request.id) or task
        yield task
        if task.state in ENDED:
            return
        async for change in self._store.watch([f"task/{request.id}"], from_revision=revision):
            if change.deleted or change.name != request.id:
                continue
            yield change.obj
            if change.obj.state in ENDED:
                return

    async def CancelTask(self, request: task_pb2.CancelTaskRequest, context: object) -> Task:
        """Ask a task to end. Those that change what a guest is to be cannot: one asks for the opposite instead."""

        def change(task: Task) -> Task | None:
            if task.state in ENDED or task.cancel_requested:
                return None
            if not cancellable(task):
                raise precondition(
                    "NOT_CANCELLABLE",
                    f"a task of kind {task.kind} cannot be cancelled.",
                    remedy="Ask for the opposite instead: stop what starts, delete what is created.",
                )
            task.cancel_requested = True
            return task

        return await self._store.update(Task, request.id, change)
