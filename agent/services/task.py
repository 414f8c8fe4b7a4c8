"""TaskService: long work of this agent process."""

from collections.abc import AsyncIterator
from typing import Any

from gugus.agent.v1 import task_pb2, task_pb2_grpc

from agent.tasks import Tasks


class TaskService(task_pb2_grpc.TaskServiceServicer):
    """See proto/gugus/agent/v1/task.proto."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def GetTask(self, request: task_pb2.GetTaskRequest, context: Any) -> task_pb2.Task:
        """Tell of one task."""
        return await self._tasks.get(request.id, request.wait_ms / 1000)

    async def ListTasks(self, request: task_pb2.ListTasksRequest, context: Any) -> task_pb2.ListTasksResponse:
        """Tell of all tasks."""
        return task_pb2.ListTasksResponse(tasks=self._tasks.list())

    async def WatchTask(self, request: task_pb2.WatchTaskRequest, context: Any) -> AsyncIterator[task_pb2.Task]:
        """Tell of each change of a task."""
        async for task in self._tasks.watch(request.id):
            yield task

    async def CancelTask(self, request: task_pb2.CancelTaskRequest, context: Any) -> task_pb2.Task:
        """Cancel a task."""
        return await self._tasks.cancel(request.id)
