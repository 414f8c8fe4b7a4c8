"""Hosts that go down in order under the policy "migrate": has them emptied before, and brings their guests back after.

Invariant: all it knows is in the state. The task that empties a node has an id that follows from the boot that ends, and it is named in the
node's departure, which stays until the way back is begun in the transaction that ends it.
"""

import time

from gugus.cluster.v1.cluster_pb2 import SHUTDOWN_POLICY_CONDITIONAL, SHUTDOWN_POLICY_MIGRATE
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, DrainNodeRequest, Node, RestoreNodeRequest
from gugus.cluster.v1.task_pb2 import Task

from manager.controllers.context import Context
from manager.controllers.queue import WorkQueue
from manager.events import INFO, record
from manager.ha import departure
from manager.ha.drain import DRAIN, RESTORE
from manager.store import Change, Txn
from manager.tasks import ENDED, new_task

ACTOR = "shutdown"
"""Who asks for a node to be emptied and filled again, in tasks."""

SLOTS = 8
"""Nodes looked at at once."""

LOOK_S = 1.0
"""While a node is being emptied it is looked so often whether its time is over."""


class Departures:
    """All nodes whose hosts go down; the queue's keys are nodes' names."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._queue = WorkQueue("departure", self._turn, slots=SLOTS)

    def changed(self, change: Change) -> None:
        """Take in a change of a node, or of a task that empties one."""
        if change.kind == "node":
            self._queue.wake(change.name)
        elif change.kind == "task" and not change.deleted and change.obj.kind == DRAIN:
            self._queue.wake(change.obj.target.removeprefix("node/"))

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run()

    async def _turn(self, name: str) -> float | None:
        node = self._store.peek(Node, name)
        if node is None or not node.status.HasField("departure"):
            return None
        task = self._store.peek(Task, node.status.departure.task)
        if departure.is_back(node):
            await self._give_up(task)
            await self._bring_back(node)
            return None
        if node.status.departure.policy != SHUTDOWN_POLICY_MIGRATE or not departure.leaving(node):
            return None
        if node.status.state != NODE_STATE_ONLINE:
            await self._give_up(task)
            return None
        if not node.status.departure.task and not node.spec.maintenance:  # in maintenance it was emptied before
            return await self._empty(node)
        if task is None or task.state in ENDED or self._spent(node):
            return await self._let_go(node, task)
        return LOOK_S

    async def _empty(self, node: Node) -> float:
        """Begin to move everything off a node, to come back later."""
        name, boot_id = node.meta.name, node.status.departure.boot_id
        request = DrainNodeRequest(name=name, maintenance=True, budget_ms=departure.MOVE_BUDGET_MS)
        task = new_task(DRAIN, f"node/{name}", ACTOR, boot_id, request)
        node.status.departure.task = task.meta.name
        await self._store.txn(Txn().put(node, expect_revision=node.meta.revision).put(task, expect_absent=True))
        return LOOK_S

    async def _let_go(self, node: Node, task: Task | None) -> float:
        """Let a host go down: what could be moved has been. The rest of its guests is treated as under the policy "conditional"."""
        leave = node.status.departure
        leave.policy = departure.resolved(SHUTDOWN_POLICY_CONDITIONAL, leave.exit)
        txn = Txn().put(node, expect_revision=node.meta.revision)
        record(
            txn,
            f"node/{node.meta.name}",
            "NODE_LEAVES",
            f"{node.meta.name} goes down now: {departure.words(leave)}",
            INFO,
        )
        await self._store.txn(txn)
        await self._give_up(task)
        return 0.0

    async def _give_up(self, task: Task | None) -> None:
        """End the moving off a node that is gone, or has no time left: it must not go on when the node is back."""
        if task is not None and task.state not in ENDED and not task.cancel_requested:
            task.cancel_requested = True
            await self._store.txn(Txn().put(task, expect_revision=task.meta.revision))

    async def _bring_back(self, node: Node) -> None:
        """Begin to move the guests back, unless a person wants the node empty; the departure is over."""
        name, txn = node.meta.name, Txn()
        if not node.spec.maintenance and not node.spec.cordoned:
            task = new_task(RESTORE, f"node/{name}", ACTOR, node.status.departure.task, RestoreNodeRequest(name=name))
            txn.put(task, expect_absent=True)
        node.status.ClearField("departure")
        await self._store.txn(txn.put(node, expect_revision=node.meta.revision))

    def _spent(self, node: Node) -> bool:
        began_s = node.status.departure.at.ToNanoseconds() / departure.NS_PER_S
        return time.time() - began_s > departure.MOVE_BUDGET_MS / departure.MS_PER_S
