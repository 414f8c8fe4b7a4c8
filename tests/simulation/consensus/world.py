"""A simulated cluster: the real RaftCore, journal, snapshots, codec and store on virtual time, links and disks.

A run has three parts: the nemesis strikes; all is healed, and the cluster must recover within a bound; nothing happens, and
nothing may: no election, no change of term. At the end what the clients saw is judged.

Invariant: one seed gives one run, byte for byte, in any process; every broken promise raises Violation.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from unittest.mock import patch

import structlog

from manager.consensus import snapshots
from manager.consensus.core import RaftCore
from manager.consensus.library import virtual_clock
from manager.consensus.types import Limits, Member, Timings

from .clients import Client, History, Watcher
from .faults import Faults, Nemesis
from .host import Build, Clocks, Host, uid_of
from .linearizability import Undecided
from .network import Network
from .record import Record
from .store_model import check_store
from .timeline import HostClock, Timeline, Violation

MEMBERS = 6
CLIENTS = 5
CLIENT_PAUSE_S = 0.04
DRIFT = 0.05
"""How much faster or slower than real time a host's clock may run; far more than any quartz."""
LOOK_S = 0.2
STEP_DOWN_MARGIN_S = 0.15
"""A leader that hears no majority may be that much late, for its turn comes a moment later."""
RECOVERY_S = 12.0
"""After the heal a leader, all voters and all clients are well again within this."""
CALM_S = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What kind of run. None lets the seed choose."""

    faults: Faults = field(default_factory=Faults)
    founders: int | None = None
    chaos_s: float = 14.0
    build: Build = field(default_factory=Build)
    timings: Timings = field(default_factory=Timings)
    limits: Limits | None = None
    lonely_s: float = Timings().election_max_s
    """How long a leader may go on, by its clock, when it hears no majority."""
    swarm: bool = True
    """Leave out some kinds of faults."""
    patches: tuple[tuple[object, str, object], ...] = ()
    """Module, name and what stands there instead: for mutations of functions."""


class World:
    """One run."""

    def __init__(self, seed: int, options: Options | None = None, told: Callable[[str], None] | None = None) -> None:
        self.options = options or Options()
        self.seed = seed
        rng = self.stream("world")
        self.timeline, self.record, self.history, self.clocks = Timeline(), Record(), History(), Clocks()
        self.timeline.told = told
        self.network = Network(self.timeline, self.record, self.stream("network"), in_order=rng.random() < 0.6)
        self.members = tuple(Member(f"m{i}", "sim", 7000 + i) for i in range(1, MEMBERS + 1))
        faults = self.options.faults
        size = self.options.founders or (rng.choice([1, 3, 3, 3, 5]) if faults.membership else rng.choice([3, 3, 5]))
        self.founders = tuple(replace(member, uid=uid_of(member.name, 0)) for member in self.members[:size])
        limits = self.options.limits or _limits(rng)
        self.hosts = {
            member.name: Host(
                member.name, self.timeline, self.network, self.record, self.clocks, self.stream(member.name),
                self.options.build, limits, self.options.timings,
            )
            for member in self.members
        }  # fmt: skip
        self.network.hosts = self.hosts
        for host in self.hosts.values():
            host.clock = HostClock(rng.uniform(0, 1_000), rng.uniform(1 - DRIFT, 1 + DRIFT))
        everybody = list(self.hosts.values())
        self.nemesis = Nemesis(
            everybody, self.members, self.network, self.timeline, self.record, self.stream("faults"),
            faults.some(self.stream("swarm")) if self.options.swarm else faults,
        )  # fmt: skip
        known = everybody[:size]
        self.clients = [
            Client(
                f"c{i}", known if i else everybody, self.timeline, self.history, self.stream(f"c{i}"), CLIENT_PAUSE_S
            )
            for i in range(CLIENTS)
        ]
        self.watchers = [Watcher(known, self.timeline, self.record, self.stream(f"w{i}")) for i in range(2)]

    def stream(self, name: str) -> random.Random:
        """Return a source of chance of its own for a part of the world, so that parts do not disturb one another."""
        return random.Random(f"{self.seed} {name}")

    # -- a run

    def run(self) -> None:
        """Run it. Raises Violation."""
        with self.environment():
            self.start()
            self.nemesis.start()
            self.timeline.run(self.options.chaos_s)
            self.nemesis.stop()
            self.recover()
            self.stay_calm()
            self.judge()

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Give consensus this world's clocks, and nothing of the real one's; put mutations in place."""
        wall = SimpleNamespace(time=lambda: self.timeline.now)
        with ExitStack() as stack:
            for module, name, value in [(snapshots, "time", wall), *self.options.patches]:
                stack.enter_context(patch.object(module, name, value))
            stack.enter_context(virtual_clock(self.clocks.now))
            stack.enter_context(structlog.testing.capture_logs())
            yield

    def start(self, *, clients: bool = True) -> None:
        """Switch on the founders, and let clients and the observer begin."""
        for founder in self.founders:
            self.hosts[founder.name].boot(self.founders)
        if clients:
            for client in self.clients:
                client.start()
            for watcher in self.watchers:
                watcher.start()
        self.look()

    # -- views

    @property
    def cores(self) -> list[RaftCore]:
        """Members that run."""
        return [host.core for host in self.hosts.values() if host.core is not None]

    @property
    def leader(self) -> RaftCore | None:
        """The leader of the highest term."""
        return max((core for core in self.cores if core.is_leader), key=lambda core: core.term, default=None)

    # -- promises that need time

    def look(self) -> None:
        """Look at all hosts, now and then: a leader that hears no majority must not go on."""
        for host in self.hosts.values():
            self.check_leader_is_heard(host)
        self.timeline.after(LOOK_S, self.look)

    def check_leader_is_heard(self, host: Host) -> None:
        """Raise Violation when a host leads although it heard no majority for longer than it may."""
        core, heard = host.core, host.heard
        if core is None or not core.is_leader or core.term != heard.term or core.voter_names != heard.voters:
            return
        if not host.idle:
            return
        now, allowed = host.clock.own(self.timeline.now), self.options.lonely_s + STEP_DOWN_MARGIN_S
        fresh = sum(
            now - max(heard.answers.get(name, 0.0), heard.since) <= allowed for name in heard.voters - {core.me}
        )
        if (fresh + 1) * 2 <= len(heard.voters):
            raise Violation(f"{host.name} leads in term {core.term} and heard no majority for {allowed} s of its clock")

    def recover(self) -> None:
        """Wait until the cluster is well. Raises Violation when that takes too long."""
        healed = self.timeline.now
        while wrong := self.unwell(healed):
            if self.timeline.now - healed > RECOVERY_S:
                raise Violation(f"{RECOVERY_S} s after the heal {wrong}")
            self.timeline.run(0.25)
            self.nemesis.start_all()
            self.nemesis.repair()

    def unwell(self, since: float) -> str:
        """Return what is not well yet, "" when a leader leads, all voters are equal to it, and a write was acknowledged."""
        leader = self.leader
        if leader is None or not leader.term_started:
            return "there is no leader: " + ", ".join(f"{c.me} {c.term} {sorted(c.voter_names)}" for c in self.cores)
        for name in sorted(leader.voter_names):
            core = self.hosts[name].core
            if core is None:
                return f"{name} is down"
            if core.leader != leader.me or core.applied_index < leader.commit_index - len(self.clients):
                return (
                    f"{name} follows {core.leader} at {core.applied_index}; {leader.me} leads at {leader.commit_index}"
                )
        return "" if self.history.last_acknowledged_at > since else "no write was acknowledged"

    def stay_calm(self) -> None:
        """Let nothing happen, and see that nothing does: whoever was removed or never added disturbs nobody."""
        leader = self.leader
        assert leader is not None
        before = (leader.term, max(core.term for core in self.cores))
        self.timeline.run(CALM_S)
        after = (leader.term, max(core.term for core in self.cores))
        if not leader.is_leader or after != before:
            raise Violation(f"nothing happened, but {leader.me} leads no more, or terms changed: {before}, {after}")

    def judge(self) -> None:
        """Check what the clients saw. Raises Violation."""
        for client in self.clients:
            client.stop()
        try:
            wrong = check_store(self.history.operations)
        except Undecided as error:
            wrong = str(error)
        if wrong:
            raise Violation(wrong)
        if not self.history.acknowledged:
            raise Violation("nothing was acknowledged in the whole run")

    def digest(self) -> str:
        """Return a digest of all that happened, to compare runs."""
        told = repr((self.timeline.events, self.timeline.now, self.record, self.history.operations))
        return hashlib.sha256(told.encode()).hexdigest()


def _limits(rng: random.Random) -> Limits:
    return Limits(
        compact_after_entries=rng.choice([15, 60, 10_000]),
        compact_after_bytes=rng.choice([2_000, 1 << 20]),
        keep_entries=rng.choice([1, 10]),
        append_bytes=rng.choice([300, 100_000]),
        window_messages=rng.choice([1, 2, 20]),
        chunk_bytes=rng.choice([200, 10_000]),
        segment_bytes=rng.choice([3_000, 12_000, 100_000]),
    )
