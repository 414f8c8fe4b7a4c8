"""A stage for scenarios: a quiet cluster, on which nothing happens but what is done here on purpose."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gugus.store.v1 import store_pb2

from manager.consensus.core import RaftCore
from manager.consensus.types import ConsensusError, Limits, Member, Timings

from .faults import Faults
from .host import Build, Host
from .store_model import Read, Seen, StoreOperation, Write, Written
from .timeline import Violation
from .world import Options, World

ROOMY = Limits(compact_after_entries=10_000, compact_after_bytes=1 << 30, segment_bytes=100_000)
"""No snapshot is made."""
SETTLE_S = 0.5


@dataclass(slots=True)
class Reply:
    """What became of a proposal or a read, once it is known."""

    result: bytes | Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it succeeded."""
        return isinstance(self.result, bytes)


class Stage:
    """A quiet cluster: nothing happens that the scenario does not do."""

    def __init__(
        self,
        founders: int = 3,
        *,
        build: Build | None = None,
        timings: Timings | None = None,
        limits: Limits = ROOMY,
        patches: tuple[tuple[object, str, object], ...] = (),
        lonely_s: float = Timings().election_max_s,
    ) -> None:
        options = Options(
            faults=Faults.none(), founders=founders, build=build or Build(), timings=timings or Timings(), limits=limits,
            patches=patches, lonely_s=lonely_s, swarm=False,
        )  # fmt: skip
        self.world = World(1, options)
        self.world.network.in_order = True
        self.network = self.world.network
        self._waiting_hosts: list[Host] = []

    @contextmanager
    def playing(self) -> Iterator["Stage"]:
        """Start the cluster."""
        with self.world.environment():
            self.world.start(clients=False)
            yield self

    # -- time

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.world.timeline.run(seconds)

    def until(self, reached: Callable[[], bool], within_s: float, what: str) -> None:
        """Let time pass until something is so. Raises Violation when that takes too long."""
        end = self.world.timeline.now + within_s
        while not reached():
            if self.world.timeline.now >= end:
                raise Violation(f"{within_s} s passed without: {what}")
            self.run(0.02)

    # -- hosts

    @property
    def hosts(self) -> list[Host]:
        """The founders."""
        return [self.world.hosts[member.name] for member in self.world.founders]

    def roles(self) -> list[Host]:
        """Return the leader, once there is one with whom all agree, then the others."""

        def agreed() -> bool:
            leader = self.world.leader
            return leader is not None and all(h.core is not None and h.core.leader == leader.me for h in self.hosts)

        self.until(agreed, 10, "a leader with whom all agree")
        self.run(SETTLE_S)
        leader = self.world.leader
        assert leader is not None
        return sorted(self.hosts, key=lambda host: (host.name != leader.me, host.name))

    @property
    def newcomers(self) -> tuple[Member, ...]:
        """Members that are none of the founders."""
        return self.world.members[len(self.world.founders) :]

    def member(self, host: Host) -> Member:
        """Return a host's name and address."""
        return next(member for member in self.world.members if member.name == host.name)

    def core(self, host: Host) -> RaftCore:
        """Return a host's member, which must run."""
        if host.core is None:
            raise Violation(f"{host.name} does not run")
        return host.core

    def has(self, host: Host, entries: int) -> bool:
        """Return whether a host's log goes so far."""
        return self.core(host).journal.last_index >= entries

    def make_leader(self, host: Host, within_s: float = 10) -> None:
        """Let nobody but one host campaign until it leads."""

        def leads() -> bool:
            for other in self.hosts:
                if other.core is not None and other is not host and not other.core.is_leader:
                    other.core._SyncObj__raftElectionDeadline = other.clock.own(self.world.timeline.now) + 2
            return self.core(host).is_leader

        self.until(leads, within_s, f"{host.name} leads")

    # -- network

    def separate(self, side: list[Host], other: list[Host]) -> None:
        """Cut all links between two sides."""
        for a in side:
            for b in other:
                self.network.cut |= {(a.name, b.name), (b.name, a.name)}

    def join(self, a: Host, b: Host) -> None:
        """Make the links between two hosts whole."""
        self.network.cut -= {(a.name, b.name), (b.name, a.name)}

    def heal(self) -> None:
        """Make all links whole."""
        self.network.cut.clear()

    # -- clients

    def put(self, host: Host, key: str, value: str, request_id: str = "") -> Reply:
        """Ask a host to write; the history knows of it."""
        txn = store_pb2.Txn(request_id=request_id, puts=[store_pb2.Put(key=key, value=value.encode())])
        reply, invoked = Reply(), self.world.timeline.now
        given = Write((), ((key, value.encode()),))

        def outcome(result: bytes | Exception) -> None:
            reply.result = result
            if isinstance(result, bytes):
                written = store_pb2.TxnResult.FromString(result)
                self._note(invoked, host, given, Written(written.succeeded, written.revision))

        self._ask(host, lambda core: core.propose(txn.SerializeToString(deterministic=True), outcome), reply)
        return reply

    def read(self, host: Host, key: str) -> Reply:
        """Ask a host for a value; the history knows of it."""
        reply, invoked = Reply(), self.world.timeline.now

        def confirmed(error: Exception | None) -> None:
            if error is not None or host.machine is None:
                reply.result = error
                return
            revision, entries = host.machine.state.list(key)
            reply.result = b"".join(entry.value for entry in entries)
            seen = Seen(tuple((e.key, e.value, e.mod_revision) for e in entries), revision)
            self._note(invoked, host, Read((key,)), seen)

        self._ask(host, lambda core: core.reads.request(confirmed), reply)
        return reply

    def written(self, host: Host, key: str, value: str) -> None:
        """Write and wait for the acknowledgement."""
        reply = self.put(host, key, value)
        self.until(lambda: reply.done, 5, f"{host.name} acknowledges {value}")

    def change(self, host: Host, ask: Callable[[RaftCore, Callable[[Exception | None], None]], None]) -> Reply:
        """Ask a leader to change the voters."""
        reply = Reply()

        def done(error: Exception | None) -> None:
            reply.result = error or b""

        self._ask(host, lambda core: ask(core, done), reply)
        return reply

    def grow(self, leader: Host, member: Member) -> None:
        """Start a member with an empty disk and make it a voter."""
        self.world.hosts[member.name].boot((*self.core(leader).voters, member), joining=True)
        addition = self.change(leader, lambda core, done: core.membership.add(member, 5.0, done))
        self.until(lambda: addition.done, 6, f"{member.name} is added")

    def shrink(self, leader: Host, removed: Host) -> None:
        """Make a voter none."""
        removal = self.change(leader, lambda core, done: core.membership.remove(removed.name, done))
        self.until(lambda: removal.done, 3, f"{removed.name} is removed")

    def hand_over(self, leader: Host, to: Host) -> None:
        """Let another member take over."""

        def ask(core: RaftCore) -> None:
            core.hand_over(to.name)

        self.run(SETTLE_S)
        self._ask(leader, ask, Reply())
        self.until(lambda: self.core(to).is_leader, 5, f"{to.name} leads")
        self.run(SETTLE_S)

    def judge(self) -> None:
        """Check what clients saw."""
        self.world.judge()

    def _ask(self, host: Host, request: Callable[[RaftCore], None], reply: Reply) -> None:
        def ask(core: RaftCore) -> None:
            try:
                request(core)
            except ConsensusError as refused:
                reply.result = refused

        host.enter(ask)
        host.request_turn()

    def _note(self, invoked: float, host: Host, given: Read | Write, answer: Seen | Written) -> None:
        now = max(invoked, host.moment())
        self.world.history.operations.append(StoreOperation("stage", invoked, now, given, answer))
        self.world.history.acknowledged += 1
