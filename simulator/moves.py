"""Migrations in the simulation: the two ends of agent.migration and the operation of manager.operations.migrate, in small.

What decides is the product's: `manager.ha.migration.settle` and `obstacles`, the scheduler, and `recover`, which waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_STATE_RUNNING, GUEST_STATE_STOPPED, GuestSpec
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPING,
    Guest,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE

from manager.controllers.compile import agent_spec
from manager.ha.migration import Verdict, Word, obstacles, settle, words_of
from manager.ha.stored import assign, give, terms
from manager.ha.together import bound_with, with_company
from manager.scheduler import GuestRequest, NodeView, Terms, place
from manager.scheduler.settings import planner_settings
from manager.scheduler.views import memory_of, node_views
from manager.scheduler.what_if import START_MS, WIRE_BYTES_PER_S
from simulator.clockwork import MS, S
from simulator.state import Course, Move, Object, Txn, copy_of, guest_key

if TYPE_CHECKING:
    from simulator.agent import Agent
    from simulator.manager import Manager

T = TypeVar("T")

ANSWER_TIMEOUT = 3 * S
PATIENCE = 15 * S
"""So long after a guest should have come an operation finds out who has it, whatever is under way."""

IN_FLUX = frozenset({GUEST_PHASE_STARTING, GUEST_PHASE_STOPPING, GUEST_PHASE_CREATING, GUEST_PHASE_RECOVERING})
"""Phases of guests that somebody is at work on: a move waits for its turn."""


@dataclass
class Arrival:
    """A guest that comes to a host."""

    generation: int
    spec: GuestSpec
    word: Word = Word.COMING
    refused: bool = False
    """Whether its disks were not to be had when it was to run."""


@dataclass
class Leaving:
    """A guest that leaves a host. generation: what its target was granted. stopped: it does not run while it goes over."""

    target: str
    generation: int
    kept: bool = False
    given: bool = False
    stopped: bool = False
    arrived: Callable[[], None] = lambda: None
    """Tells the manager that asked for it that its task has ended well."""


@dataclass
class Ends:
    """What an agent has of migrations. `noted` is on the disk; the rest is lost with the process."""

    agent: Agent
    arrivals: dict[str, Arrival] = field(default_factory=dict)
    leaving: dict[str, Leaving] = field(default_factory=dict)
    noted: set[str] = field(default_factory=set)

    def power_cut(self) -> None:
        """The host lost its power."""
        self.arrivals.clear()
        self.leaving.clear()

    def restarted(self) -> None:
        """The agent's process alone was killed: the hypervisors go on, the tunnels break."""
        self.leaving.clear()
        self.arrivals = {name: one for name, one in self.arrivals.items() if one.word is not Word.COMING}

    def here(self, guest: str) -> None:
        """A guest runs here: what became of it when it left once says nothing any more."""
        self.leaving.pop(guest, None)
        self.noted.discard(guest)

    def killed(self) -> None:
        """The lease ended: whatever is here of guests under HA is dead."""
        self.arrivals.clear()
        for one in self.leaving.values():
            one.kept |= one.stopped

    # The target

    def prepare(self, spec: GuestSpec, generation: int, epoch: int) -> bool:
        """Make ready for a guest."""
        agent, guest = self.agent, spec.name
        if not agent.current(epoch) or generation < agent.generations.get(guest, 0) or guest in agent.running:
            return False
        agent.generations[guest] = generation
        self.arrivals[guest] = Arrival(generation, spec)
        return True

    def complete(self, guest: str, generation: int, source: str) -> None:
        """All of the guest has come; the source is asked to end it."""
        arrival = self.arrivals.get(guest)
        if arrival is None or arrival.generation != generation:
            return
        arrival.word = Word.WAITING
        if not self.agent.world.rules.hand_over:  # as libvirt alone does it
            self.gone(guest, generation)
        if not self.agent.world.rules.word_after_arrival:
            self._tell_source(guest, generation, source)
        ends = self.agent.world.hosts[source].agent.ends
        self._send(source, lambda: ends.let_go(guest, generation))

    def gone(self, guest: str, generation: int, source: str = "") -> None:
        """The source says that it has let go, or the manager knows that it is gone."""
        arrival, agent = self.arrivals.get(guest), self.agent
        if arrival is None or arrival.generation != generation or arrival.word is not Word.WAITING:
            return
        if arrival.spec.ha and not agent.keeper.holds(agent.host.clock.now()):
            return
        if why := agent.arrived(arrival.spec, generation):
            if not arrival.refused:
                agent.world.tell(guest_key(guest), f"cannot run on {agent.host.name} yet: {why}")
            arrival.refused = True
            return
        arrival.word = Word.RUNNING
        self._tell_source(guest, generation, source)

    def _tell_source(self, guest: str, generation: int, source: str) -> None:
        if source:
            ends = self.agent.world.hosts[source].agent.ends
            self._send(source, lambda: ends.arrived(guest, generation))

    def said(self, guest: str) -> Word:
        """Return what there is of a guest that comes."""
        if guest in self.agent.running and guest in self.arrivals:
            return Word.RUNNING
        return self.arrivals[guest].word if guest in self.arrivals else Word.ABSENT

    def take_over(self, guest: str, generation: int, epoch: int) -> Word | None:
        """Let a guest run that is gone from its source."""
        if not self.agent.current(epoch):
            return None
        self.gone(guest, generation)
        return self.said(guest)

    def drop(self, guest: str, epoch: int) -> None:
        """Forget a guest that does not come."""
        if self.agent.current(epoch) and self.said(guest) is not Word.RUNNING:
            self.arrivals.pop(guest, None)

    # The source

    def send(
        self,
        guest: str,
        generations: tuple[int, int],
        target: str,
        epoch: int,
        takes_ns: int,
        restart: bool,
        arrived: Callable[[], None],
    ) -> None:
        """Send a guest to another host. generations: its own, and the one that the target was granted."""
        agent, world = self.agent, self.agent.world
        current = generations[0] == agent.generations.get(guest, 0)
        if not agent.current(epoch) or not current or guest not in agent.running:
            return
        leaving = self.leaving[guest] = Leaving(target, generations[1], stopped=restart, arrived=arrived)
        self.noted.add(guest)
        if restart:
            agent.end(guest, "shut down to be moved")

        def arrive() -> None:
            there = guest in agent.running or leaving.stopped
            if self.leaving.get(guest) is leaving and there and not leaving.kept:
                ends = world.hosts[target].agent.ends
                self._send(target, lambda: ends.complete(guest, generations[1], agent.host.name))

        agent.host.after(takes_ns, agent.boots, lambda: agent.do(arrive))

    def let_go(self, guest: str, target_generation: int) -> None:
        """End a guest here for good, as all of it is at its target."""
        leaving, agent = self._under_way(guest, target_generation), self.agent
        if leaving is None or leaving.kept or not (guest in agent.running or leaving.stopped):
            return
        leaving.given = True
        agent.put(guest, None)
        if agent.world.rules.given_is_stale:
            agent.generations[guest] = target_generation
        ends = agent.world.hosts[leaving.target].agent.ends
        me = agent.host.name
        self._send(leaving.target, lambda: ends.gone(guest, target_generation, me))

    def arrived(self, guest: str, target_generation: int) -> None:
        """The target says that it runs: the task of sending it has ended well."""
        leaving = self._under_way(guest, target_generation)
        if leaving is not None:
            leaving.arrived()

    def _under_way(self, guest: str, target_generation: int) -> Leaving | None:
        """Return the move that a target speaks of; each has a connection of its own, so a late word is never taken for another one's."""
        leaving = self.leaving.get(guest)
        return leaving if leaving is not None and leaving.generation == target_generation else None

    def keep(self, guest: str, generation: int, epoch: int) -> Word | None:
        """Keep a guest, unless it was let go of. Says what became of it."""
        agent = self.agent
        if not agent.current(epoch):
            return None
        leaving = self.leaving.get(guest)
        if leaving is not None and leaving.given:
            return Word.ABSENT
        if leaving is not None:
            leaving.kept = True
        agent.generations[guest] = max(generation, agent.generations.get(guest, 0))
        if guest in agent.copies:
            agent.put(guest, replace(agent.copies[guest], generation=agent.generations[guest]))
        if guest in agent.running:
            return Word.RUNNING
        return Word.STOPPED if leaving is not None or guest not in self.noted else Word.ABSENT

    def _send(self, to: str, what: Callable[[], None]) -> None:
        self.agent.world.to_agent(self.agent.host.name, to, "", what)


@dataclass
class Step:
    """One operation as this manager knows it."""

    word: str
    since: int
    takes: int = 0
    asked: int = -1
    source: Word | None = None
    target: Word | None = None


class Moves:
    """The operations of an acting manager. A new one knows nothing of the others': it finds out who has the guests."""

    def __init__(self, manager: Manager) -> None:
        self.manager, self.world = manager, manager.world
        self.known: dict[str, Step] = {}
        self._writing: set[str] = set()

    def tick(self) -> None:
        """Carry on with each move; those of one guest come one after another."""
        for move in self.manager.replica.open_moves():
            if move.guest not in self._writing:
                self._drive(move)

    def _drive(self, move: Move) -> None:
        guest = self.manager.replica.guests.get(move.guest)
        if guest is None:
            self._end(move, None, Course.FAILED, "GUEST_NOT_FOUND", f"{move.guest} was deleted")
        elif not guest.status.HasField("migration"):
            self.known.pop(move.name, None)
            if not guest.status.HasField("lock") and not self._writing and not self.manager.giving:
                self._announce(move, guest)
        elif guest.status.migration.task == move.name:
            now = self.manager.now()
            step = self.known.setdefault(move.name, Step("settle", now))
            if step.word == "announced":
                self._prepare(move, guest, step)
            elif step.word == "given":
                self._give(move, guest, step)
            elif step.word == "moving" and now - step.since > step.takes + PATIENCE:
                step.word = "settle"
            elif step.word == "settle":
                self._settle(move, guest, step)

    # Where to.

    def _announce(self, move: Move, guest: Guest) -> None:
        name, home = move.guest, guest.status.node
        node = self.manager.replica.nodes.get(home)
        if move.actor == "ha" and guest.status.ha.task != move.name:
            self._end(move, guest, Course.FAILED, "SUPERSEDED", "something else became of the guest meanwhile")
            return
        if home and home == move.target:
            self._end(move, guest, Course.DONE)
            return
        ready = node is not None and node.status.state == NODE_STATE_ONLINE and self.manager.heard_as(node)
        if not ready or guest.status.phase in IN_FLUX or home not in self.manager.reports:
            return
        if not self.manager.guests.confirmed(guest):
            return
        copy = self.manager.reports[home].copies.get(name)
        running = copy is not None and copy.running
        target, reason, why = self._target(move, guest, running=running)
        if not target:
            self._end(move, guest, Course.FAILED, reason, why)
            return
        announced = copy_of(guest)
        way = announced.status.migration
        way.task, way.source, way.target, way.generation = move.name, home, target, guest.meta.generation + 1
        takes = self.world.rng.randrange(200 * MS, 8 * S)
        if self.world.calm:
            takes = (
                (START_MS + memory_of(guest.spec) * 1000 // WIRE_BYTES_PER_S) * MS
                if not move.restart
                else START_MS * MS
            )
        self.known[move.name] = Step("announced" if running else "given", self.manager.now(), takes)
        how = "moves" if running else "is given, as it does not run,"
        self._put(announced, {}, f"{how} from {home} to {target}", gives=True)

    def _target(self, move: Move, guest: Guest, *, running: bool) -> tuple[str, str, str]:
        """Return the target, or a reason and why there is none."""
        replica, home = self.manager.replica, guest.status.node
        nodes, guests = list(replica.nodes.values()), list(replica.guests.values())
        company = self._company(guest)
        settings, load_of = planner_settings(replica.cluster.settings), self.manager.loads.of
        counts = terms(nodes, guests, replica.rules.values(), settings, company, load_of=load_of)
        wanted = with_company(guest, company, load_of)
        views = {view.name: view for view in node_views(nodes, guests, ignoring=move.guest, load_of=load_of)}
        if move.target:
            view = views.get(move.target) or NodeView(move.target, False, offline_reason="there is no such node")
            return self._checked(guest, wanted, view, counts, running=running)
        decision = place(wanted, list(views.values()), counts)
        refused = ("", "", "")
        for verdict in decision.verdicts:
            if verdict.fits and verdict.node != home:
                found = self._checked(guest, wanted, views[verdict.node], counts, running=running)
                if found[0]:
                    return found
                refused = refused if refused[1] else found
        others = "; ".join(f"{v.node}: {', '.join(v.refusals)}" for v in decision.verdicts if v.node != home)
        why = f"no other node can take guest {move.guest}: {others or 'there is no other node'}."
        return refused if refused[1] else ("", "NO_NODE_FITS", why)

    def _company(self, guest: Guest) -> list[Guest]:
        """Return who leaves a node with a guest: nobody unless the node is being emptied, or the guest goes home."""
        replica, node, home = self.manager.replica, guest.status.node, guest.status.home
        under_way = [drain for drain in replica.drains.values() if drain.course is Course.OPEN]
        emptied = any(drain.node == node and not drain.back for drain in under_way)
        returns = home not in ("", node) and any(drain.node == home and drain.back for drain in under_way)
        if not emptied and not returns:
            return []
        bound = bound_with(replica.rules.values(), replica.guests.values(), guest)
        return [one for one in bound if emptied or one.status.home == home]

    def _checked(
        self, guest: Guest, wanted: GuestRequest, view: NodeView, counts: Terms, *, running: bool
    ) -> tuple[str, str, str]:
        state = GUEST_STATE_RUNNING if running else GUEST_STATE_STOPPED
        found = obstacles(guest, state, view, wanted, self.manager.pools(), (), counts)
        if found:
            return "", "MIGRATION_IMPOSSIBLE", f"{guest.meta.name} cannot move to {view.name}: {words_of(found)}"
        return view.name, "", ""

    # How.

    def _give(self, move: Move, guest: Guest, step: Step) -> None:
        """Give a guest away that does not run, once its source cannot start it any more."""
        way, epoch = guest.status.migration, self.manager.machine.epoch
        if self.manager.now() - step.asked < ANSWER_TIMEOUT and step.asked >= 0:
            return
        step.asked = self.manager.now()
        ends, target, generation = self.world.hosts[guest.status.node].agent.ends, way.target, way.generation

        def kept(word: Word | None) -> None:
            now = self.manager.replica.guests.get(move.guest)
            if word is None or now != guest or not self.manager.acts_in(epoch):
                return
            if word is Word.RUNNING:
                step.word = "settle"
                return
            given = copy_of(guest)
            given.status.ClearField("migration")
            given.meta.generation = generation
            given.status.previous_node = guest.status.node
            give(given, target, disarmed=self.manager.replica.cluster.ha.disarmed)
            given.status.reason = f"given to {target}"
            self._end(move, given, Course.DONE)

        self._ask(guest.status.node, lambda: ends.keep(move.guest, generation, epoch), kept)

    def _prepare(self, move: Move, guest: Guest, step: Step) -> None:
        name, way = move.guest, guest.status.migration
        target, generation, spec = way.target, way.generation, agent_spec(guest, ha=guest.status.ha_armed)
        epoch, source, process = self.manager.machine.epoch, guest.status.node, self.manager.process
        ends = self.world.hosts[target].agent.ends
        step.word, step.since = "moving", self.manager.now()
        me = self.manager.host.name

        def adopt() -> None:
            """The source's task ended well: neither end is asked again."""
            now = self.manager.replica.guests.get(name)
            held_still = now is not None and now.status.migration == way
            if process == self.manager.process and self.manager.acts_in(epoch) and now is not None and held_still:
                self._adopted(move, now)

        def ready(ok: bool | None) -> None:
            if ok and self.manager.acts_in(epoch):
                sender = self.world.hosts[source].agent.ends
                answer = partial(self.world.send, source, me, "", adopt)
                restart = move.restart or guest.spec.kind == GUEST_KIND_CONTAINER
                generations = (guest.meta.generation, generation)
                send = partial(sender.send, name, generations, target, epoch, step.takes, restart, answer)
                self.world.to_agent(me, source, "", send)
            elif self.manager.acts_in(epoch):
                step.word = "settle"

        self._ask(target, lambda: ends.prepare(spec, generation, epoch), ready)

    def _settle(self, move: Move, guest: Guest, step: Step) -> None:
        name, way = move.guest, guest.status.migration
        now, epoch = self.manager.now(), self.manager.machine.epoch
        if now - step.asked < ANSWER_TIMEOUT and step.asked >= 0:
            return
        step.asked, step.source, step.target = (
            now,
            self._proof(guest, guest.status.node),
            self._proof(guest, way.target),
        )
        source_ends = self.world.hosts[guest.status.node].agent.ends
        target_ends = self.world.hosts[way.target].agent.ends

        def told_target(word: Word | None) -> None:
            if step.asked == now:  # nobody listens to the answer of a call that was given up
                step.target = word
                self._carry_out(move, guest, step, epoch)

        def told_source(word: Word | None) -> None:
            if step.asked != now:
                return
            step.source = word
            if step.target is None:
                self._ask(way.target, lambda: target_ends.said(name), told_target)
            else:
                self._carry_out(move, guest, step, epoch)

        if step.source is None:
            keep = partial(source_ends.keep, name, way.generation + 1, epoch)
            self._ask(guest.status.node, keep, told_source)
        else:
            told_source(step.source)

    def _carry_out(self, move: Move, guest: Guest, step: Step, epoch: int) -> None:
        name, way = move.guest, guest.status.migration
        verdict = settle(step.source or Word.UNKNOWN, step.target or Word.UNKNOWN)
        ends = self.world.hosts[way.target].agent.ends
        if not self.manager.acts_in(epoch) or self.manager.replica.guests.get(name) != guest:
            return
        if verdict is Verdict.MOVED:
            self._adopted(move, guest)
        elif verdict is Verdict.TAKE_OVER:
            self._ask(way.target, lambda: ends.take_over(name, way.generation, epoch), lambda word: None)
        elif verdict in (Verdict.STAYS, Verdict.LOST):
            stays = copy_of(guest)
            stays.meta.generation = way.generation + 1
            stays.status.ClearField("migration")
            message = (
                f"the move of {name} was interrupted; it {'stays' if verdict is Verdict.STAYS else 'is started anew'}"
            )
            self._end(move, stays, Course.FAILED, "MIGRATION_INTERRUPTED", message)
            self.world.to_agent(self.manager.host.name, way.target, "", lambda: ends.drop(name, epoch))
        if verdict is not Verdict.WAIT:
            words = (
                f"source {step.source.name if step.source else '?'}, target {step.target.name if step.target else '?'}"
            )
            self.world.tell(guest_key(name), f"found out where it is: {words}: {verdict.name}")

    def _adopted(self, move: Move, guest: Guest) -> None:
        adopted = copy_of(guest)
        way = guest.status.migration
        adopted.status.previous_node = way.source
        adopted.status.ClearField("migration")
        assign(adopted, way.target, way.generation)
        self._end(move, adopted, Course.DONE, message=f"adopted by {way.target}")

    def _proof(self, guest: Guest, name: str) -> Word | None:
        node = self.manager.replica.nodes.get(name)
        if node is None:
            return Word.GONE
        if not (guest.status.ha_armed and guest.spec.ha.enabled):
            return None
        if node.status.state == NODE_STATE_FENCED:
            return Word.GONE
        recovering = name == guest.status.node and guest.status.phase == GUEST_PHASE_RECOVERING
        return Word.GONE if recovering and node.status.state == NODE_STATE_ONLINE else None

    def _end(self, move: Move, guest: Guest | None, course: Course, reason: str = "", message: str = "") -> None:
        ended = replace(move, course=course, reason=reason, message=message)
        tasks: dict[str, Object] = {f"move/{move.name}": ended}
        if guest is not None and course is Course.DONE and move.actor == "person" and guest.status.home:
            guest = copy_of(guest)
            guest.status.home = ""
        says = message if course is Course.FAILED or not guest else f"is on {guest.status.node} now"
        if guest is None:
            self._commit(move.guest, Txn({}, tasks))
        else:
            self._put(guest, tasks, f"not moved: {says}" if course is Course.FAILED else says)

    def _put(self, guest: Guest, tasks: dict[str, Object], says: str, *, gives: bool = False) -> None:
        key = guest_key(guest.meta.name)
        txn = Txn({key: self.manager.replica.revision_of(key)}, {key: guest, **tasks}, tells=((key, says),))
        self._commit(guest.meta.name, txn, gives=gives)

    def _commit(self, name: str, txn: Txn, *, gives: bool = False) -> None:
        self._writing.add(name)
        propose = self.manager.give if gives else self.manager.put
        propose(txn, lambda ok: self._writing.discard(name))

    def _ask(self, node: str, question: Callable[[], T], answer: Callable[[T], None]) -> None:
        me, process = self.manager.host.name, self.manager.process

        def reply() -> None:
            said = question()
            self.world.send(node, me, "", lambda: answer(said) if process == self.manager.process else None)

        self.world.to_agent(me, node, "", reply)
