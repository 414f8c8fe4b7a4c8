"""Hosts, their network, the consensus of managers and all faults, on a virtual clock; the promise is checked at every start of a guest.

Faults: power cuts, freezes of a whole host, partitions, messages lost and late by up to 30 s, answers of commits lost,
changes of the Raft leader at any time, clocks that drift apart by the stated bound, and their combinations. In a calm world
messages take milliseconds, and what happens is only what somebody asks for.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.rule_pb2 import Rule

from common.leases import DEFAULT_NODE_LEASE_MS, DRIFT_PPM, LeaseTimes
from manager.health import LAG_ENTRIES
from simulator.clockwork import MS, Queue, S
from simulator.devices import Device
from simulator.host import Host
from simulator.load import IDLE
from simulator.rules import Rules
from simulator.state import CLUSTER, State, Txn, guest_key, node_key
from simulator.storage import Pool, Storage


class TwoCopies(AssertionError):
    """The promise was broken."""


class TwoWriters(TwoCopies):
    """Two hosts write to one disk."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the log: when (nanoseconds of the world's clock), what it is about ("guest/web"), and what happened."""

    at_ns: int
    about: str
    text: str


@dataclass(frozen=True, slots=True)
class Setup:
    """A cluster as it begins. voters: nodes with a manager. off, cut: hosts without power, or without network.

    pools: those that are not as a shared folder on NFS. loads: CPUs that guests keep busy.
    """

    nodes: Sequence[Node]
    voters: Sequence[str]
    guests: Sequence[Guest] = ()
    rules: Sequence[Rule] = ()
    cluster: Cluster = field(default_factory=Cluster)
    off: frozenset[str] = frozenset()
    cut: frozenset[str] = frozenset()
    boot_ns: int = 2 * S
    pools: Sequence[Pool] = ()
    loads: Mapping[str, float] = field(default_factory=dict)


class World:
    """A cluster and the time."""

    def __init__(
        self, setup: Setup, seed: int, *, rules: Rules | None = None, drift_ppm: int = DRIFT_PPM, calm: bool = True
    ) -> None:
        self.rng = random.Random(seed)  # noqa: S311  faults are no secrets
        self.queue = Queue()
        self.setup = setup
        self.rules = rules or Rules()
        self.drift_ppm = drift_ppm
        self.names = [node.meta.name for node in setup.nodes]
        self.witnesses = {node.meta.name for node in setup.nodes if node.spec.witness}
        self.voters = list(setup.voters)
        self.times = self._times()
        self.links: set[frozenset[str]] = set()
        """Pairs of hosts that do not reach each other."""
        self.isolated: set[str] = set()
        """Hosts that reach nobody."""
        self.leader = self.voters[0]
        self.log: list[Happening] = []
        self.starts = 0
        self.calm = calm
        self.strict = True
        """Whether a second copy of a guest ends the run."""
        self.broken: list[str] = []
        """How the promise was broken."""
        self.cuts: list[tuple[int, str]] = []
        """When a fence device cut the power of which host."""
        self.storage = Storage(self, setup.pools)
        self.devices = {name: Device(self, name) for name in self.names}
        self.work = {name: IDLE.changed(cpus, 0) for name, cpus in setup.loads.items()}
        """What guests use, of those that use anything."""
        self.fail_starts: dict[str, list[tuple[str, int]]] = {}
        """Of guests whose next starts fail: on which node ("" for any) and how often still."""
        self.watchers: list[Callable[[], None]] = []
        """Called whenever something was committed, or a guest started or ended."""
        self._log: list[Txn] = []
        self.committed = State()
        self._known: dict[str, set[int]] = {name: set() for name in self.names}
        self._proposals = 0
        self._last_delivery: dict[tuple[str, str, str], int] = {}
        self.hosts = {name: Host(self, name) for name in self.names}
        self.isolated |= setup.cut
        first = {CLUSTER: setup.cluster}
        self.commit(Txn({}, {**first, **{node_key(node.meta.name): node for node in setup.nodes}}))
        for host in self.hosts.values():
            self.apply_all(host)
            if host.name not in setup.off:
                host.power_on()
        self._elect()

    def give_guests(self) -> None:
        """Let the guests and rules of the beginning be there."""
        rules = {f"rule/{rule.meta.name}": rule for rule in self.setup.rules}
        guests = {guest_key(guest.meta.name): guest for guest in self.setup.guests}
        self.commit(Txn({}, {**rules, **guests}))

    def uses(self, guest: str, cpus: float) -> None:
        """Let a guest keep so many CPUs busy from now on."""
        self.work[guest] = self.work.get(guest, IDLE).changed(cpus, self.queue.now)

    def tell(self, about: str, text: str) -> None:
        """Write a line into the log."""
        self.log.append(Happening(self.queue.now, about, text))

    @property
    def story(self) -> list[str]:
        """The log as lines for people."""
        return [f"{one.at_ns / S:8.3f} {one.about}: {one.text}" for one in self.log]

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.queue.run(self.queue.now + round(seconds * S))

    def _times(self) -> LeaseTimes:
        lease_ms = self.setup.cluster.settings.node_lease_ms or DEFAULT_NODE_LEASE_MS
        return self.rules.managers_times or LeaseTimes(lease_ms=lease_ms, drift_ppm=self.drift_ppm)

    # The promise.

    def copies(self, guest: str) -> list[str]:
        """Return where a guest runs."""
        return [name for name, host in self.hosts.items() if guest in host.agent.running]

    def check_copies(self, guest: str) -> None:
        """A guest began to run somewhere."""
        self.starts += 1
        where = self.copies(guest)
        self.tell(f"guest/{guest}", f"runs on {' and '.join(where)}")
        if writers := self.storage.two_writers(guest):
            self._broke(TwoWriters(writers))
        if len(where) > 1 and any(self.hosts[name].agent.copies[guest].held for name in where):
            self._broke(TwoCopies(f"{guest} runs on {' and '.join(where)}"))
        self.changed()

    def _broke(self, promise: TwoCopies) -> None:
        self.broken.append(str(promise))
        if self.strict:
            raise promise

    def changed(self) -> None:
        """Something is otherwise than it was."""
        for watcher in self.watchers:
            watcher()

    def start_fails(self, guest: str, node: str) -> bool:
        """Return whether a start of a guest fails now, and count it."""
        for i, (where, left) in enumerate(self.fail_starts.get(guest, ())):
            if where in ("", node) and left > 0:
                self.fail_starts[guest][i] = (where, left - 1)
                return True
        return False

    # The network.

    def cut_off(self, name: str, *, off: bool) -> None:
        """Let a host reach nobody, and be reached by nobody; or reach all again."""
        (self.isolated.add if off else self.isolated.discard)(name)
        self.storage.heard(self.hosts[name])
        self.tell(node_key(name), "network cut" if off else "network back")
        self.changed()

    def reaches(self, one: str, other: str) -> bool:
        """Return whether two hosts reach each other."""
        if one == other or not (self.links or self.isolated):
            return True
        return not ({one, other} & self.isolated or frozenset((one, other)) in self.links)

    def send(self, source: str, target: str, channel: str, what: Callable[[], None]) -> None:
        """Deliver in order within a channel; the empty channel has no order. A cut link loses, or delivers once healed."""
        delay = self.rng.randrange(MS // 2, 20 * MS)
        lost = False
        if not self.calm:
            if self.rng.random() < (0.02 if channel else 0.3):
                delay = self.rng.randrange(30 * S)
            lost = self.rng.random() < 0.02
        when = self.queue.now + delay
        if channel:
            when = max(when, self._last_delivery.get((source, target, channel), 0))
            self._last_delivery[source, target, channel] = when
        if not lost:
            self.queue.at(when, lambda: self._deliver(source, target, what))

    def to_agent(self, source: str, target: str, channel: str, what: Callable[[], None]) -> None:
        """Deliver to a host's agent."""
        self.send(source, target, channel, lambda: self.hosts[target].agent.do(what))

    def _deliver(self, source: str, target: str, what: Callable[[], None]) -> None:
        if self.reaches(source, target):
            self.hosts[target].do(what)
        elif not self.calm and self.rng.random() < 0.9:
            self.queue.after(self.rng.randrange(200 * MS), lambda: self._deliver(source, target, what))

    # Consensus.

    def propose(self, source: str, txn: Txn, done: Callable[[bool], None]) -> int:
        """Commit if the proposer leads and reaches a majority when its turn comes; its answer may be lost."""
        self._proposals += 1
        number = self._proposals
        host = self.hosts[source]

        def commit() -> None:
            ok = self.usable(source) and self.commit(txn)
            answer = self.rng.randrange(MS, 10 * MS)
            if not self.calm and self.rng.random() < 0.05:
                answer = self.rng.randrange(5 * S)
            self.queue.after(answer, lambda: host.do(lambda: finish(ok)))

        def finish(ok: bool) -> None:
            self.apply_all(host)
            self._known[source].add(number)
            done(ok)

        self.queue.after(self.rng.randrange(MS, 20 * MS), commit)
        return number

    def usable(self, name: str) -> bool:
        """Return whether a manager can commit."""
        host = self.hosts[name]
        return self.leader == name and self._majority(name) and host.powered and not host.frozen

    def outcome_known(self, source: str, number: int) -> bool:
        """Return whether a proposal's outcome is known to its proposer."""
        return number < 0 or number in self._known[source]

    def commit(self, txn: Txn) -> bool:
        """Commit if the compares hold."""
        ok = self.committed.apply(txn)
        if ok:
            self._log.append(txn)
            for about, text in txn.tells:
                self.tell(about, text)
            for name in self.voters:
                self.queue.after(self.rng.randrange(MS, 300 * MS), lambda n=name: self._apply_later(n))  # type: ignore[misc]
            if not (len(txn.puts) == 1 and "lease/acting" in txn.puts):
                self.changed()
        return ok

    def _apply_later(self, name: str) -> None:
        host = self.hosts[name]
        if host.manager.applied < len(self._log) and self._majority(name):
            host.do(lambda: self.apply_all(host))

    def apply_all(self, host: Host) -> None:
        """Bring a manager's replica up to date."""
        manager = host.manager
        for txn in self._log[manager.applied :]:
            manager.replica.apply(txn)
            manager.applied += 1
            manager.applied_txn(txn)

    def follows(self, me: str, name: str) -> bool:
        """Return whether a manager reaches another one that has nearly all of the log."""
        host = self.hosts[name]
        there = host.powered and not host.frozen and self.reaches(me, name)
        return there and len(self._log) - host.manager.applied <= LAG_ENTRIES

    def lead(self, name: str) -> None:
        """Let a manager lead the others."""
        self.leader = name
        self.tell(f"node/{name}", "leads the managers")
        self.hosts[name].do(lambda: self.apply_all(self.hosts[name]))

    def _majority(self, name: str) -> bool:
        if name not in self.voters:
            return False
        up = [o for o in self.voters if self.hosts[o].powered and not self.hosts[o].frozen and self.reaches(name, o)]
        return len(up) > len(self.voters) // 2

    def _elect(self) -> None:
        """Every second: a leader that is no use loses to one that is; without faults only sometimes."""
        able = [n for n in self.voters if self.hosts[n].powered and not self.hosts[n].frozen and self._majority(n)]
        if able and (self.leader not in able or (not self.calm and self.rng.random() < 0.02)):
            self.lead(self.rng.choice(able))
        if self.calm:
            for name in able:
                self._apply_later(name)
        self.queue.after(S, self._elect)

    @property
    def acting(self) -> str:
        """The manager that holds the lease by the state."""
        return self.committed.lease.holder if self.committed.lease else ""

    def placed(self) -> bool:
        """Whether each guest that is to run runs exactly where the state says."""
        return all(self.copies(name) == [guest.status.node] for name, guest in self.committed.guests.items())
