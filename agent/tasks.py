"""Long work of this agent process: begun once an id, followed, cancelled. Nothing of it outlives the process."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable

from google.protobuf.message import Message
from gugus.agent.v1 import task_pb2

from common.errors import as_gugus_error, invalid, not_found, to_status
from common.logs import get_logger
from common.trace import bound
from common.waiting import happened

MAX_ENDED_TASKS = 256
"""Ended tasks that are remembered, so that the manager can still read how they ended."""

MAX_WAIT_S = 10.0
"""Longest wait for the end of a task that one call may ask for."""

Progress = Callable[[int, str], None]
_log = get_logger("tasks")


class _Work:
    """A task and everyone who waits for its next change."""

    def __init__(self, task: task_pb2.Task) -> None:
        self.task = task
        self.changed = asyncio.Event()
        self.over = asyncio.Event()
        self.runner: asyncio.Task[None] | None = None

    def set(self, **fields: object) -> None:
        for name, value in fields.items():
            setattr(self.task, name, value)
        self.tell()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
        if self.ended:
            self.over.set()

    @property
    def ended(self) -> bool:
        return self.task.state not in (task_pb2.TASK_STATE_PENDING, task_pb2.TASK_STATE_RUNNING)


class Tasks:
    """The tasks of this process. Used in the event loop only."""

    def __init__(self) -> None:
        self._works: OrderedDict[str, _Work] = OrderedDict()

    def begin(self, id_: str, kind: str, target: str, work: Callable[[Progress], Awaitable[object]]) -> task_pb2.Task:
        """Begin work under an id that the caller chose; the same id again answers the task there is.

        A message that the work returns becomes the task's result.

        Raises INVALID_ARGUMENT when the id is empty or belongs to other work.
        """
        if not id_:
            raise invalid("task_id", "is empty; choose an id, so that a repeated call does not do the work twice")
        known = self._works.get(id_)
        if known is not None:
            if (known.task.kind, known.task.target) != (kind, target):
                raise invalid("task_id", f'"{id_}" is the id of other work: {known.task.kind} of {known.task.target}')
            return known.task
        task = task_pb2.Task(id=id_, kind=kind, target=target, state=task_pb2.TASK_STATE_RUNNING)
        self._works[id_] = _Work(task)
        self._works[id_].runner = asyncio.create_task(self._run(self._works[id_], work))
        self._forget_old()
        return task

    async def get(self, id_: str, wait_s: float = 0.0) -> task_pb2.Task:
        """Return a task: now, or as soon as it has ended, but after `wait_s` (MAX_WAIT_S at most) anyway. Raises TASK_NOT_FOUND."""
        work = self._work(id_)
        if wait_s > 0:
            await happened(work.over, min(wait_s, MAX_WAIT_S))
        return work.task

    def list(self) -> list[task_pb2.Task]:
        """Return all tasks, newest first."""
        return [work.task for work in reversed(self._works.values())]

    def under_way(self) -> bool:
        """Return whether any task has not ended."""
        return any(not work.ended for work in self._works.values())

    async def watch(self, id_: str) -> AsyncIterator[task_pb2.Task]:
        """Yield a task now and after each change, until it has ended. Raises TASK_NOT_FOUND."""
        work = self._work(id_)
        while True:
            changed, ended = work.changed, work.ended
            yield work.task
            if ended:
                return
            await changed.wait()

    async def cancel(self, id_: str) -> task_pb2.Task:
        """End a task, wait until it has cleaned up, and return it. Raises TASK_NOT_FOUND."""
        work = self._work(id_)
        if work.runner is not None and not work.ended:
            work.runner.cancel()
            await asyncio.wait([work.runner])
            if not work.ended:  # it was cancelled before its first step
                work.set(state=task_pb2.TASK_STATE_CANCELLED, message="cancelled")
        return work.task

    async def close(self) -> None:
        """Cancel everything that runs."""
        for id_ in list(self._works):
            await self.cancel(id_)

    async def _run(self, work: _Work, do: Callable[[Progress], Awaitable[object]]) -> None:
        def progress(percent: int, message: str) -> None:
            work.set(progress_percent=min(100, max(0, percent)), message=message)

        with bound(task=work.task.id):
            try:
                result = await do(progress)
                if isinstance(result, Message):
                    work.task.result = result.SerializeToString()
                work.set(state=task_pb2.TASK_STATE_SUCCEEDED, progress_percent=100, message="done")
            except asyncio.CancelledError:
                work.set(state=task_pb2.TASK_STATE_CANCELLED, message="cancelled")
            except Exception as error:
                known = as_gugus_error(error, _log)
                work.task.error.CopyFrom(to_status(known))
                work.set(state=task_pb2.TASK_STATE_FAILED, message=str(known))
            state = task_pb2.TaskState.Name(work.task.state)
            _log.info("task ended", kind=work.task.kind, target=work.task.target, state=state)

    def _work(self, id_: str) -> _Work:
        if id_ not in self._works:
            raise not_found("task", id_, remedy="Tasks end with the agent's process; ask for the work again.")
        return self._works[id_]

    def _forget_old(self) -> None:
        ended = [id_ for id_, work in self._works.items() if work.ended]
        for id_ in ended[: max(0, len(ended) - MAX_ENDED_TASKS)]:
            del self._works[id_]
