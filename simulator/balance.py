"""Balancing in the simulation: the real `manager.scheduler.balancing` says when and what, on load that is learnt from beats.

The product's shells are manager.controllers.self_balance, which looks and begins, and manager.controllers.balance, which carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gugus.cluster.v1.cluster_pb2 import BALANCE_MODE_OFF
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest
from gugus.cluster.v1.plan_pb2 import BalanceNotes
from gugus.cluster.v1.task_pb2 import Task

from manager.scheduler import balancing
from manager.scheduler.balancing import ACTOR, Conclusion, Held, Recent
from planner.plans import Move as Step
from simulator.clockwork import S
from simulator.departures import now_of
from simulator.state import Balance, Course, Move, Object, Txn

if TYPE_CHECKING:
    from simulator.manager import Manager

PERIOD = 10 * S
"""Time between two looks."""

ABOUT = "cluster"


class Balancing:
    """One reign's looks at how even the nodes are, and its work on the balance that is under way, which is in the state."""

    def __init__(self, manager: Manager) -> None:
        self.manager, self.world = manager, manager.world
        self._held: Held | None = None
        self._said = ""
        """What was last said to be in the way."""
        self._due = 0
        self._looked = -1
        self._writing = False

    def tick(self) -> None:
        """Carry on with a balance if anything has changed; look whether one is to begin, if that is due."""
        replica, now = self.manager.replica, self.manager.now()
        policy = balancing.policy_of(replica.cluster.settings.balance)
        under_way = next((one for one in replica.balances.values() if one.course is Course.OPEN), None)
        if under_way is not None and not self._writing and self._looked != replica.changes:
            self._looked = replica.changes
            self._carry_on(under_way, BalanceNotes.FromString(under_way.notes))
        if policy.mode == BALANCE_MODE_OFF:
            self._held = None
        elif now >= self._due:
            self._due = now + PERIOD
            self._look(policy, under_way)

    # Whether one is to begin.

    def _look(self, policy: balancing.Policy, under_way: Balance | None) -> None:
        hindrance = balancing.hindrance(
            policy,
            under_way=under_way is not None,
            unsettled=self._unsettled(),
            acted_ns=self.manager.now() - self.manager.takeover,
        )
        look, now, before = self.manager.stored(), self.manager.now(), self._held
        found = balancing.conclude(look, policy, self._recent(), hindrance, before, now)
        self._held = found.held
        if under_way is None:
            self._tell(found, before)
        if found.begins and not self._writing:
            self._begin(found)

    def _tell(self, found: Conclusion, before: Held | None) -> None:
        """Say that a plan begins to be worth it, or is not any more, and what newly is in the way of any."""
        why = "" if found.why == " ".join(found.plan.notes) else found.why
        if found.held is not None:
            if before is None or before.since_ns != found.held.since_ns:
                self.world.tell(ABOUT, f"balancing: {balancing.summary(found.plan)} {found.why}")
            why = ""
        elif why and why != self._said:
            self.world.tell(ABOUT, f"balancing: {why}")
        elif before is not None:
            self.world.tell(ABOUT, f"balancing: {found.why or 'nothing would be won any more.'}")
        self._said = why

    def _recent(self) -> Recent:
        """Return what moved within the last hour, which the tasks of moves tell."""
        tasks = []
        for move in self.manager.replica.moves.values():
            request = MigrateGuestRequest(name=move.guest, target=move.target)
            task = Task(target=f"guest/{move.guest}", actor=move.actor, request=request.SerializeToString())
            task.meta.created_at.CopyFrom(now_of(move.at_ns))
            tasks.append(task)
        return balancing.recent(tasks, self.world.queue.now / S)

    def _unsettled(self) -> str:
        replica = self.manager.replica
        return balancing.unsettled(
            replica.nodes.values(),
            disarmed=replica.cluster.ha.disarmed,
            draining={drain.node for drain in replica.drains.values() if drain.course is Course.OPEN},
            rebooting=any(one.course is Course.OPEN for one in replica.reboots.values()),
        )

    def _begin(self, found: Conclusion) -> None:
        notes = BalanceNotes(told=True, score_before=found.plan.before.total).SerializeToString()
        name = f"balance-{len(self.manager.replica.balances)}"
        self._held = None
        self._put(Balance(name, notes, len(found.plan.moves)), {}, f"a balance begins: {balancing.summary(found.plan)}")

    # One that is under way.

    def _carry_on(self, task: Balance, notes: BalanceNotes) -> None:
        """Plan anew with what came of the moves, and begin those that may run side by side."""
        known = self.manager.replica.moves
        moves = [known[name] for number in range(notes.begun) if (name := _move_name(task, number)) in known]
        if any(move.course is Course.OPEN for move in moves):
            return
        failed = {move.guest: move.message for move in moves if move.course is Course.FAILED}
        if why := self._unsettled():
            self._end(task, notes, failed, f"ended early: {why}")
            return
        look = self.manager.stored()
        stay = balancing.staying(look, self._recent().rested).keys() | failed.keys()
        left = max(0, task.max_moves - notes.begun)
        first = balancing.first_wave(balancing.planned(look, stay, left, resuming=True, unasked=True))
        if first:
            self._move(task, notes, first)
        else:
            self._end(task, notes, failed)

    def _move(self, task: Balance, notes: BalanceNotes, steps: Sequence[Step]) -> None:
        begun: dict[str, Object] = {}
        for number, step in enumerate(steps, notes.begun):
            name = _move_name(task, number)
            move = Move(name, step.guest, step.to_node, ACTOR, at_ns=self.world.queue.now)
            begun[f"move/{name}"] = move
        notes.begun += len(steps)
        says = " ".join(step.reason for step in steps)
        self._put(replace(task, notes=notes.SerializeToString()), begun, says)

    def _end(self, task: Balance, notes: BalanceNotes, failed: Mapping[str, str], why: str = "") -> None:
        after = balancing.score_of(self.manager.stored()) if notes.begun else 0.0
        self._put(replace(task, course=Course.DONE), {}, balancing.told(notes, failed, after, why))

    def _put(self, task: Balance, begun: dict[str, Object], says: str) -> None:
        self._writing = True

        def done(ok: bool) -> None:
            self._writing, self._looked = False, -1
            self.manager.nudge()

        puts: dict[str, Object] = {f"balance/{task.name}": task, **begun}
        compares = {key: self.manager.replica.revision_of(key) for key in puts}
        self.manager.put(Txn(compares, puts, tells=((ABOUT, says),)), done)


def _move_name(task: Balance, number: int) -> str:
    return f"{task.name}-{number}"
