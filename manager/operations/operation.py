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
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, from_status, precondition, to_status, unavailable
from manager.agents import Agent
from manager.controllers.context import TRANSIENT_REASONS, Context
from manager.store import Conflict, Txn
from manager.tasks import ENDED, log_line

T = TypeVar("T")
M = TypeVar("M", bound=Message)

POLL_S = 0.25
"""A node's task is looked at so often; its end is told at once."""

LOST_LOOK_S = 0.5
"""While a node works, it is looked so often whether it was fenced meanwhile."""

PROGRESS_STEP = 5
"""Progress is stored when it moved by so many percent, so that a long copy does not fill the log of the state."""

WRITE_TRIES = 8


class Cancelled(GugusError):
    """The operation ended because someone asked for it."""

    REASON = "TASK_CANCELLED"

    def __init__(self) -> None:
        super().__init__(grpc.StatusCode.CANCELLED, self.REASON, "it was cancelled.")


class Operation:
    """An operation on one guest; `ended`: its task has ended, and what is left is to clean up."""

    def __init__(self, context: Context, guest: str, task: str, *, ended: bool = False) -> None:
        self.context = context
        self.name, self.id, self._ended = guest, task, ended

    @property
    def task(self) -> Task:
        """The task as it is stored now. Raises Conflict when it is gone, or has ended (or has not, of one that cleans up)."""
        task = self.context.store.peek(Task, self.id)
        if task is None or (task.state in ENDED) != self._ended:
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
            raise precondition(
                "NODE_NOT_ONLINE",
                f"node {wanted} does not exist." if wanted else "it has no node yet.",
                remedy="`gugus guest explain` tells where it can be.",
            )
        return node

    def check_cancel(self) -> None:
        """Raise Cancelled when someone asked for the end of the task."""
        if self.task.cancel_requested:
            raise Cancelled

    async def note(
        self,
        step: str,
        notes: Message | None = None,
        *,
        log: str = "",
        node: str = "",
        guest: Callable[[Guest], None] | None = None,
        txn: Callable[[Txn], object] = lambda _: None,
    ) -> None:
        """Note which step is under way (durably) before it is begun. `node` is the one that works on it.

        guest, txn: change the guest, and add something, in the same transaction, as `change` does.
        """

        def change(task: Task) -> None:
            task.step = step
            if notes is not None:
                task.step_notes = notes.SerializeToString()
            if node:
                task.node = node
            log_line(task, log)

        if guest is None:
            await self._write_task(change)
            return

        def both(step: Txn) -> None:
            task = self.task
            change(task)
            txn(step.put(task, expect_revision=task.meta.revision))

        await self.change(guest, both)

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
        return self.context.store.peek(Guest, self.name) or guest  # not `self.guest`: this may have given the lock back

    async def tell(self, call: Callable[[Agent, int], Awaitable[T]], node: str = "") -> T:
        """Call the agent of the guest's node, or of another one. Raises Conflict, and what `Context.tell` raises.

        NODE_NOT_ONLINE also when the node is lost meanwhile: what it still works on is nothing that a lock may wait for, and its answer,
        should one come, is of another time.
        """
        self.guest  # noqa: B018  (raises when the lock is not ours any more)
        asked = self.node(node)
        asking = asyncio.ensure_future(self.context.tell(asked, call))
        try:
            while not (await asyncio.wait({asking}, timeout=LOST_LOOK_S))[0]:
                if self._is_lost(asked):
                    what = f"node {asked.meta.name} was lost while it worked on guest {self.name}."
                    raise precondition("NODE_NOT_ONLINE", what, remedy="`gugus node show` tells what became of it.")
            return await asking
        finally:
            asking.cancel()

    def _is_lost(self, asked: Node) -> bool:
        """Whether a node was fenced since it was asked, even if it is back by now."""
        now = self.context.store.peek(Node, asked.meta.name)
        if now is None or now.status.state == NODE_STATE_FENCED:
            return True
        return (now.status.boot_id, now.status.lapse_number) != (asked.status.boot_id, asked.status.lapse_number)

    async def follow(
        self, work: agent_task.Task, node: str = "", *, share: tuple[int, int] = (0, 100)
    ) -> agent_task.Task:
        """Follow a node's task to its end, and return it: its progress, as the given share of the whole, and its words go into ours.

        A wish to cancel is passed on. Raises Cancelled, what the node's task failed with (WORK_INTERRUPTED for what says nothing of
        the work), and TASK_NOT_FOUND when the agent was restarted meanwhile: its work is then gone and may be asked for again
        under the same id.
        """
        low, high = share
        asked = False
        while work.state not in ENDED:
            await self._progress(low + work.progress_percent * (high - low) // 100, work.message)
            if self.task.cancel_requested and not asked:
                asked = True
                request = agent_task.CancelTaskRequest(id=work.id)
                await self.tell(lambda agent, _, r=request: agent.tasks.CancelTask(r), node)  # type: ignore[misc]
            work = await self._look(work.id, node)
        if work.state == TASK_STATE_CANCELLED and self.task.cancel_requested:
            raise Cancelled
        if work.state == TASK_STATE_CANCELLED:  # nobody asked for it: the agent was ended
            raise _interrupted(work.message)
        if work.state == TASK_STATE_FAILED:
            raise _of_work(from_status(work.error))
        return work

    async def _look(self, work: str, node: str) -> agent_task.Task:
        """Look at a node's task when it has ended, or after POLL_S. An agent that does not know of waiting answers at once."""
        began_s = time.monotonic()
        get = agent_task.GetTaskRequest(id=work, wait_ms=round(POLL_S * 1000))
        found = await self.tell(lambda agent, _: agent.tasks.GetTask(get), node)
        if found.state not in ENDED:
            await asyncio.sleep(max(0.0, POLL_S - (time.monotonic() - began_s)))
        return found

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


def _of_work(error: GugusError) -> GugusError:
    """Return the error of work that has ended: none that is tried again, for asking again only tells of the same end."""
    if error.reason not in TRANSIENT_REASONS:
        return error
    return _interrupted(error.message)


def _interrupted(why: str) -> GugusError:
    return unavailable("WORK_INTERRUPTED", f"the work on the node was interrupted: {why}", remedy="Ask for it again.")
