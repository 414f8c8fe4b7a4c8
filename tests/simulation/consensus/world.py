"""A simulated cluster: the real RaftCore, journal and codec on a virtual clock, seeded links and forgetful disks.

Invariant: one seed gives one run, event by event; every broken promise of consensus raises Violation at once.
"""

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from manager.consensus.codec import decode_message, encode_message
from manager.consensus.core import RaftCore, Setup
from manager.consensus.library import Message, virtual_clock
from manager.consensus.types import ConsensusError, Limits, Member, Timings

TICK_S = 0.05
MAX_STEPS = 200_000
"""Events in one run; a healthy one has some ten thousand."""


class Violation(AssertionError):
    """A promise was broken."""


class SimDisk:
    """A disk that forgets what was not synced, or keeps a torn part of it."""

    def __init__(self) -> None:
        self.durable: dict[str, bytes] = {}
        self.pending: dict[str, bytearray] = {}

    def read(self, name: str) -> bytes | None:
        if name not in self.durable and name not in self.pending:
            return None
        return self.durable.get(name, b"") + bytes(self.pending.get(name, b""))

    def replace(self, name: str, data: bytes) -> None:
        self.durable[name] = data
        self.pending.pop(name, None)

    def append(self, name: str, data: bytes) -> None:
        self.pending.setdefault(name, bytearray()).extend(data)

    def sync(self, name: str) -> None:
        if name in self.pending:
            self.durable[name] = self.durable.get(name, b"") + bytes(self.pending.pop(name))

    def close(self) -> None:
        pass

    def power_cut(self, rng: random.Random) -> None:
        for name, data in self.pending.items():
            kept = bytes(data[: rng.randint(0, len(data))])
            hole = bytes(rng.choice([0, 0, 7, 100]))
            self.durable[name] = self.durable.get(name, b"") + kept + hole
        self.pending.clear()


class History:
    """What was applied anywhere: the one sequence that all must agree on."""

    def __init__(self) -> None:
        self.payloads: dict[int, bytes] = {}
        self.digests: dict[int, bytes] = {0: b""}

    def check(self, who: str, index: int, payload: bytes, digest: bytes) -> None:
        if self.payloads.setdefault(index, payload) != payload:
            raise Violation(f"{who} applied another payload at {index}")
        if self.digests.setdefault(index, digest) != digest:
            raise Violation(f"{who} reached another state at {index}")


class Machine:
    """A state machine that remembers a hash of all that it applied."""

    def __init__(self, who: str, history: History) -> None:
        self.who, self.history = who, history
        self.index, self.digest = 0, b""

    def apply(self, index: int, payload: bytes) -> bytes:
        if index <= self.index:
            raise Violation(f"{self.who} applied {index} after {self.index}")
        self.index, self.digest = index, hashlib.blake2b(self.digest + payload, digest_size=8).digest()
        self.history.check(self.who, index, payload, self.digest)
        return index.to_bytes(8, "big")

    def snapshot(self) -> bytes:
        return self.index.to_bytes(8, "big") + self.digest

    def restore(self, data: bytes) -> None:
        self.index, self.digest = int.from_bytes(data[:8], "big"), data[8:]
        if self.history.digests.get(self.index) != self.digest:
            raise Violation(f"{self.who} restored a state that never was, at {self.index}")


@dataclass(frozen=True, slots=True)
class Faults:
    """What may happen in a run."""

    crashes: bool = True
    partitions: bool = True
    membership: bool = True
    reorder: bool = True
    duration_s: float = 15.0
    heal_s: float = 12.0


@dataclass(slots=True)
class Host:
    """One machine: its disk, and the member running on it, if any."""

    name: str
    disk: SimDisk = field(default_factory=SimDisk)
    core: RaftCore | None = None
    boots: int = 0


CoreFactory = Callable[..., RaftCore]


class World:
    """A cluster under faults. `core_class` may be one that breaks a rule on purpose."""

    def __init__(self, seed: int, faults: Faults, core_class: CoreFactory = RaftCore) -> None:
        self.rng = random.Random(seed)
        self.faults, self.core_class = faults, core_class
        self.now = 1.0
        self.history = History()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.cut: set[tuple[str, str]] = set()
        self.last_arrival: dict[tuple[str, str], float] = {}
        self.leaders: dict[int, str] = {}
        self.acked: dict[bytes, int] = {}
        self.reads = self.elections = self.changes = 0
        self.sequence = self.steps = 0
        self.delay = (0.001, 0.01)
        self.loss = 0.0
        size = self.rng.choice([1, 3, 3, 3, 5]) if faults.membership else 3
        self.members = {f"m{i}": Member(f"m{i}", "sim", 7000 + i) for i in range(1, 7)}
        self.founders = tuple(self.members.values())[:size]
        self.hosts = {name: Host(name) for name in self.members}
        self.limits = Limits(
            compact_after_entries=self.rng.choice([20, 100, 10_000]),
            keep_entries=self.rng.choice([1, 10]),
            append_bytes=self.rng.choice([300, 100_000]),
            window_entries=self.rng.choice([4, 1000]),
            chunk_bytes=self.rng.choice([40, 10_000]),
        )
        self.fifo = not faults.reorder or self.rng.random() < 0.6

    def run(self) -> None:
        """Run it. Raises Violation."""
        with virtual_clock(lambda: self.now):
            for founder in self.founders:
                self.boot(founder.name)
            self.at(self.rng.uniform(2, 4), self.fault)
            self.at(0.5, self.load)
            self.advance(self.faults.duration_s)
            self.heal()
            self.advance(self.faults.heal_s)
            self.check_end()

    # -- time

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.order), action))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.events and self.events[0][0] <= end:
            self.now, _, action = heapq.heappop(self.events)
            action()
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise Violation(f"{self.steps} events by {self.now:.1f} s: members send without end")
        self.now = end

    # -- members

    def boot(self, name: str, joining: tuple[Member, ...] = ()) -> None:
        host = self.hosts[name]
        host.boots += 1
        boot = host.boots
        setup = Setup(name, joining or self.founders, bool(joining), Timings(), self.limits)
        core = self.core_class(
            setup,
            host.disk,
            Machine(name, self.history),
            lambda to, message: self.transmit(name, to, message),
            random.Random(self.rng.getrandbits(64)),
        )
        host.core = core
        for other in self.members:
            if other != name:
                core.peer_connected(other)
                if (peer := self.hosts[other].core) is not None:
                    peer.peer_connected(name)

        def tick() -> None:
            if host.boots == boot and host.core is core:
                self.turn(host)
                self.at(TICK_S * self.rng.uniform(0.8, 1.2), tick)

        tick()

    def crash(self, name: str) -> None:
        host = self.hosts[name]
        host.core = None
        host.disk.power_cut(self.rng)

    def turn(self, host: Host) -> None:
        core = host.core
        while core is not None and core.turn():
            pass
        if core is not None and core.is_leader:
            if core.term not in self.leaders:
                self.elections += 1
            if self.leaders.setdefault(core.term, host.name) != host.name:
                raise Violation(f"two leaders in term {core.term}: {self.leaders[core.term]} and {host.name}")

    # -- network

    def transmit(self, sender: str, to: str, message: Message) -> None:
        if (sender, to) in self.cut or self.rng.random() < self.loss:
            return
        arrival = self.now + self.rng.uniform(*self.delay)
        if self.fifo:
            arrival = self.last_arrival[sender, to] = max(arrival, self.last_arrival.get((sender, to), 0.0))
        frame, boots = encode_message(message), self.hosts[to].boots

        def deliver() -> None:
            host = self.hosts[to]
            if host.core is not None and host.boots == boots and (sender, to) not in self.cut:
                host.core.receive(sender, decode_message(frame))
                self.turn(host)

        self.at(arrival - self.now, deliver)
        if not self.fifo and self.rng.random() < 0.05:
            self.at(arrival - self.now + self.rng.uniform(0, 1), deliver)

    # -- load and faults

    def load(self) -> None:
        for host in self.hosts.values():
            core = host.core
            if core is None or not core.is_leader:
                continue
            for _ in range(self.rng.randrange(4)):
                self.write(core)
            if self.rng.random() < 0.3:
                self.read(core)
            self.turn(host)
        self.at(self.rng.uniform(0.02, 0.15), self.load)

    def write(self, core: RaftCore) -> None:
        self.sequence += 1
        payload = b"%d" % self.sequence + bytes(self.rng.choice([5, 200]))

        def outcome(result: bytes | Exception) -> None:
            if isinstance(result, bytes):
                index = int.from_bytes(result, "big")
                if self.history.payloads.get(index) != payload:
                    raise Violation(f"acknowledged at {index} what is not there")
                self.acked[payload] = index

        core.propose(payload, outcome)

    def read(self, core: RaftCore) -> None:
        must_see = max(self.acked.values(), default=0)

        def answer(error: Exception | None) -> None:
            if error is None:
                self.reads += 1
                if core.applied_index < must_see:
                    raise Violation(f"{core.me} answered a read at {core.applied_index}, acknowledged was {must_see}")

        core.reads.request(answer)

    def fault(self) -> None:
        self.at(self.rng.uniform(0.2, 2.5), self.fault)
        kind = self.rng.random()
        up = [host.name for host in self.hosts.values() if host.core is not None]
        if kind < 0.4 and self.faults.partitions:
            self.partition(up)
        elif kind < 0.7 and self.faults.crashes:
            down = [host.name for host in self.hosts.values() if host.core is None and host.boots]
            if down and self.rng.random() < 0.6:
                self.boot(self.rng.choice(down))
            elif up:
                for victim in self.rng.sample(up, self.rng.choice([1, 1, 1, len(up)])):
                    self.crash(victim)
                    if self.rng.random() < 0.6:
                        self.boot(victim)
        elif kind < 0.85 and self.faults.membership:
            self.change_voters()
        else:
            self.delay = self.rng.choice([(0.001, 0.01), (0.001, 0.2), (0.05, 0.4)])
            self.loss = self.rng.choice([0.0, 0.0, 0.05, 0.3])

    def partition(self, up: list[str]) -> None:
        self.cut.clear()
        if not up or self.rng.random() < 0.3:
            return
        leading = [name for name in up if (core := self.hosts[name].core) is not None and core.is_leader]
        lonely = self.rng.choice(leading or up) if self.rng.random() < 0.5 else self.rng.choice(up)
        for other in up:
            if other != lonely and self.rng.random() < 0.9:
                self.cut.add((lonely, other))
                if self.rng.random() < 0.7:
                    self.cut.add((other, lonely))

    def change_voters(self) -> None:
        for host in list(self.hosts.values()):
            core = host.core
            if core is None or not core.is_leader:
                continue

            def done(error: Exception | None) -> None:
                self.changes += error is None

            try:
                if len(core.voters) < 6 and self.rng.random() < 0.6:
                    fresh = self.rng.choice([m for m in self.members.values() if m not in core.voters])
                    if not self.hosts[fresh.name].boots:
                        self.boot(fresh.name, joining=(*core.voters, fresh))
                    core.membership.add(fresh, 3.0, done)
                else:
                    core.membership.remove(self.rng.choice(core.voters).name, done)
            except ConsensusError:
                continue

    def heal(self) -> None:
        self.cut.clear()
        self.loss, self.delay = 0.0, (0.001, 0.01)
        self.faults = Faults(False, False, False, False)
        self.events = [e for e in self.events if e[2] not in (self.fault,)]
        heapq.heapify(self.events)
        for host in self.hosts.values():
            if host.boots and host.core is None:
                self.boot(host.name)

    def check_end(self) -> None:
        cores = [host.core for host in self.hosts.values() if host.core is not None]
        leaders = [core for core in cores if core.is_leader]
        if not leaders:
            raise Violation("no leader after the heal: " + ", ".join(f"{c.me} {c.term} {c.voter_names}" for c in cores))
        leader = max(leaders, key=lambda core: core.term)
        last = max(self.acked.values(), default=0)
        if leader.term not in self.leaders or not last:
            raise Violation("nothing was acknowledged in the whole run")
        for core in cores:
            if core.me in leader.voter_names and core.applied_index < leader.commit_index - 200:
                raise Violation(f"{core.me} did not catch up: {core.applied_index}, leader {leader.commit_index}")
            if core.me in leader.voter_names and core.applied_index < last - 200:
                raise Violation(f"{core.me} lacks acknowledged writes: {core.applied_index} of {last}")
        for payload, index in self.acked.items():
            if self.history.payloads.get(index) != payload:
                raise Violation(f"an acknowledged write is gone: {index}")
