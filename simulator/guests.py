"""The guest controller in the simulation: asks `guest_step` what is next for each guest, and does it on agents that are made up.

The product's shell is manager.controllers.guests; what follows from a failure, an end or a boot is decided by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gugus.agent.v1.guest_pb2 import (
    GUEST_END_HOST,
    GUEST_END_UNSPECIFIED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    GUEST_STATE_UNSPECIFIED,
)
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_DELETING,
    GUEST_PHASE_ERROR,
    GUEST_PHASE_PENDING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPED,
    GUEST_PHASE_STOPPING,
    HA_STATE_RELOCATE,
    HA_STATE_STARTED,
    POWER_OFF,
    Guest,
    GuestPhase,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from agent.leases.refusals import IN_USE
from manager.controllers.compile import agent_spec
from manager.controllers.guest_retries import IN_USE_S, Retries, backoff_s, count_end
from manager.controllers.guest_step import ALIVE_PHASES, Action, next_step, settled_phase
from manager.guests import start_after
from manager.guests.boot_order import note_boot, waits_for
from manager.guests.endings import words
from manager.ha import account, preemption
from manager.ha.failing import elsewhere, fail, keep_waiting
from manager.ha.guest_machine import Action as HaAction
from manager.ha.guest_machine import Event
from manager.ha.stored import give, terms
from manager.scheduler import Decision, place, spare_room
from manager.scheduler.settings import planner_settings
from manager.scheduler.views import guest_request, node_views
from planner.settings import SparePolicy
from simulator.agent import Agent, Copy, Refusal, Reply, Report
from simulator.clockwork import MS, S
from simulator.state import Course, Move, Txn, copy_of, guest_key

if TYPE_CHECKING:
    from simulator.manager import Manager

ANSWER_TIMEOUT = 4 * S
"""A command that is not answered is given again after so long."""

SOON = 200 * MS
TURN = 1 * S
"""A guest that waits for its turn after a boot is looked at so often."""

_ALIVE = {True: GUEST_STATE_RUNNING, False: GUEST_STATE_STOPPED}

Call = Callable[[Agent, int, Reply], None]
Answered = Callable[[Refusal | None], None]


class Guests:
    """All guests, in one reign of a manager."""

    def __init__(self, manager: Manager) -> None:
        self.manager, self.world = manager, manager.world
        self.retries = Retries(lambda: manager.now() / S)
        self._due: dict[str, int] = dict.fromkeys(manager.replica.guests, 0)
        self._writing: set[str] = set()
        self._busy: dict[str, int] = {}
        """Until when a command's answer is waited for."""
        self._asked: dict[str, int] = {}
        """At which revision of a guest its node was asked last."""
        self._spare = spare_room.SpareRoom()
        self._unplaced: dict[str, int] = {}
        """Guests without a node, by how much had changed when they were looked at."""

    def wake(self, name: str) -> None:
        """Look at a guest at the next tick."""
        self._due[name] = 0

    def wake_on(self, node: str) -> None:
        """Look at a node's guests, and at those without one."""
        for name, guest in self.manager.replica.guests.items():
            if guest.status.node in ("", node):
                self._due[name] = 0

    def wake_all(self) -> None:
        """Look at all guests."""
        self._due.update(dict.fromkeys(self.manager.replica.guests, 0))

    def tick(self) -> None:
        """Do what is due."""
        now = self.manager.now()
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            again = self._turn(name)
            if again is not None:
                self._due.setdefault(name, now + again)

    def command(self, node: str, call: Call, done: Answered = lambda why: None) -> None:
        """Have a node's agent do something, in the epoch of now; `done` is told what went wrong, if it is ever answered."""
        manager, epoch, process = self.manager, self.manager.machine.epoch, self.manager.process
        me, agent = manager.host.name, self.world.hosts[node].agent

        def back(why: Refusal | None, report: Report) -> None:
            def hear() -> None:
                if process == manager.process and manager.guests is self and manager.acts_in(epoch):
                    manager.told(node, report)
                    done(why)

            self.world.send(node, me, "", hear)

        self.world.to_agent(me, node, "", lambda: call(agent, epoch, back))

    def confirmed(self, guest: Guest) -> bool:
        """Return whether what is known of a guest on its node can be built upon; asks the node when it cannot."""
        name, node = guest.meta.name, self.manager.replica.nodes[guest.status.node]
        if not self._to_be_asked(guest, self._copy(guest)):
            return True
        if self._busy.get(name, 0) <= self.manager.now():
            self._ask(guest, node)
        return False

    # A turn.

    def _turn(self, name: str) -> int | None:
        manager, replica = self.manager, self.manager.replica
        stored = replica.guests.get(name)
        if stored is None or name in self._writing:
            return None
        if (busy := self._busy.get(name, 0) - manager.now()) > 0:
            return busy
        node = replica.nodes.get(stored.status.node)
        online = node is not None and node.status.state == NODE_STATE_ONLINE
        if online and node is not None and not manager.heard_as(node):
            return None  # a beat, or its absence, will soon change the node
        if stored.status.HasField("lock") or stored.status.HasField("migration"):
            return None
        guest = copy_of(stored)
        if online and self._changed_for_ha(guest):
            return None
        copy = self._copy(guest)
        if online and node is not None and self._to_be_asked(guest, copy):
            return self._ask(guest, node)
        seen = _ALIVE[copy is not None and copy.running] if online else GUEST_STATE_UNSPECIFIED
        ended = copy.ended if copy else GUEST_END_UNSPECIFIED
        action = next_step(guest, node, seen, copy.held if copy else None, ended).action
        if action is Action.START and (guest.status.failures or self.retries.kept_waiting(name)):
            delay_s = self.retries.delay_s(name, guest.spec_number)
            if delay_s > 0:
                return round(delay_s * S)
        return self._take(action, guest, node, copy)

    def _copy(self, guest: Guest) -> Copy | None:
        """Return what the guest's node has of it, as the assignment that it is now."""
        report = self.manager.reports.get(guest.status.node)
        copy = report.copies.get(guest.meta.name) if report else None
        return copy if copy is not None and copy.generation == guest.meta.generation else None

    def _to_be_asked(self, guest: Guest, copy: Copy | None) -> bool:
        """Return whether what the node told may be older than what is stored: it says something else, and was not asked since."""
        alive = guest.status.phase in ALIVE_PHASES
        says_so = (copy is not None and copy.running) == alive
        return alive and not says_so and self._asked.get(guest.meta.name) != self._revision(guest)

    def _ask(self, guest: Guest, node: Node) -> int:
        name, revision = guest.meta.name, self._revision(guest)
        self._busy[name] = self.manager.now() + ANSWER_TIMEOUT

        def told(why: Refusal | None) -> None:
            self._asked[name] = revision
            self._answered(name)

        self.command(node.meta.name, lambda agent, epoch, reply: reply(None, agent.report()), told)
        return ANSWER_TIMEOUT

    def _revision(self, guest: Guest) -> int:
        return self.manager.replica.revision_of(guest_key(guest.meta.name))

    def _take(self, action: Action, guest: Guest, node: Node | None, copy: Copy | None) -> int | None:
        if action is Action.PLACE:
            return self._place(guest)
        if action is Action.REMOVE and node is None:
            self._put(guest, remove=True)
        if node is None:
            return None
        match action:
            case Action.REMOVE:
                self._remove(guest, node)
            case Action.BOOTED:
                note_boot(guest, node.status.boot_id, down=copy is None or not copy.running)
                self._put(guest)
            case Action.PROVISION:
                guest.status.volumes_ready = True
                self._put(guest)
            case Action.START:
                return self._start(guest, node, copy)
            case Action.STOP:
                self._stop(guest, node)
            case Action.END:
                guest.spec.power = POWER_OFF
                guest.status.observed = GUEST_STATE_STOPPED
                self._phase(
                    guest,
                    GUEST_PHASE_STOPPED,
                    f"{words(copy.ended if copy else GUEST_END_UNSPECIFIED)} and stays down by its policies",
                )
            case Action.APPLY:
                guest.status.applied_spec_number = guest.spec_number
                self._put(guest)
            case Action.DEFINE:
                self._arm(guest, node)
            case Action.SETTLE:
                self._settle(guest, node, copy)
            case Action.WAIT if guest.status.phase == GUEST_PHASE_RUNNING:
                return self._forgive(guest)
        return None

    def _changed_for_ha(self, guest: Guest) -> bool:
        """Bring HA's account of a guest up to date. Returns whether anything is written."""
        if account.switch(guest, self.manager.replica.cluster.ha):
            self._put(guest)
            return True
        moves: tuple[Move, ...] = ()
        if account.follow(guest):
            pass
        elif account.changed(guest):
            account.happen(guest, Event.CHANGE, "its spec was changed")
        elif guest.status.ha.state == HA_STATE_RELOCATE:
            move = self.manager.replica.moves.get(guest.status.ha.task)
            if move is not None and move.course is Course.OPEN:
                return False
            if move is not None and move.course is Course.DONE:
                account.happen(guest, Event.MOVE, f"moved to {guest.status.node}")
            else:
                why = move.message if move else "its task is gone"
                moves = self._fail(guest, Event.STAY, f"could not be moved: {why}")
        else:
            return False
        held = guest.status.ha.state in account.HELD
        if held:
            guest.status.phase, guest.status.reason = GUEST_PHASE_ERROR, guest.status.ha.reason
        self._put(guest, *moves, says=guest.status.ha.reason if held else "")
        return True

    # Steps.

    def _place(self, guest: Guest) -> int | None:
        replica, name = self.manager.replica, guest.meta.name
        if self.manager.giving:
            return SOON // 10
        if self._unplaced.get(name) == replica.changes:
            return S
        self._unplaced[name] = replica.changes
        nodes, guests = list(replica.nodes.values()), list(replica.guests.values())
        load_of = self.manager.loads.of
        settings = planner_settings(replica.cluster.settings)
        counts = terms(nodes, guests, replica.rules.values(), settings, load_of=load_of)
        rooms = node_views(nodes, guests, ignoring=name, load_of=load_of)
        decision = self._sparing(guest, place(guest_request(guest, load_of=load_of), rooms, counts))
        if decision.node:
            give(guest, decision.node, disarmed=replica.cluster.ha.disarmed)
            guest.status.reason = decision.reason
            self._put(guest, says=f"placed: {decision.reason}", gives=True)
        elif (guest.status.phase, guest.status.reason) != (GUEST_PHASE_PENDING, decision.reason):
            self._phase(guest, GUEST_PHASE_PENDING, decision.reason)
        return S

    def _sparing(self, guest: Guest, decision: Decision) -> Decision:
        """Return a decision that keeps the room that the settings want to be kept: another node, or none if they refuse."""
        replica = self.manager.replica
        settings = planner_settings(replica.cluster.settings)
        if not decision.node or not settings.spare.asked:
            return decision
        nodes, guests = list(replica.nodes.values()), list(replica.guests.values())
        looked = self._spare.look(replica.changes, nodes, guests, list(replica.rules.values()), settings)
        chosen = spare_room.kept(looked, guest, decision)
        short = spare_room.in_words(looked.short_with(guest, chosen.node))
        if not short or settings.spare.policy is not SparePolicy.REFUSE:
            return chosen
        return replace(chosen, node="", reason=f"it waits: too little room would be left to survive a loss: {short}.")

    def _start(self, guest: Guest, node: Node, copy: Copy | None) -> int | None:
        name = guest.meta.name
        mine = list(self.manager.replica.on(node.meta.name))
        if why := preemption.waits_for(guest, mine):
            if guest.status.reason != why:
                self._phase(guest, GUEST_PHASE_CREATING, why)
            return TURN
        if why := self._not_its_turn(guest, node, mine):
            if guest.status.reason != why:
                self._phase(guest, GUEST_PHASE_STARTING, why)
            return TURN
        if guest.status.phase in ALIVE_PHASES:
            self._ended_by_itself(guest, copy)
        elif guest.status.phase != GUEST_PHASE_STARTING:
            guest.status.phase, guest.status.reason = GUEST_PHASE_STARTING, f"being started on {node.meta.name}"
            self._put(guest)
        else:
            generation, spec = guest.meta.generation, agent_spec(guest, ha=guest.status.ha_armed)
            self._busy[name] = self.manager.now() + ANSWER_TIMEOUT
            start: Call = lambda agent, epoch, reply: agent.start(spec, generation, epoch, reply)  # noqa: E731
            answered = lambda why: self._started(name, generation, why)  # noqa: E731
            if self.world.rules.epoch_of_decision:
                self.command(node.meta.name, start, answered)
            else:
                self._start_later(node.meta.name, start, answered)
            return ANSWER_TIMEOUT
        return None

    def _not_its_turn(self, guest: Guest, node: Node, mine: Sequence[Guest]) -> str:
        """Return for whom a guest waits: those it starts after, but not for ever, and those before it in the order of its host's boot."""
        replica = self.manager.replica
        if not guest.spec.boot.after and not guest.status.booting:
            return ""
        running = {
            name: self.retries.running_for_s(name)
            for name, one in replica.guests.items()
            if one.status.phase == GUEST_PHASE_RUNNING
        }
        awaited = start_after.awaited(guest, replica.guests, replica.nodes, running)
        if (why := self.retries.waits.bounded(guest.meta.name, awaited)) or not guest.status.booting:
            return why
        follows = partial(start_after.follows, other=guest, guests=replica.guests)
        return waits_for(guest, mine, node.status.boot_id, running, follows)

    def _start_later(self, node: str, start: Call, answered: Answered) -> None:
        """A mutation: other work comes first, then the old decision is sent in what is then the epoch."""
        manager = self.manager

        def send() -> None:
            if manager.machine.acting(manager.now()):
                self.command(node, start, answered)

        self.world.queue.after(self.world.rng.randrange(30 * S), lambda: manager.host.do(send))

    def _started(self, name: str, generation: int, why: Refusal | None) -> None:
        self._busy.pop(name, None)
        stored = self.manager.replica.guests.get(name)
        if stored is None or stored.meta.generation != generation or name in self._writing:
            return
        guest = copy_of(stored)
        if why is not None and why.reason == IN_USE:
            self.retries.keep_waiting(name, guest.spec_number)
            self._due[name] = self.manager.now() + round(IN_USE_S * S)
            if keep_waiting(guest, why.text):
                self._put(guest, says=guest.status.reason)
        elif why is not None and why.reason == "START_FAILED":
            guest.status.failures += 1
            self.retries.wait(name, backoff_s(guest.status.failures), guest.spec_number)
            text = f"It could not be started on {guest.status.node}."
            moves = self._fail(guest, Event.FAIL, text) if guest.status.ha.state == HA_STATE_STARTED else ()
            reason = guest.status.ha.reason or f"{text} Failed {guest.status.failures} times."
            guest.status.phase, guest.status.reason = GUEST_PHASE_ERROR, reason
            self._put(guest, *moves, says=reason)
        elif not why and guest.status.phase == GUEST_PHASE_STARTING and not guest.status.HasField("migration"):
            self.retries.started(name)
            node = self.manager.replica.nodes[guest.status.node]
            guest.status.observed, guest.status.boot_id = GUEST_STATE_RUNNING, node.status.boot_id
            guest.status.booting = False
            guest.status.applied_spec_number = guest.spec_number
            guest.status.phase, guest.status.reason = GUEST_PHASE_RUNNING, f"runs on {guest.status.node}"
            self._put(guest)
        else:
            self._due[name] = self.manager.now() + SOON

    def _ended_by_itself(self, guest: Guest, copy: Copy | None) -> None:
        name, steady = guest.meta.name, self.retries.steady(guest.meta.name)
        delay_s = count_end(guest, steady=steady)
        self.retries.wait(name, delay_s, guest.spec_number)
        how = f"{words(copy.ended if copy else GUEST_END_UNSPECIFIED)} ({guest.status.failures} times in a row)"
        moves: tuple[Move, ...] = ()
        host_went = copy is not None and copy.ended == GUEST_END_HOST
        if not steady and not host_went and guest.status.ha.state == HA_STATE_STARTED:
            moves = self._fail(guest, Event.FAIL, f"{how}.")
        held = guest.status.ha.state in account.HELD
        when = f"in {delay_s:g} s" if delay_s else "now"
        guest.status.reason = guest.status.ha.reason if held else f"{how}; started again {when}"
        guest.status.phase = GUEST_PHASE_ERROR if held else GUEST_PHASE_STARTING
        self._put(guest, *moves, says=guest.status.reason)

    def _fail(self, guest: Guest, event: Event, why: str) -> tuple[Move, ...]:
        """Count a failure; return the task of moving the guest, if that is what follows."""
        replica, name = self.manager.replica, guest.meta.name
        nodes, guests = list(replica.nodes.values()), list(replica.guests.values())
        load_of = self.manager.loads.of
        settings = planner_settings(replica.cluster.settings)
        counts = terms(nodes, guests, replica.rules.values(), settings, load_of=load_of)
        decision = elsewhere(guest, node_views(nodes, guests, ignoring=name, load_of=load_of), counts, load_of)
        if fail(guest, event, why, decision) is not HaAction.RELOCATE:
            return ()
        task = f"relocate-{name}-{guest.meta.generation}-{guest.status.ha.relocations}"
        guest.status.ha.task = task
        return (Move(task, name, decision.node, "ha", at_ns=self.world.queue.now),)

    def _stop(self, guest: Guest, node: Node) -> None:
        name = guest.meta.name
        if guest.status.phase != GUEST_PHASE_STOPPING:
            guest.status.phase, guest.status.reason = GUEST_PHASE_STOPPING, f"being stopped on {node.meta.name}"
            self._put(guest)
            return
        self._busy[name] = self.manager.now() + ANSWER_TIMEOUT
        self.command(
            node.meta.name,
            lambda agent, epoch, reply: agent.stop(name, epoch, reply),
            lambda why: self._answered(name),
        )
        self._due[name] = self._busy[name]

    def _remove(self, guest: Guest, node: Node) -> None:
        name = guest.meta.name
        if guest.status.phase != GUEST_PHASE_DELETING:
            self._phase(guest, GUEST_PHASE_DELETING, f"being deleted on {node.meta.name}")
        elif node.status.state != NODE_STATE_ONLINE or name not in self._known(node.meta.name):
            self._put(guest, remove=True)
        else:
            self._busy[name] = self.manager.now() + ANSWER_TIMEOUT
            self.command(
                node.meta.name,
                lambda agent, epoch, reply: agent.remove(name, epoch, reply),
                lambda why: self._answered(name),
            )
            self._due[name] = self._busy[name]

    def _known(self, node: str) -> frozenset[str]:
        report = self.manager.reports.get(node)
        return frozenset(report.copies) if report else frozenset()

    def _arm(self, guest: Guest, node: Node) -> None:
        """The state says that a guest is held only while its agent surely does: arming is written after it was told, disarming before."""
        name, wanted, generation = guest.meta.name, account.held(guest), guest.meta.generation
        if not wanted and guest.status.ha_armed:
            guest.status.ha_armed = False
            self._put(guest)
            return
        self._busy[name] = self.manager.now() + ANSWER_TIMEOUT

        def told(why: Refusal | None) -> None:
            self._answered(name)
            stored = self.manager.replica.guests.get(name)
            if not why and stored is not None and stored.meta.generation == generation and name not in self._writing:
                armed = copy_of(stored)
                if wanted and account.held(armed) and not armed.status.ha_armed:
                    armed.status.ha_armed = True
                    self._put(armed)

        spec = agent_spec(guest, ha=wanted)
        self.command(node.meta.name, lambda agent, epoch, reply: agent.define(spec, epoch, reply), told)
        self._due[name] = self._busy[name]

    def _settle(self, guest: Guest, node: Node, copy: Copy | None) -> None:
        seen = _ALIVE[copy is not None and copy.running]
        guest.status.observed, guest.status.booting = seen, False
        phase = settled_phase(guest, seen)
        if phase not in ALIVE_PHASES:
            guest.status.failures = 0
        guest.status.boot_id = guest.status.boot_id or node.status.boot_id
        word = "runs" if phase == GUEST_PHASE_RUNNING else GuestPhase.Name(phase).removeprefix("GUEST_PHASE_").lower()
        gave_way = preemption.in_words(guest)
        guest.status.phase, guest.status.reason = (
            phase,
            f"{word} on {guest.status.node}{f': {gave_way}' if gave_way else ''}",
        )
        self._put(guest)

    def _forgive(self, guest: Guest) -> int | None:
        """Forget failures that are long past; return when to look again."""
        ran_s = self.retries.running_for_s(guest.meta.name)
        if not account.steady(guest, account.STEADY_S):
            return None
        if not account.steady(guest, ran_s):
            return round((account.STEADY_S - ran_s) * S)
        account.happen(guest, Event.STEADY, f"has run for {account.STEADY_S:g} s")
        self._put(guest, says="has run for long: its failures are forgotten")
        return None

    # Writing.

    def _answered(self, name: str) -> None:
        self._busy.pop(name, None)
        self._due[name] = 0
        self.manager.nudge()

    def _phase(self, guest: Guest, phase: GuestPhase.ValueType, reason: str) -> None:
        guest.status.phase, guest.status.reason = phase, reason
        word = GuestPhase.Name(phase).removeprefix("GUEST_PHASE_").lower()
        self._put(guest, says=f"{word}: {reason}")

    def _put(self, guest: Guest, *moves: Move, says: str = "", remove: bool = False, gives: bool = False) -> None:
        """Commit a guest as it is now, with tasks that are begun for it; it is looked at again once that is known."""
        name = guest.meta.name
        key = guest_key(name)
        self._writing.add(name)
        tasks = {f"move/{move.name}": move for move in moves}
        tells = ((key, says),) if says else ()

        def done(ok: bool) -> None:
            self._writing.discard(name)
            self._due[name] = 0
            self.manager.nudge()

        compares = {key: self.manager.replica.revision_of(key)}
        if remove:
            self.manager.put(Txn(compares, {}, deletes=(key,), tells=((key, "deleted"),)), done)
        else:
            propose = self.manager.give if gives else self.manager.put
            propose(Txn(compares, {key: guest, **tasks}, tells=tells), done)
