"""Rolling reboots in the simulation: the real `manager.ha.rolling` and `rolling_steps` say whose turn it is, and what comes next.

The product's shell is manager.controllers.reboots; here, too, each step is committed together with what it begins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_RUNNING, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_ONLINE,
    REBOOT_STEP_DONE,
    REBOOT_STEP_DRAIN,
    REBOOT_STEP_FAILED,
    REBOOT_STEP_REBOOT,
    REBOOT_STEP_RESTORE,
    Node,
    NodeReboot,
    RebootStep,
    RollingReboot,
)

from common.errors import GugusError
from manager.controllers.guest_step import ALIVE_PHASES
from manager.ha import rolling
from manager.ha import rolling_steps as steps
from manager.ha.departure import leaving
from simulator.clockwork import MS, S
from simulator.departures import now_of
from simulator.state import Course, Drain, Object, Rolling, Txn, copy_of, node_key

if TYPE_CHECKING:
    from simulator.manager import Manager

LOOK = 1 * S
"""While something is under way it is looked so often how far it is, if nothing has changed."""

REBOOT_AGAIN = 15 * S
"""A host that was told to reboot and does not go down is told so often."""

_STATES = {
    Course.OPEN: TASK_STATE_RUNNING,
    Course.DONE: TASK_STATE_SUCCEEDED,
    Course.FAILED: TASK_STATE_FAILED,
}


class Reboots:
    """One reign's work on the rolling reboot that is under way; how far it is stands in the state."""

    def __init__(self, manager: Manager) -> None:
        self.manager, self.world = manager, manager.world
        self._looked, self._look_at = -1, 0
        self._writing = False
        self._told: dict[str, int] = {}

    def tick(self) -> None:
        """Take the next step, if anything has changed or time may have."""
        replica, now = self.manager.replica, self.manager.now()
        task = next((one for one in replica.reboots.values() if one.course is Course.OPEN), None)
        if task is None or self._writing or (self._looked == replica.changes and now < self._look_at):
            return
        self._looked, self._look_at = replica.changes, now + LOOK
        self._turn(task, RollingReboot.FromString(task.notes))

    def _turn(self, task: Rolling, notes: RollingReboot) -> None:
        for one in notes.nodes:
            if one.step in rolling.UNDER_WAY and self._tried(task, notes, one):
                return
        state = steps.outcome(notes, cancelled=False)
        if state is None:
            self._begin_next(task, notes)
            return
        course = Course.DONE if state == TASK_STATE_SUCCEEDED else Course.FAILED
        self._put(replace(task, course=course), {}, ("cluster", steps.told(notes, state)))

    def _tried(self, task: Rolling, notes: RollingReboot, one: NodeReboot) -> bool:
        """Take a host to its next step when it is due; return whether anything was written down."""
        try:
            return self._advance(task, notes, one)
        except GugusError as error:
            self._note(task, notes, one, REBOOT_STEP_FAILED, reason=str(error))
            return True

    def _advance(self, task: Rolling, notes: RollingReboot, one: NodeReboot) -> bool:
        replica = self.manager.replica
        step: RebootStep.ValueType | None
        if one.step == REBOOT_STEP_REBOOT:
            return self._rebooted(task, notes, one)
        if one.step == REBOOT_STEP_DRAIN:
            left = [guest.meta.name for guest in replica.on(one.node) if guest.status.phase in ALIVE_PHASES]
            step = steps.after_drain(one.node, self._work(one), left, cancelled=False)
        else:
            step = steps.after_restore(one.node, self._work(one))
        if step is not None:
            self._note(task, notes, one, step)
        return step is not None

    def _work(self, one: NodeReboot) -> steps.Work | None:
        drain = self.manager.replica.drains.get(one.task)
        return None if drain is None else steps.Work(_STATES[drain.course], drain.message)

    def _rebooted(self, task: Rolling, notes: RollingReboot, one: NodeReboot) -> bool:
        node = self.manager.replica.nodes.get(one.node)
        follows = one.node not in self.world.voters or self.world.follows(self.manager.host.name, one.node)
        why = steps.awaited(one, node, follows=follows)
        if not why and node is not None:
            self._back(task, notes, one, node)
            return True
        steps.require_in_time(one, why, (self.world.queue.now - one.since.ToNanoseconds()) / MS, 0)
        if node is not None and node.status.boot_id == one.boot_id and not leaving(node):
            self._tell(one, node)
        return False

    def _tell(self, one: NodeReboot, node: Node) -> None:
        """Tell a host to reboot, and again after a while if it does not."""
        now, boot_id = self.manager.now(), one.boot_id
        if node.status.state == NODE_STATE_ONLINE and now - self._told.get(one.task, -REBOOT_AGAIN) >= REBOOT_AGAIN:
            self._told[one.task] = now
            self.manager.guests.command(one.node, lambda agent, epoch, reply: agent.reboot(boot_id, epoch, reply))

    def _back(self, task: Rolling, notes: RollingReboot, one: NodeReboot, stored: Node) -> None:
        if one.stays_in_maintenance:
            self._note(task, notes, one, REBOOT_STEP_DONE)
            return
        node = copy_of(stored)
        node.spec.maintenance = False
        restore = Drain(f"{task.name}-{one.node}-back", one.node, back=True, leave=node.spec.cordoned)
        one.task = restore.name
        self._note(task, notes, one, REBOOT_STEP_RESTORE, {node_key(one.node): node, f"drain/{restore.name}": restore})

    def _begin_next(self, task: Rolling, notes: RollingReboot) -> None:
        """Begin with the host whose turn it is."""
        me, voters = self.manager.host.name, self.world.voters
        names = rolling.due(notes, voters, me, 1)
        if not names:
            return
        one = next(one for one in notes.nodes if one.node == names[0])
        node = self.manager.replica.nodes.get(one.node)
        ready = [name for name in voters if self.world.follows(me, name)]
        no_majority = steps.majority_without(voters, ready, one.node) if one.node in voters else ""
        try:
            steps.require_spare(one.node, node, notes, no_majority, self.manager.stored())
        except GugusError as error:
            self._note(task, notes, one, REBOOT_STEP_FAILED, reason=str(error))
            return
        if one.node == me:
            self.manager.hand_over([name for name in ready if name != me])
        elif node is not None:
            self._drain(task, notes, one, copy_of(node))

    def _drain(self, task: Rolling, notes: RollingReboot, one: NodeReboot, node: Node) -> None:
        drain = Drain(f"{task.name}-{one.node}", one.node)
        one.task, one.boot_id = drain.name, node.status.boot_id
        one.pools[:], one.networks[:] = node.status.facts.pools, node.status.facts.networks
        node.spec.maintenance = True
        self._note(task, notes, one, REBOOT_STEP_DRAIN, {node_key(one.node): node, f"drain/{drain.name}": drain})

    def _note(
        self,
        task: Rolling,
        notes: RollingReboot,
        one: NodeReboot,
        step: RebootStep.ValueType,
        begun: dict[str, Object] | None = None,
        *,
        reason: str = "",
    ) -> None:
        """Write down how far a host is, and what is begun for it."""
        one.step, one.reason = step, reason
        one.since.CopyFrom(now_of(self.world.queue.now))
        self._put(replace(task, notes=notes.SerializeToString()), begun or {}, ("cluster", steps.in_words(one)))

    def _put(self, task: Rolling, begun: dict[str, Object], says: tuple[str, str]) -> None:
        self._writing = True

        def done(ok: bool) -> None:
            self._writing, self._looked = False, -1
            self.manager.nudge()

        puts: dict[str, Object] = {f"reboot/{task.name}": task, **begun}
        compares = {key: self.manager.replica.revision_of(key) for key in puts}
        self.manager.put(Txn(compares, puts, tells=(says,)), done)
