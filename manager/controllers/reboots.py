"""Reboots hosts one after another: looks whether the cluster can do without each, has it emptied, rebooted and filled again.

Invariant: how far it is stands in the task's notes, and each step is written down, with what it begins, in one transaction before anything
of it happens. The tasks it begins have ids that follow from its own, and a host is told to reboot by naming the boot that is to end; so a
manager that takes over goes on, and nothing happens twice.
"""

import time

from gugus.agent.v1.node_pb2 import RebootHostRequest
from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TaskState
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_ONLINE,
    REBOOT_STEP_DONE,
    REBOOT_STEP_DRAIN,
    REBOOT_STEP_FAILED,
    REBOOT_STEP_REBOOT,
    REBOOT_STEP_RESTORE,
    REBOOT_STEP_SKIPPED,
    DrainNodeRequest,
    Node,
    NodeReboot,
    RebootNodesRequest,
    RebootStep,
    RestoreNodeRequest,
    RollingReboot,
)
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, from_status, to_status
from manager.controllers import drains
from manager.controllers.context import TRANSIENT_REASONS, Context
from manager.controllers.guest_step import ALIVE_PHASES
from manager.controllers.placing import stored
from manager.controllers.queue import WorkQueue
from manager.controllers.voters import Voters
from manager.events import INFO, WARNING, record
from manager.ha import rolling
from manager.ha import rolling_steps as steps
from manager.ha.departure import leaving
from manager.ha.drain import DRAIN, RESTORE
from manager.store import Change, Txn
from manager.tasks import ENDED, finish, log_line, new_task, task_id

KIND = "reboot-nodes"
KINDS = frozenset({KIND})
CANCELLABLE = KINDS

LOOK_S = 1.0
"""While something is under way it is looked so often how far it is; a change of a node or a task is looked at at once."""

REBOOT_AGAIN_S = 15.0
"""A host that was told to reboot and does not go down is told so often."""


class Reboots:
    """All rolling reboots; the queue's keys are tasks' ids."""

    def __init__(self, context: Context, voters: Voters) -> None:
        self._context = context
        self._store = context.store
        self._voters = voters
        self._queue = WorkQueue("reboot", self._turn, slots=1)
        self._told: dict[str, float] = {}

    def changed(self, change: Change) -> None:
        """Take in a change of a rolling reboot, of what it began, or of a node."""
        mine = change.kind == "task" and not change.deleted and change.obj.kind in {KIND, *drains.KINDS}
        if change.kind == "node" or mine:
            for task in self._store.peek_all(Task):
                if task.kind == KIND and task.state not in ENDED:
                    self._queue.wake(task.meta.name)

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run()

    async def _turn(self, id_: str) -> float | None:
        task = self._store.peek(Task, id_)
        if task is None or task.state in ENDED:
            return None
        notes = RollingReboot.FromString(task.step_notes)
        for one in notes.nodes:
            if one.step in rolling.UNDER_WAY and await self._advance(task, notes, one):
                return 0.0  # it was written down: look at the task anew
        state = steps.outcome(notes, cancelled=task.cancel_requested)
        if state is not None:
            return await self._end(task, notes, state)
        if not task.cancel_requested and await self._begin_next(task, notes):
            return 0.0
        return LOOK_S

    # -- one host's turn begins

    async def _begin_next(self, task: Task, notes: RollingReboot) -> bool:
        """Begin with the host whose turn it is. Returns whether anything was written down."""
        request, me = RebootNodesRequest.FromString(task.request), self._context.acting.holder()
        names = rolling.due(notes, self._voters.names(), me, request.parallel or 1)
        if not names:
            return False
        one = next(one for one in notes.nodes if one.node == names[0])
        node = self._store.peek(Node, one.node)
        if why := steps.skipped(node, if_required=request.if_required):
            return await self._note(task, notes, one, REBOOT_STEP_SKIPPED, reason=why)
        votes = one.node in self._voters.names()
        try:
            no_majority = self._voters.majority_without(one.node) if votes else ""
            steps.require_spare(one.node, node, notes, no_majority, stored(self._context))
        except GugusError as error:
            return await self._fail(task, notes, one, error)
        if one.node == me:
            return await self._hand_over(task, notes, one)
        if node is None:
            return False
        return await self._drain(task, notes, one, node)

    async def _hand_over(self, task: Task, notes: RollingReboot, one: NodeReboot) -> bool:
        """Let another manager act: it goes on with this task, and this one's host is an ordinary one then."""
        await self._note_log(task, f"{one.node} acts for the cluster and is next: handing over")
        try:
            await self._voters.transfer("", one.node)
        except GugusError as error:
            if error.reason in TRANSIENT_REASONS:
                raise
            fresh = self._store.peek(Task, task.meta.name)
            return fresh is not None and await self._fail(fresh, notes, one, error)
        return True

    async def _drain(self, task: Task, notes: RollingReboot, one: NodeReboot, node: Node) -> bool:
        request = RebootNodesRequest.FromString(task.request)
        wanted = DrainNodeRequest(name=one.node, maintenance=True, budget_ms=request.drain_budget_ms)
        drain = new_task(DRAIN, f"node/{one.node}", task.actor, "", wanted)
        drain.meta.name = one.task = task_id(DRAIN, f"node/{one.node}", task.meta.name, "reboot")
        one.boot_id = node.status.boot_id
        one.pools[:], one.networks[:] = node.status.facts.pools, node.status.facts.networks
        node.spec.maintenance = True
        txn = Txn().put(drain, expect_absent=True).put(node, expect_revision=node.meta.revision)
        return await self._note(task, notes, one, REBOOT_STEP_DRAIN, txn=txn)

    # -- how far a host is

    async def _advance(self, task: Task, notes: RollingReboot, one: NodeReboot) -> bool:
        """Take a host to its next step when it is due. Returns whether anything was written down."""
        try:
            if one.step == REBOOT_STEP_DRAIN:
                return await self._drained(task, notes, one)
            if one.step == REBOOT_STEP_REBOOT:
                return await self._rebooted(task, notes, one)
            return await self._restored(task, notes, one)
        except GugusError as error:
            if error.reason in TRANSIENT_REASONS:
                return False  # asked again at the next look; `_rebooted` bounds it
            return await self._fail(task, notes, one, error)

    async def _drained(self, task: Task, notes: RollingReboot, one: NodeReboot) -> bool:
        drain = self._store.peek(Task, one.task)
        asked = drain is None or drain.state in ENDED or drain.cancel_requested
        if task.cancel_requested and drain is not None and not asked:
            drain.cancel_requested = True
            await self._store.txn(Txn().put(drain, expect_revision=drain.meta.revision))
        left = self._alive_on(one.node)
        step = steps.after_drain(one.node, _work(drain), left, cancelled=task.cancel_requested)
        return step is not None and await self._note(task, notes, one, step)

    def _alive_on(self, node: str) -> list[str]:
        """Return the guests that run on a node; what does not run may stay there while it reboots."""
        guests = self._store.peek_all(Guest)
        return [g.meta.name for g in guests if g.status.node == node and g.status.phase in ALIVE_PHASES]

    async def _rebooted(self, task: Task, notes: RollingReboot, one: NodeReboot) -> bool:
        node = self._store.peek(Node, one.node)
        follows = one.node not in self._voters.names() or self._voters.follows(one.node)
        why = steps.awaited(one, node, follows=follows)
        if not why and node is not None:
            return await self._back(task, notes, one, node)
        waited_ms = (time.time() - one.since.ToNanoseconds() / 1e9) * 1000
        steps.require_in_time(one, why, waited_ms, RebootNodesRequest.FromString(task.request).back_within_ms)
        if node is not None and node.status.boot_id == one.boot_id and not leaving(node):
            await self._tell(one, node)
        return await self._note_log(task, f"{one.node} reboots: {why}")

    async def _tell(self, one: NodeReboot, node: Node) -> None:
        """Tell a host to reboot, and again after a while if it does not. Raises REBOOT_REFUSED."""
        if (
            node.status.state != NODE_STATE_ONLINE
            or time.monotonic() - self._told.get(one.task, -REBOOT_AGAIN_S) < REBOOT_AGAIN_S
        ):
            return
        self._told[one.task] = time.monotonic()
        boot_id = one.boot_id
        await self._context.tell(
            node, lambda agent, epoch: agent.host.RebootHost(RebootHostRequest(epoch=epoch, boot_id=boot_id))
        )

    async def _back(self, task: Task, notes: RollingReboot, one: NodeReboot, node: Node) -> bool:
        self._told.pop(one.task, None)
        if one.stays_in_maintenance:
            return await self._note(task, notes, one, REBOOT_STEP_DONE)
        restore = new_task(RESTORE, f"node/{one.node}", task.actor, "", _way_back(node))
        restore.meta.name = one.task = task_id(RESTORE, f"node/{one.node}", task.meta.name, "reboot")
        node.spec.maintenance = False
        txn = Txn().put(restore, expect_absent=True).put(node, expect_revision=node.meta.revision)
        return await self._note(task, notes, one, REBOOT_STEP_RESTORE, txn=txn)

    async def _restored(self, task: Task, notes: RollingReboot, one: NodeReboot) -> bool:
        step = steps.after_restore(one.node, _work(self._store.peek(Task, one.task)))
        return step is not None and await self._note(task, notes, one, step)

    # -- writing down

    async def _note(
        self,
        task: Task,
        notes: RollingReboot,
        one: NodeReboot,
        step: RebootStep.ValueType,
        *,
        reason: str = "",
        txn: Txn | None = None,
    ) -> bool:
        one.step, one.reason = step, reason
        one.since.GetCurrentTime()
        task.step_notes = notes.SerializeToString()
        log_line(task, steps.in_words(one))
        over = sum(1 for other in notes.nodes if other.step in rolling.OVER)
        task.progress_percent = min(99, 100 * over // max(1, len(notes.nodes)))
        await self._store.txn((txn or Txn()).put(task, expect_revision=task.meta.revision))
        return True

    async def _note_log(self, task: Task, text: str) -> bool:
        if not log_line(task, text):
            return False
        await self._store.txn(Txn().put(task, expect_revision=task.meta.revision))
        return True

    async def _fail(self, task: Task, notes: RollingReboot, one: NodeReboot, error: GugusError) -> bool:
        task.error.CopyFrom(to_status(error))
        return await self._note(task, notes, one, REBOOT_STEP_FAILED, reason=str(error))

    async def _end(self, task: Task, notes: RollingReboot, state: TaskState.ValueType) -> float:
        text = steps.told(notes, state)
        finish(task, state, text)
        severity = WARNING if state == TASK_STATE_FAILED else INFO
        txn = Txn().put(task, expect_revision=task.meta.revision)
        await self._store.txn(record(txn, task.target, "NODES_REBOOTED", text, severity))
        return 0.0


def _work(task: Task | None) -> steps.Work | None:
    """Return how far what was begun for a host is."""
    if task is None:
        return None
    error = from_status(task.error) if task.HasField("error") else None
    return steps.Work(task.state, error.message, error.remedy) if error else steps.Work(task.state)


def _way_back(node: Node) -> RestoreNodeRequest:
    """Return what brings a node's guests back; to one that is cordoned nobody comes back."""
    return RestoreNodeRequest(name=node.meta.name, leave=node.spec.cordoned)
