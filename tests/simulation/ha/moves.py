"""Migrations in the simulation: the two ends of agent.migration and the operation of manager.operations.migrate, in small.

What decides is the product's: `manager.ha.migration.settle`, and `recover`, which waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, GUEST_PHASE_RUNNING
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE

from manager.ha.migration import Verdict, Word, settle
from tests.simulation.ha.clockwork import MS, S
from tests.simulation.ha.state import Guest, Txn

if TYPE_CHECKING:
    from tests.simulation.ha.agent import Agent
    from tests.simulation.ha.manager import Manager

T = TypeVar("T")

ANSWER_TIMEOUT = 3 * S
PATIENCE = 15 * S
"""After so long an operation finds out who has the guest, whatever is under way."""


@dataclass
class Arrival:
    """A guest that comes to a host."""

    generation: int
    word: Word = Word.COMING


@dataclass
class Leaving:
    """A guest that leaves a host."""

    target: str
    kept: bool = False
    given: bool = False
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
        self.arrivals.clear()
        self.leaving.clear()

    def restarted(self) -> None:
        """The agent's process alone was killed: the hypervisors go on, the tunnels break."""
        self.leaving.clear()
        self.arrivals = {name: one for name, one in self.arrivals.items() if one.word is not Word.COMING}

    def killed(self) -> None:
        """The lease ended: whatever is here of guests under HA is dead."""
        self.arrivals.clear()

    def _current(self, epoch: int) -> bool:
        if epoch < self.agent.epoch:
            return False
        self.agent.epoch = epoch
        return True

    # The target

    def prepare(self, guest: str, generation: int, epoch: int) -> bool:
        agent = self.agent
        if not self._current(epoch) or generation < agent.generations.get(guest, 0) or guest in agent.running:
            return False
        agent.generations[guest] = generation
        self.arrivals[guest] = Arrival(generation)
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
        if not agent.keeper.holds(agent.host.clock.now()):
            return
        arrival.word = Word.RUNNING
        agent.running.add(guest)
        agent.world.check_copies(guest)
        self._tell_source(guest, generation, source)

    def _tell_source(self, guest: str, generation: int, source: str) -> None:
        if source:
            ends = self.agent.world.hosts[source].agent.ends
            self._send(source, lambda: ends.arrived(guest, generation))

    def said(self, guest: str) -> Word:
        if guest in self.agent.running and guest in self.arrivals:
            return Word.RUNNING
        return self.arrivals[guest].word if guest in self.arrivals else Word.ABSENT

    def take_over(self, guest: str, generation: int, epoch: int) -> Word | None:
        if not self._current(epoch):
            return None
        self.gone(guest, generation)
        return self.said(guest)

    def drop(self, guest: str, epoch: int) -> None:
        if self._current(epoch) and self.said(guest) is not Word.RUNNING:
            self.arrivals.pop(guest, None)

    # The source

    def send(
        self,
        guest: str,
        generation: int,
        target: str,
        target_generation: int,
        epoch: int,
        arrived: Callable[[], None],
    ) -> None:
        agent, world = self.agent, self.agent.world
        if not self._current(epoch) or generation != agent.generations.get(guest, 0) or guest not in agent.running:
            return
        leaving = self.leaving[guest] = Leaving(target, arrived=arrived)
        self.noted.add(guest)

        def arrive() -> None:
            if self.leaving.get(guest) is leaving and guest in agent.running and not leaving.kept:
                ends = world.hosts[target].agent.ends
                self._send(target, lambda: ends.complete(guest, target_generation, agent.host.name))

        agent.host.after(world.rng.randrange(200 * MS, 8 * S), agent.boots, arrive)

    def let_go(self, guest: str, target_generation: int) -> None:
        leaving = self.leaving.get(guest)
        if leaving is None or leaving.kept or guest not in self.agent.running:
            return
        leaving.given = True
        self.agent.running.discard(guest)
        if self.agent.world.rules.given_is_stale:
            self.agent.generations[guest] = target_generation
        ends = self.agent.world.hosts[leaving.target].agent.ends
        me = self.agent.host.name
        self._send(leaving.target, lambda: ends.gone(guest, target_generation, me))

    def arrived(self, guest: str, target_generation: int) -> None:
        """The target says that it runs: the task of sending it has ended well."""
        leaving = self.leaving.get(guest)
        if leaving is not None:
            leaving.arrived()

    def keep(self, guest: str, generation: int, epoch: int) -> Word | None:
        if not self._current(epoch):
            return None
        leaving = self.leaving.get(guest)
        if leaving is not None and leaving.given:
            return Word.ABSENT
        if leaving is not None:
            leaving.kept = True
        self.agent.generations[guest] = max(generation, self.agent.generations.get(guest, 0))
        if guest in self.agent.running:
            return Word.RUNNING
        return Word.STOPPED if leaving is not None or guest not in self.noted else Word.ABSENT

    def _send(self, to: str, what: Callable[[], None]) -> None:
        self.agent.world.send(self.agent.host.name, to, "", what)


@dataclass
class Move:
    """One operation as this manager knows it."""

    step: str
    since: int
    asked: int = -1
    source: Word | None = None
    target: Word | None = None


class Moves:
    """The operations of an acting manager. A new one knows nothing of the others': it finds out who has the guests."""

    def __init__(self, manager: Manager) -> None:
        self.manager, self.world = manager, manager.world
        self.known: dict[str, Move] = {}

    def begin(self) -> None:
        """Now and then, someone asks for a migration."""
        manager = self.manager
        if not self.world.rules.migrations:
            return
        for name, guest in manager.replica.guests().items():
            beat = manager.beats.get(guest.node)
            settled = guest.phase == GUEST_PHASE_RUNNING and beat is not None and name in beat[1].running
            if not settled or guest.migration is not None or self.world.rng.random() > self.world.rules.migrations:
                continue
            target = self.world.rng.choice([node for node in self.world.names if node != guest.node])
            if manager.replica.node(target).state == NODE_STATE_ONLINE:
                self._put(name, replace(guest, migration=(target, guest.generation + 1)))
                self.known[name] = Move("announced", manager.now())

    def tick(self) -> None:
        for name, guest in self.manager.replica.guests().items():
            if guest.migration is None:
                self.known.pop(name, None) if self.known.get(name, Move("", 0)).step != "announced" else None
                continue
            move = self.known.setdefault(name, Move("settle", self.manager.now()))
            if move.step == "announced":
                self._prepare(name, guest, move)
            elif move.step == "moving" and self.manager.now() - move.since > PATIENCE:
                move.step = "settle"
            elif move.step == "settle":
                self._settle(name, guest, move)

    def _prepare(self, name: str, guest: Guest, move: Move) -> None:
        assert guest.migration is not None
        target, generation = guest.migration
        epoch, source = self.manager.machine.epoch, guest.node
        ends = self.world.hosts[target].agent.ends
        move.step, move.since = "moving", self.manager.now()
        me, process = self.manager.host.name, self.manager.process

        def adopt() -> None:
            """The source's task ended well: neither end is asked again."""
            held = self.manager.replica.guests()[name].migration == (target, generation)
            if process == self.manager.process and self._acts(epoch) and held:
                self._put(name, Guest(target, generation, GUEST_PHASE_RUNNING))
                self.world.log(f"{me}: {name} adopted by {target}")

        def ready(ok: bool | None) -> None:
            if ok and self._acts(epoch):
                sender = self.world.hosts[source].agent.ends
                answer = partial(self.world.send, source, me, "", adopt)
                send = partial(sender.send, name, guest.generation, target, generation, epoch, answer)
                self.world.send(me, source, "", send)
            elif self._acts(epoch):
                move.step = "settle"

        self._ask(target, lambda: ends.prepare(name, generation, epoch), ready)

    def _settle(self, name: str, guest: Guest, move: Move) -> None:
        assert guest.migration is not None
        target, generation = guest.migration
        now, epoch = self.manager.now(), self.manager.machine.epoch
        if now - move.asked < ANSWER_TIMEOUT and move.asked >= 0:
            return
        move.asked, move.source, move.target = now, self._proof(guest, guest.node), self._proof(guest, target)
        source_ends = self.world.hosts[guest.node].agent.ends
        target_ends = self.world.hosts[target].agent.ends

        def decide() -> None:
            verdict = settle(move.source or Word.UNKNOWN, move.target or Word.UNKNOWN)
            self._carry_out(name, guest, move, verdict, epoch)

        def told_target(word: Word | None) -> None:
            move.target = word
            decide()

        def told_source(word: Word | None) -> None:
            move.source = word
            if move.target is None:
                self._ask(target, lambda: target_ends.said(name), told_target)
            else:
                decide()

        if move.source is None:
            self._ask(guest.node, lambda: source_ends.keep(name, generation + 1, epoch), told_source)
        else:
            told_source(move.source)

    def _carry_out(self, name: str, guest: Guest, move: Move, verdict: Verdict, epoch: int) -> None:
        assert guest.migration is not None
        target, generation = guest.migration
        ends = self.world.hosts[target].agent.ends
        if not self._acts(epoch) or self.manager.replica.guests()[name] != guest:
            return
        if verdict is Verdict.MOVED:
            self._put(name, Guest(target, generation, GUEST_PHASE_RUNNING))
        elif verdict is Verdict.TAKE_OVER:
            self._ask(target, lambda: ends.take_over(name, generation, epoch), lambda word: None)
        elif verdict in (Verdict.STAYS, Verdict.LOST):
            self._put(name, replace(guest, generation=generation + 1, migration=None))
            self.world.send(self.manager.host.name, target, "", lambda: ends.drop(name, epoch))
        if verdict is not Verdict.WAIT:
            self.world.log(f"{self.manager.host.name}: {name} {move.source} {move.target} {verdict.name}")

    def _proof(self, guest: Guest, node: str) -> Word | None:
        state = self.manager.replica.node(node).state
        if state == NODE_STATE_FENCED:
            return Word.GONE
        recovering = node == guest.node and guest.phase == GUEST_PHASE_RECOVERING
        return Word.GONE if recovering and state == NODE_STATE_ONLINE else None

    def _acts(self, epoch: int) -> bool:
        return self.manager.machine.acting(self.manager.now()) and self.manager.machine.epoch == epoch

    def _put(self, name: str, guest: Guest) -> None:
        key = f"guest/{name}"
        compares = {key: self.manager.replica.revision_of(key)}
        self.world.propose(self.manager.host.name, Txn(compares, {key: guest}), lambda ok: None)

    def _ask(self, node: str, question: Callable[[], T], answer: Callable[[T], None]) -> None:
        me, process = self.manager.host.name, self.manager.process

        def reply() -> None:
            said = question()
            self.world.send(node, me, "", lambda: answer(said) if process == self.manager.process else None)

        self.world.send(me, node, "", reply)
