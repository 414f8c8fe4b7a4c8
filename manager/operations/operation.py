"""One operation under way: what its handler sees of the task and the guest, and how it changes them and talks to nodes.

Invariant: everything an operation writes or tells a node happens while its guest's lock names its task; when it does not any more, a
Conflict ends the turn before anything is done.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from gugus.agent.v1 import task_pb2 as agent_task
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, from_status, precondition, to_status
from manager.agents import Agent
from manager.controllers.context import Context
from manager.store import Conflict, Txn
from manager.tasks import ENDED, log_line

T = TypeVar("T")
M = TypeVar("M", bound=Message)

POLL_S = 0.25
"""A node's task is looked at so often; at first more often, after a fortieth of the time that it has taken so far."""
FIRST_POLL_S = 0.02

PROGRESS_STEP = 5
"""Progress is stored when it moved by so many percent, so that a long copy does not fill the log of the state."""

WRITE_TRIES = 8


class Cancelled(GugusError):
    """The operation ended because someone asked for it."""

    REASON = "TASK_CANCELLED"

    def __init__(self) -> None:
        super().__init__(grpc.StatusCode.CANCELLED, self.REASON, "it was cancelled.")


class Operation:
    """An operation on one guest."""

    def __init__(self, context: Context, guest: str, task: str) -> None:
        self.context = context
        self.name, self.id = guest, task

    @property
    def task(self) -> Task:
        """The task as it is stored now. Raises Conflict when it is gone or has ended."""
        task = self.context.store.peek(Task, self.id)
        if task is None or task.state in ENDED:
            raise Conflict([f"task/{self.id}"])
        return task

    @property
    def guest(self) -> Guest:
        """The guest as it is stored now. Raises Conflict when it is gone or another task's."""
        guest = self.context.store.peek(Guest, self.name)
        if guest is None or guest.status.lock.task != self.id:
            raise Conflict([f"guest/{self.name}"])
        return guest

    @property
    def step(self) -> str:
        """The step that was noted last; empty at first."""
        return self.task.step

    def request(self, cls: type[M]) -> M:
        """Return the request that the task carries out."""
        return cls.FromString(self.task.request)

    def notes(self, cls: type[M]) -> M:
        """Return what was noted last; an empty message at first."""
        return cls.FromString(self.task.step_notes)

    def node(self, name: str = "") -> Node:
        """Return a node, the guest's own by default. Raises NODE_NOT_ONLINE when there is none (any more)."""
        wanted = name or self.guest.status.node
        node = self.context.store.peek(Node, wanted) if wanted else None
        if node is None:
            raise precondition("NODE_NOT_ONLINE", f"node {wanted} does not exist." if wanted else "it has no node yet.")
        return node

    def check_cancel(self) -> None:
        """Raise Cancelled when someone asked for the end of the task."""
        if self.task.cancel_requested:
            raise Cancelled

    async def note(self, step: str, notes: Message | None = None, *, log: str = "", node: str = "") -> None:
        """Note which step is under way (durably) before it is begun. `node` is the one that works on it."""

        def change(task: Task) -> None:
            task.step = step
            if notes is not None:
                task.step_notes = notes.SerializeToString()
            if node:
                task.node = node
            log_line(task, log)

        await self._write_task(change)

    async def log(self, text: str, percent: int | None = None) -> None:
        """Add a line to the task's log, and tell how far it is."""

        def change(task: Task) -> None:
            log_line(task, text)
            if percent is not None:
                task.progress_percent = percent

        await self._write_task(change)

    async def failed(self, error: GugusError) -> None:
        """Note that the run failed, or was cancelled: from here on it is only taken back."""
        await self._write_task(lambda task: task.error.CopyFrom(to_status(error)))

    async def change(self, mutate: Callable[[Guest], None], txn: Callable[[Txn], object] = lambda _: None) -> Guest:
        """Change the guest, and whatever else `txn` adds, in one transaction. Both may be called several times. Raises Conflict."""
        for attempt in range(WRITE_TRIES):
            guest = self.guest
            mutate(guest)
            step = Txn().put(guest, expect_revision=guest.meta.revision)
            txn(step)
            try:
                await self.context.store.txn(step)
            except Conflict:
                if attempt == WRITE_TRIES - 1:
                    raise
                await asyncio.sleep(0)
                continue
            break
        return self.guest

    async def tell(self, call: Callable[[Agent, int], Awaitable[T]], node: str = "") -> T:
        """Call the agent of the guest's node, or of another one. Raises Conflict, and what `Context.tell` raises."""
        self.guest  # noqa: B018  (raises when the lock is not ours any more)
        return await self.context.tell(self.node(node), call)

    async def follow(self, work: agent_task.Task, node: str = "", *, share: tuple[int, int] = (0, 100)) -> None:
        """Follow a node's task to its end: its progress, as the given share of the whole, and its words go into our task.

        A wish to cancel is passed on. Raises Cancelled, what the node's task failed with, and TASK_NOT_FOUND when the agent was
        restarted meanwhile: its work is then gone and may be asked for again under the same id.
        """
        low, high = share
        asked, began_s = False, time.monotonic()
        while work.state not in ENDED:
            await self._progress(low + work.progress_percent * (high - low) // 100, work.message)
            if self.task.cancel_requested and not asked:
                asked = True
                request = agent_task.CancelTaskRequest(id=work.id)
                await self.tell(lambda agent, _, r=request: agent.tasks.CancelTask(r), node)  # type: ignore[misc]
            await asyncio.sleep(min(POLL_S, max(FIRST_POLL_S, (time.monotonic() - began_s) / 40)))
            get = agent_task.GetTaskRequest(id=work.id)
            work = await self.tell(lambda agent, _, r=get: agent.tasks.GetTask(r), node)  # type: ignore[misc]
        if work.state == TASK_STATE_CANCELLED:
            raise Cancelled
        if work.state == TASK_STATE_FAILED:
            raise from_status(work.error)

    async def _progress(self, percent: int, text: str) -> None:
        task = self.task
        if percent >= task.progress_percent + PROGRESS_STEP or (text and (not task.log or task.log[-1].text != text)):
            await self.log(text, max(percent, task.progress_percent))

    async def _write_task(self, change: Callable[[Task], None]) -> None:
        self.guest  # noqa: B018  (raises when the lock is not ours any more)
        for attempt in range(WRITE_TRIES):
            task = self.task
            before = task.SerializeToString(deterministic=True)
            change(task)
            if task.SerializeToString(deterministic=True) == before:
                return  # a write would wake this guest's turn again, at once and for ever
            try:
                await self.context.store.txn(Txn().put(task, expect_revision=task.meta.revision))
            except Conflict:
                if attempt == WRITE_TRIES - 1:
                    raise
                await asyncio.sleep(0)
                continue
            return
