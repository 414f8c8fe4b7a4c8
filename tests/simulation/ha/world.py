"""Hosts, their network and their faults on a virtual clock; the promise is checked at every start of a guest.

Faults: power cuts, freezes of a whole host, partitions, messages lost and late by up to 30 s, answers of commits lost,
changes of the Raft leader at any time, clocks that drift apart by the stated bound, and their combinations.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING
from gugus.cluster.v1.node_pb2 import NODE_STATE_JOINING

from common.leases import DRIFT_PPM, LeaseTimes
from manager.ha import node_machine
from manager.ha.node_machine import NodeView
from tests.simulation.ha.agent import BOOT, Agent
from tests.simulation.ha.clockwork import MS, DriftingClock, Queue, S
from tests.simulation.ha.devices import Device
from tests.simulation.ha.manager import Manager
from tests.simulation.ha.state import Guest, Node, State, Txn

Renews = Callable[[NodeView, int, LeaseTimes], bool]


class TwoCopies(AssertionError):
    """The promise was broken."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds; a mutation switches one off."""

    generations: bool = True
    epochs: bool = True
    raise_epoch: bool = True
    start_needs_lease: bool = True
    epoch_of_decision: bool = True
    recovery_minds_migrations: bool = True
    hand_over: bool = True
    given_is_stale: bool = True
    word_after_arrival: bool = True
    migrations: float = 0.0
    """Chance at each look of a manager that someone asks for the migration of a guest that runs."""
    boots_know_the_epoch: bool = True
    devices: bool = False
    """Every host has fence devices, and people who confirm what they saw."""
    renews: Renews = node_machine.renews
    managers_times: LeaseTimes | None = None


class Host:
    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        spread = world.drift_ppm // 2 - 1
        ppm = -spread if name == "n1" else world.rng.choice([-spread, 0, spread])
        self.clock = DriftingClock(world.queue, world.rng.randrange(1000 * S), ppm)
        self.powered = False
        self.frozen = False
        self._held: list[Callable[[], None]] = []
        self.agent = Agent(self)
        self.manager = Manager(self)

    def power_on(self) -> None:
        if not self.powered:
            self.powered, self.frozen = True, False
            self.agent.boot()
            self.manager.begin()

    def power_off(self) -> None:
        if self.powered:
            self.world.log(f"{self.name}: power off")
            self.powered, self.frozen, self._held = False, False, []
            self.agent.power_cut()
            self.manager.process += 1

    def freeze(self) -> None:
        self.world.log(f"{self.name}: frozen")
        self.frozen = self.powered

    def thaw(self) -> None:
        held, self._held, self.frozen = self._held, [], False
        self.world.rng.shuffle(held)
        for what in held:
            self.do(what)

    def do(self, what: Callable[[], None]) -> None:
        """Do something now; once thawed, if this host is frozen; never, if it is off."""
        if self.powered and self.frozen:
            self._held.append(what)
        elif self.powered:
            what()

    def every(self, period: int, alive: Callable[[], bool], what: Callable[[], None]) -> None:
        def again() -> None:
            if alive():
                what()
                self.world.queue.after(period, lambda: self.do(again))

        self.world.queue.after(self.world.rng.randrange(period), lambda: self.do(again))

    def after(self, delay: int, boot: int, what: Callable[[], None]) -> None:
        self.world.queue.after(delay, lambda: self.do(lambda: what() if boot == self.agent.boots else None))


class World:
    def __init__(
        self, seed: int, *, rules: Rules | None = None, drift_ppm: int = DRIFT_PPM, calm: bool = False, nodes: int = 3
    ) -> None:
        self.rng = random.Random(seed)
        self.queue = Queue()
        self.rules = rules or Rules()
        self.drift_ppm = drift_ppm
        self.times = self.rules.managers_times or LeaseTimes(drift_ppm=drift_ppm)
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.cut: set[frozenset[str]] = set()
        self.leader = "n1"
        self.story: list[str] = []
        self.starts = 0
        self.calm = calm
        self.cuts: list[tuple[int, str]] = []
        """When a fence device cut the power of which host."""
        self.devices = {name: Device(self, name) for name in self.names}
        self._log: list[Txn] = []
        self._committed = State()
        self._known: dict[str, set[int]] = {name: set() for name in self.names}
        self._proposals = 0
        self._last_delivery: dict[tuple[str, str, str], int] = {}
        self.hosts = {name: Host(self, name) for name in self.names}
        first: dict[str, Node | Guest] = {f"node/{name}": Node(NODE_STATE_JOINING) for name in self.names}
        first |= {f"guest/g{i}": Guest("n1", 1, GUEST_PHASE_RUNNING) for i in range(2)}
        self._commit(Txn({}, first))
        for host in self.hosts.values():
            self._apply_all(host.manager)
            host.power_on()
        self._elect()

    def log(self, text: str) -> None:
        self.story.append(f"{self.queue.now / S:8.3f} {text}")

    def run(self, seconds: float) -> None:
        self.queue.run(self.queue.now + int(seconds * S))

    # The promise.

    def copies(self, guest: str) -> list[str]:
        return [name for name, host in self.hosts.items() if host.powered and guest in host.agent.running]

    def check_copies(self, guest: str) -> None:
        self.starts += 1
        where = self.copies(guest)
        self.log(f"{guest} runs on {where}")
        if len(where) > 1:
            raise TwoCopies(f"{guest} runs on {where}")

    # The network.

    def reaches(self, one: str, other: str) -> bool:
        return one == other or frozenset((one, other)) not in self.cut

    def send(self, source: str, target: str, channel: str, what: Callable[[], None]) -> None:
        """Deliver in order within a channel; the empty channel has no order. A cut link loses, or delivers once healed."""
        delay = self.rng.randrange(MS // 2, 20 * MS)
        if not self.calm and self.rng.random() < (0.02 if channel else 0.3):
            delay = self.rng.randrange(30 * S)
        when = self.queue.now + delay
        if channel:
            when = max(when, self._last_delivery.get((source, target, channel), 0))
            self._last_delivery[source, target, channel] = when
        lost = not self.calm and self.rng.random() < 0.02
        self.queue.at(when, lambda: None if lost else self._deliver(source, target, what))

    def _deliver(self, source: str, target: str, what: Callable[[], None]) -> None:
        if self.reaches(source, target):
            self.hosts[target].do(what)
        elif self.rng.random() < 0.9:
            self.queue.after(self.rng.randrange(200 * MS), lambda: self._deliver(source, target, what))

    # Consensus.

    def propose(self, source: str, txn: Txn, done: Callable[[bool], None]) -> int:
        """Commit if the proposer leads and reaches a majority when its turn comes; its answer may be lost."""
        self._proposals += 1
        number = self._proposals
        host = self.hosts[source]

        def commit() -> None:
            usable = self.leader == source and self._majority(source) and host.powered and not host.frozen
            ok = usable and self._commit(txn)
            answer = self.rng.randrange(MS, 10 * MS)
            if not self.calm and self.rng.random() < 0.05:
                answer = self.rng.randrange(5 * S)
            self.queue.after(answer, lambda: host.do(lambda: finish(ok)))

        def finish(ok: bool) -> None:
            self._apply_all(host.manager)
            self._known[source].add(number)
            done(ok)

        self.queue.after(self.rng.randrange(MS, 20 * MS), commit)
        return number

    def outcome_known(self, source: str, number: int) -> bool:
        return number < 0 or number in self._known[source]

    def _commit(self, txn: Txn) -> bool:
        ok = self._committed.apply(txn)
        if ok:
            self._log.append(txn)
            for name in self.names:
                self.queue.after(self.rng.randrange(MS, 300 * MS), lambda n=name: self._apply_later(n))  # type: ignore[misc]
        return ok

    def _apply_later(self, name: str) -> None:
        if self._majority(name):
            self.hosts[name].do(lambda: self._apply_all(self.hosts[name].manager))

    def _apply_all(self, manager: Manager) -> None:
        for txn in self._log[manager.applied :]:
            manager.replica.apply(txn)
            manager.applied += 1
            manager.applied_txn()

    def _majority(self, name: str) -> bool:
        up = [o for o in self.names if self.hosts[o].powered and not self.hosts[o].frozen and self.reaches(name, o)]
        return len(up) > len(self.names) // 2

    def _elect(self) -> None:
        """Every second: a leader that is no use loses to one that is; without faults only sometimes."""
        able = [n for n in self.names if self.hosts[n].powered and not self.hosts[n].frozen and self._majority(n)]
        if able and (self.leader not in able or (not self.calm and self.rng.random() < 0.02)):
            self.leader = self.rng.choice(able)
            self.log(f"{self.leader} leads Raft")
            self.hosts[self.leader].do(lambda: self._apply_all(self.hosts[self.leader].manager))
        if self.calm:
            for name in able:
                self._apply_later(name)
        self.queue.after(S, self._elect)

    # Faults.

    def some_fault(self) -> None:
        host = self.hosts[self.rng.choice(self.names)]
        lasts = self.rng.choice([S, 4 * S, 9 * S, 13 * S, 20 * S])
        match self.rng.randrange(6 if self.rules.migrations else 5):
            case 0:
                host.power_off()
                self.queue.after(lasts + BOOT, host.power_on)
                if self.rules.devices and self.rng.random() < 0.5:
                    self.queue.after(self.rng.randrange(lasts + BOOT), lambda: self._someone_looks(host))
            case 1 | 2:
                host.freeze()
                self.queue.after(lasts + self.rng.randrange(S), host.thaw)
            case 3:
                self._partition({frozenset((host.name, other)) for other in self.names if other != host.name}, lasts)
            case 4:
                self._partition({frozenset(self.rng.sample(self.names, 2))}, lasts)
            case _:
                self.log(f"{host.name}: agent restarted")
                host.agent.ends.restarted()

    def _someone_looks(self, host: Host) -> None:
        """A person who sees a host off says so, later, to whichever manager; what was seen is told with it."""
        node = self._committed.node(host.name)
        if host.powered:
            return
        for other in self.hosts.values():
            self.queue.after(
                self.rng.randrange(30 * S),
                lambda o=other: o.do(lambda: o.manager.told_off(host.name, (node.boot_id, node.lapse_number))),  # type: ignore[misc]
            )

    def _partition(self, links: set[frozenset[str]], lasts: int) -> None:
        self.log(f"cut {sorted(map(sorted, links))}")
        self.cut |= links
        self.queue.after(lasts, lambda: self.cut.difference_update(links))

    def placed(self) -> bool:
        """Whether each guest runs exactly where the state says."""
        return all(self.copies(name) == [guest.node] for name, guest in self._committed.guests().items())

    @property
    def acting(self) -> str:
        lease = self._committed.lease()
        return lease[0].holder if lease else ""

    def storm(self, seconds: int) -> None:
        """Faults every few seconds, then calm with everything on and healed."""
        end = self.queue.now + seconds * S
        while self.queue.now < end:
            self.run(self.rng.uniform(0.5, 9))
            self.some_fault()
        self.run(25)
        self.calm = True
        self.cut.clear()
        for host in self.hosts.values():
            host.thaw()
            host.power_on()
