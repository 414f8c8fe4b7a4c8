"""Ends the tasks of `gugus node fence`, once what was asked for is real.

That is: no HA guest of the node runs there, by proof; its devices, if it has any, were used; recovery has its guests in hand.
"""

import asyncio
from typing import Final

from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, not_found, to_status
from common.logs import get_logger
from common.waiting import happened
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.controllers.fencing import Fencing
from manager.ha.recovery import TAKEN_IN
from manager.store import Change, Txn
from manager.tasks import ENDED, finish, log_line

KIND: Final = "fence-node"

LOOK_S = 0.5

_log = get_logger("fence tasks")


class FenceTasks:
    """The open tasks of one reign."""

    def __init__(self, context: Context, fencing: Fencing) -> None:
        self._context, self._fencing = context, fencing
        self._news = asyncio.Event()

    def changed(self, change: Change) -> None:
        """Take in what may end a task."""
        if change.kind in ("node", "guest") or (change.kind == "task" and change.obj and change.obj.kind == KIND):
            self._news.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._news.clear()
            for task in self._context.store.peek_all(Task):
                if task.kind == KIND and task.state not in ENDED:
                    await self._look(task)
            await happened(self._news, LOOK_S)

    async def _look(self, task: Task) -> None:
        name = task.target.removeprefix("node/")
        node = self._context.store.peek(Node, name)
        if node is None:
            task.error.CopyFrom(to_status(not_found("node", name)))
            finish(task, TASK_STATE_FAILED, "the node was removed")
        elif (waits := self._waits(node, task)) == "":
            finish(task, TASK_STATE_SUCCEEDED, f"{name} is fenced: {node.status.reason}")
        elif not log_line(task, waits):
            return
        try:
            await self._context.store.txn(Txn().put(task, expect_revision=task.meta.revision))
        except (ConsensusError, GugusError) as error:
            _log.info("looked at again", task=task.meta.name, error=str(error))

    def _waits(self, node: Node, task: Task) -> str:
        """Return what is waited for, "" when it has come true."""
        if node.status.fence.asked_task != task.meta.name:
            return ""  # it has its lease again, so it was fenced in between
        if node.status.state != NODE_STATE_FENCED:
            return node.status.reason
        if node.meta.name in self._fencing.rounds:
            return "its fence devices are at work"
        guests = [guest for guest in self._context.store.peek_all(Guest) if guest.status.node == node.meta.name]
        left = [guest.meta.name for guest in guests if not guest.meta.deleting and guest.status.phase not in TAKEN_IN]
        return f"recovery takes {', '.join(sorted(left))} in hand" if left else ""
