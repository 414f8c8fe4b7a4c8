"""Reboots hosts one after another: looks whether the cluster can do without each, has it emptied, rebooted and filled again.

Invariant: how far it is stands in the task's notes, and each step is written down, with what it begins, in one transaction before anything
of it happens. The tasks it begins have ids that follow from its own, and a host is told to reboot by naming the boot that is to end; so a
manager that takes over goes on, and nothing happens twice.
"""

import time

from gugus.agent.v1.node_pb2 import RebootHostRequest
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED, TaskState
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_ONLINE,
    REBOOT_STEP_DONE,
    REBOOT_STEP_DRAIN,
    REBOOT_STEP_FAILED,
    REBOOT_STEP_REBOOT,
    REBOOT_STEP_RESTORE,
    REBOOT_STEP_SKIPPED,
    REBOOT_STEP_UNSPECIFIED,
    DrainNodeRequest,
    Node,
    NodeReboot,
    RebootNodesRequest,
    RebootStep,
    RestoreNodeRequest,
    RollingReboot,
)
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError, deadline_exceeded, from_status, precondition, to_status
from manager.controllers import admission, drains
from manager.controllers.context import TRANSIENT_REASONS, Context
from manager.controllers.guest_step import ALIVE_PHASES
from manager.controllers.placing import stored
from manager.controllers.queue import WorkQueue
from manager.controllers.voters import Voters
from manager.events import INFO, WARNING, record
from manager.ha import rolling
from manager.ha.departure import leaving
from manager.ha.drain import DRAIN, RESTORE
from manager.scheduler import what_if
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
        if any(one.step in rolling.UNDER_WAY for one in notes.nodes):
            if not task.cancel_requested and await self._begin_next(task, notes):
                return 0.0
            return LOOK_S
        if task.cancel_requested:
            return await self._end(task, notes, TASK_STATE_CANCELLED)
        if failed := [one for one in notes.nodes if one.step == REBOOT_STEP_FAILED]:
            return await self._end(task, notes, TASK_STATE_FAILED, failed[0])
        if all(one.step in rolling.OVER for one in notes.nodes):
            return await self._end(task, notes, TASK_STATE_SUCCEEDED)
        return 0.0 if await self._begin_next(task, notes) else LOOK_S

    # -- one host's turn begins

    async def _begin_next(self, task: Task, notes: RollingReboot) -> bool:
        """Begin with the host whose turn it is. Returns whether anything was written down."""
        request, me = RebootNodesRequest.FromString(task.request), self._context.acting.holder()
        names = rolling.due(notes, self._voters.names(), me, request.parallel or 1)
        if not names:
            return False
        one = next(one for one in notes.nodes if one.node == names[0])
        node = self._store.peek(Node, one.node)
        if request.if_required and node is not None and not node.status.facts.reboot_required:
            return await self._note(task, notes, one, REBOOT_STEP_SKIPPED, reason="its packages want no reboot")
        try:
            self._require_spare(notes, one, node)
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

    def _require_spare(self, notes: RollingReboot, one: NodeReboot, node: Node | None) -> None:
        """Raise GugusError when the cluster cannot do without a host now."""
        name = one.node
        if node is None or node.status.state != NODE_STATE_ONLINE:
            why = node.status.reason if node else "it was removed"
            raise precondition(
                "NODE_NOT_ONLINE",
                f"{name} is not online: {why}.",
                remedy="Bring it back, or leave it out, and ask again.",
            )
        if name in self._voters.names() and (why := self._voters.majority_without(name)):
            raise _cannot_spare(
                name, why, "Bring the other managers back, or have three voters (`gugus cluster promote`)."
            )
        down = [other.node for other in notes.nodes if other.step in rolling.UNDER_WAY]
        plan = what_if.empty(stored(self._context), [*down, name])
        if plan.unplaced:
            each = "; ".join(f"{guest.guest}: {guest.reason}" for guest in plan.unplaced)
            raise _cannot_spare(name, f"the others have no place for {each}", "Make room, or stop what can wait.")
        if admission.refuses(self._context) and (short := admission.short_without(self._context, [*down, name])):
            raise _cannot_spare(
                name, f"spare room would be missing: {short}", "Make room, or ask for less of it (cluster settings)."
            )

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
        if drain is not None and drain.state not in ENDED:
            if task.cancel_requested and not drain.cancel_requested:
                drain.cancel_requested = True
                await self._store.txn(Txn().put(drain, expect_revision=drain.meta.revision))
            return False
        if task.cancel_requested and drain is not None and drain.state == TASK_STATE_CANCELLED:
            return await self._note(task, notes, one, REBOOT_STEP_UNSPECIFIED, reason="")
        left = self._alive_on(one.node)
        if drain is None or drain.state == TASK_STATE_CANCELLED or (drain.state == TASK_STATE_FAILED and left):
            why = (
                from_status(drain.error).message
                if drain is not None and drain.HasField("error")
                else "it was cancelled"
            )
            raise precondition(
                "GUESTS_LEFT",
                f"{one.node} could not be emptied: {why}",
                remedy="Mend what is in the way and ask again; `gugus node maintenance off` ends its maintenance.",
            )
        return await self._note(task, notes, one, REBOOT_STEP_REBOOT)

    def _alive_on(self, node: str) -> list[str]:
        """Return the guests that run on a node; what does not run may stay there while it reboots."""
        guests = self._store.peek_all(Guest)
        return [g.meta.name for g in guests if g.status.node == node and g.status.phase in ALIVE_PHASES]

    async def _rebooted(self, task: Task, notes: RollingReboot, one: NodeReboot) -> bool:
        node = self._store.peek(Node, one.node)
        why = rolling.not_well(one, node) if node is not None else "it was removed"
        if not why and one.node in self._voters.names() and not self._voters.follows(one.node):
            why = "its manager has not caught up yet"
        if not why and node is not None:
            return await self._back(task, notes, one, node)
        request = RebootNodesRequest.FromString(task.request)
        within_ms = request.back_within_ms or rolling.DEFAULT_BACK_WITHIN_MS
        if (time.time() - one.since.ToNanoseconds() / 1e9) * 1000 > within_ms:
            raise deadline_exceeded(
                "NOT_BACK",
                f"{one.node} is not back {within_ms / 1000:g} s after it was to reboot: {why}.",
                remedy="Look at that host; it stays in maintenance. Ask again to go on.",
            )
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
        restore = self._store.peek(Task, one.task)
        if restore is not None and restore.state not in ENDED:
            return False
        if restore is not None and restore.state == TASK_STATE_FAILED:
            error = from_status(restore.error)
            raise precondition("GUESTS_LEFT", f"{one.node} was rebooted, but {error.message}", remedy=error.remedy)
        return await self._note(task, notes, one, REBOOT_STEP_DONE)

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
        log_line(task, f"{one.node} {_WORDS[step]}" + (f": {reason}" if reason else ""))
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

    async def _end(
        self, task: Task, notes: RollingReboot, state: TaskState.ValueType, failed: NodeReboot | None = None
    ) -> float:
        done = [one.node for one in notes.nodes if one.step == REBOOT_STEP_DONE]
        text = f"rebooted {', '.join(done) or 'no host'}"
        if failed is not None:
            text = f"stopped at {failed.node} ({text}): {failed.reason}"
        elif state == TASK_STATE_CANCELLED:
            text = f"cancelled; {text}"
        finish(task, state, text)
        txn = Txn().put(task, expect_revision=task.meta.revision)
        await self._store.txn(record(txn, task.target, "NODES_REBOOTED", text, WARNING if failed else INFO))
        return 0.0


_WORDS = {
    REBOOT_STEP_UNSPECIFIED: "is left as it was",
    REBOOT_STEP_DRAIN: "is being emptied",
    REBOOT_STEP_REBOOT: "is to reboot",
    REBOOT_STEP_RESTORE: "is back and gets its guests",
    REBOOT_STEP_DONE: "is done",
    REBOOT_STEP_SKIPPED: "is left out",
    REBOOT_STEP_FAILED: "failed",
}


def _way_back(node: Node) -> RestoreNodeRequest:
    """Return what brings a node's guests back; to one that is cordoned nobody comes back."""
    return RestoreNodeRequest(name=node.meta.name, leave=node.spec.cordoned)


def _cannot_spare(node: str, why: str, remedy: str) -> GugusError:
    return precondition("CANNOT_SPARE", f"the cluster cannot do without {node} now: {why}.", remedy=remedy)
