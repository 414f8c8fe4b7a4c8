"""Tasks: work that takes longer than a round trip, followed to its end whatever manager dies meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import grpc
from gugus.agent.v1.task_pb2 import TaskState
from gugus.cluster.v1 import task_pb2, task_pb2_grpc

from client.caller import Caller
from common.errors import GugusError, deadline_exceeded, from_status

ENDED = frozenset({TaskState.TASK_STATE_SUCCEEDED, TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_CANCELLED})

OnProgress = Callable[[task_pb2.Task], None]


class TaskFailed(GugusError):
    """A task ended without success; its code, reason, message and remedy are those of its cause."""

    def __init__(self, task: task_pb2.Task, cause: GugusError) -> None:
        super().__init__(
            cause.code,
            cause.reason,
            cause.message,
            field=cause.field,
            remedy=cause.remedy,
            metadata={**cause.metadata, "task": task.meta.name},
            violations=cause.violations,
        )
        self.task = task


def check(task: task_pb2.Task) -> task_pb2.Task:
    """Return an ended task that succeeded. Raises TaskFailed for one that failed or was cancelled."""
    if task.state == TaskState.TASK_STATE_FAILED:
        raise TaskFailed(task, from_status(task.error))
    if task.state == TaskState.TASK_STATE_CANCELLED:
        words = f"the task {task.meta.name} ({task.kind}) was cancelled."
        raise TaskFailed(task, GugusError(grpc.StatusCode.CANCELLED, "TASK_CANCELLED", words))
    return task


class Tasks:
    """The tasks of the cluster."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = task_pb2_grpc.TaskServiceStub

    async def get(self, id_: str) -> task_pb2.Task:
        """Return a task. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "GetTask", task_pb2.GetTaskRequest(id=id_), task_pb2.Task)

    async def list(self, *, target: str = "", active: bool = False) -> Sequence[task_pb2.Task]:
        """Return tasks, newest first: all, those about a "kind/name", those not ended."""
        request = task_pb2.ListTasksRequest(target=target, active=active)
        return (await self._caller.call(self._stub, "ListTasks", request, task_pb2.ListTasksResponse)).tasks

    async def cancel(self, id_: str) -> task_pb2.Task:
        """Ask a task to end. Idempotent. Raises NOT_FOUND, FAILED_PRECONDITION (NOT_CANCELLABLE)."""
        return await self._caller.call(self._stub, "CancelTask", task_pb2.CancelTaskRequest(id=id_), task_pb2.Task)

    async def follow(self, id_: str) -> AsyncGenerator[task_pb2.Task, None]:
        """Yield the task now and after each change, until it has ended. Raises NOT_FOUND, UNAVAILABLE."""
        request = task_pb2.WatchTaskRequest(id=id_)
        async with aclosing(self._caller.stream(self._stub, "WatchTask", lambda: request, task_pb2.Task)) as changes:
            async for task in changes:
                yield task
                if task.state in ENDED:
                    return

    async def wait(
        self,
        task: task_pb2.Task | str,
        on_progress: OnProgress | None = None,
        *,
        timeout_s: float | None = None,
    ) -> task_pb2.Task:
        """Return a task (or the task of an id) once it has ended; `check` tells how. Calls back on each change.

        Raises NOT_FOUND, UNAVAILABLE, DEADLINE_EXCEEDED (after `timeout_s`; the task goes on).
        """
        if not isinstance(task, str) and task.state in ENDED:
            return task
        id_ = task if isinstance(task, str) else task.meta.name
        last: task_pb2.Task | None = None
        try:
            async with asyncio.timeout(timeout_s), aclosing(self.follow(id_)) as changes:
                async for last in changes:
                    if on_progress:
                        on_progress(last)
        except TimeoutError:
            raise deadline_exceeded(
                "TASK_NOT_ENDED",
                f"the task {id_} has not ended within {timeout_s:g} s; it goes on.",
                remedy=f"`gugus task follow {id_}` follows it.",
            ) from None
        if last is None:
            raise RuntimeError(f"the stream of task {id_} ended without a task")
        return last
