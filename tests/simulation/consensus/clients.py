"""Clients of the store: transactions, linearizable reads and watchers, through whatever member they think of.

What a client asked and got becomes the history that the linearizability checker judges. A client that does not learn what
became of a transaction repeats it under its request id, usually at another member; it must be applied once at most.

Invariant: an operation is in the history with an answer only if the client got it; else with an unknown outcome.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gugus.store.v1 import store_pb2

from manager.consensus.core import RaftCore
from manager.consensus.types import ConsensusError, NotLeader, ProposalTimeout
from manager.store.history import HistoryGone

from .host import Host
from .linearizability import NEVER
from .record import Record
from .store_model import Answer, Given, Read, Seen, StoreOperation, Write, Written
from .timeline import Timeline, Violation

GROUPS = ("a", "b", "c")
"""Kinds of objects; a transaction stays within one, so that the history falls into as many parts."""
NAMES = ("x", "y")
LATENCY_S = (0.0005, 0.008)
PATIENCE_S = (0.3, 1.2)
"""How long a client waits for an answer."""
ATTEMPTS = 8


@dataclass(slots=True)
class History:
    """All operations of all clients."""

    operations: list[StoreOperation] = field(default_factory=list)
    acknowledged: int = 0
    reads: int = 0
    last_acknowledged_at: float = 0.0


@dataclass(slots=True)
class _Call:
    """One operation under way."""

    given: Given
    invoked: float
    request_id: str
    attempts: int = 0
    in_doubt: bool = False
    """An earlier attempt may have had, or may yet have, its effect."""


class Client:
    """One client, which does one thing after another."""

    def __init__(
        self, name: str, hosts: Sequence[Host], timeline: Timeline, history: History, rng: random.Random, pause_s: float
    ) -> None:
        self.name, self.hosts, self.timeline, self.history, self.rng = name, hosts, timeline, history, rng
        self.pause_s = pause_s
        self.stopped = False
        self._member = rng.choice(hosts)
        self._number = 0
        self._known: dict[str, int] = {}
        """Revisions of keys as last told to this client."""
        self._call = _Call(Read(()), 0.0, "")
        self._under_way = False

    def start(self) -> None:
        """Begin, after a pause."""
        self._under_way = False
        self.timeline.after(self.rng.uniform(0, 2 * self.pause_s), self._begin)

    def stop(self) -> None:
        """Begin nothing more. What is under way may have had its effect: it goes into the history as unknown."""
        self.stopped = True
        if self._under_way and isinstance(self._call.given, Write):
            self._note(self._call, None)

    def _begin(self) -> None:
        if self.stopped:
            return
        self._number += 1
        given = self._choose()
        repeatable = isinstance(given, Write) and self.rng.random() < 0.7
        self._under_way = True
        self._call = _Call(given, self.timeline.now, f"{self.name}-{self._number}" if repeatable else "")
        if self.rng.random() < 0.1:
            self._member = self.rng.choice(self.hosts)
        self._attempt()

    def _choose(self) -> Given:
        group = self.rng.choice(GROUPS)
        keys = tuple(f"{group}/{name}" for name in (NAMES if self.rng.random() < 0.25 else (self.rng.choice(NAMES),)))
        kind = self.rng.random()
        if kind < 0.4:
            return Read(tuple(f"{group}/{name}" for name in NAMES))
        filler = "." * self.rng.choice([0, 0, 0, 0, 900])  # a record that lies in several sectors
        puts = tuple((key, f"{self.name}-{self._number} {key}{filler}".encode()) for key in keys)
        expected = tuple((key, self._known.get(key, 0)) for key in keys)
        if kind < 0.7:
            return Write(expected, puts)
        if kind < 0.85:
            return Write((), puts)
        return Write(expected if kind < 0.93 else (), (), keys)

    # -- attempts

    def _attempt(self) -> None:
        call, host = self._call, self._member
        call.attempts += 1
        attempt = call.attempts
        answer = self._answers(call, attempt)
        ask = self._ask_to_read if isinstance(call.given, Read) else self._ask_to_write
        self._after_latency(lambda: host.enter(lambda core: ask(host, core, call, answer)))
        patience = self.rng.uniform(*PATIENCE_S)
        self.timeline.after(patience, lambda: answer(ProposalTimeout("the client waited long enough")))

    def _answers(self, call: _Call, attempt: int) -> Callable[[Answer | Exception], None]:
        """Return what takes the first answer to this attempt; later ones come too late."""

        def take(answer: Answer | Exception) -> None:
            if self._call is call and call.attempts == attempt:
                call.attempts += 1
                self._taken(call, answer)

        return take

    def _after_latency(self, action: Callable[[], None]) -> None:
        self.timeline.after(self.rng.uniform(*LATENCY_S), action)

    def _reply(self, host: Host, answer: Callable[[Answer | Exception], None], content: Answer | Exception) -> None:
        """Send an answer from a host: it leaves at the host's present moment, if power lasts until then."""
        boot, leaves = host.boots, host.moment()

        def arrive() -> None:
            if host.was_up(boot, leaves):
                answer(content)

        self.timeline.at(leaves + self.rng.uniform(*LATENCY_S), arrive)

    def _ask_to_write(
        self, host: Host, core: RaftCore, call: _Call, answer: Callable[[Answer | Exception], None]
    ) -> None:
        assert isinstance(call.given, Write)

        def outcome(result: bytes | Exception) -> None:
            self._reply(host, answer, _written(result) if isinstance(result, bytes) else result)

        try:
            core.propose(_payload(call.given, call.request_id), outcome)
        except ConsensusError as error:
            self._reply(host, answer, error)
        host.request_turn()

    def _ask_to_read(
        self, host: Host, core: RaftCore, call: _Call, answer: Callable[[Answer | Exception], None]
    ) -> None:
        assert isinstance(call.given, Read)
        group = call.given.keys[0].partition("/")[0] + "/"

        def look(_: RaftCore) -> None:
            if host.machine is not None:
                revision, entries = host.machine.state.list(group)
                seen = Seen(tuple((e.key, e.value, e.mod_revision) for e in entries), revision)
                self._reply(host, answer, seen)

        def look_later(boot: int) -> None:
            if host.boots == boot:
                host.enter(look)

        def confirmed(error: Exception | None) -> None:
            boot = host.boots
            if error is not None:
                self._reply(host, answer, error)
            else:  # the reader runs in another thread, a little later
                self.timeline.at(host.moment() + self.rng.uniform(0, 0.003), lambda: look_later(boot))

        try:
            core.reads.request(confirmed)
        except ConsensusError as error:
            self._reply(host, answer, error)
        host.request_turn()

    # -- answers

    def _taken(self, call: _Call, answer: Answer | Exception) -> None:
        if not isinstance(answer, Exception):
            self._done(call, answer)
            return
        unknown = isinstance(answer, ProposalTimeout)
        call.in_doubt = call.in_doubt or (unknown and isinstance(call.given, Write))
        hint = answer.leader if isinstance(answer, NotLeader) else None
        named = [host for host in self.hosts if host.name == hint]
        self._member = named[0] if named and self.rng.random() < 0.9 else self.rng.choice(self.hosts)
        if call.attempts < 2 * ATTEMPTS and (call.request_id or not call.in_doubt):
            self.timeline.after(self.rng.uniform(0.01, 0.1), self._attempt)
            return
        if call.in_doubt:
            self._note(call, None)
        self.start()

    def _done(self, call: _Call, answer: Answer) -> None:
        self._note(call, answer)
        self._learn(call.given, answer)
        self.start()

    def _note(self, call: _Call, answer: Answer | None) -> None:
        now = self.timeline.now
        self.timeline.tell(self.name, "asked", call.given, "and got", answer)
        self.history.operations.append(
            StoreOperation(self.name, call.invoked, NEVER if answer is None else now, call.given, answer)
        )
        if isinstance(answer, Written) and answer.succeeded:
            self.history.acknowledged += 1
            self.history.last_acknowledged_at = now
        self.history.reads += isinstance(answer, Seen)

    def _learn(self, given: Given, answer: Answer) -> None:
        if isinstance(answer, Seen):
            self._known.update(dict.fromkeys(given.keys, 0) | {key: revision for key, _, revision in answer.entries})
        elif isinstance(given, Write):
            self._known.update(answer.failed)
            if answer.succeeded:
                self._known.update({key: answer.revision for key, _ in given.puts})
                self._known.update(dict.fromkeys(given.deletes, 0))


def _payload(given: Write, request_id: str) -> bytes:
    txn = store_pb2.Txn(request_id=request_id, deletes=given.deletes)
    for key, expected in given.expected:
        if expected:
            txn.compares.add(key=key, mod_revision=expected)
        else:
            txn.compares.add(key=key, exists=False)
    for key, value in given.puts:
        txn.puts.add(key=key, value=value)
    return txn.SerializeToString(deterministic=True)


def _written(result: bytes) -> Written:
    message = store_pb2.TxnResult.FromString(result)
    if message.error or message.exhausted:
        raise Violation(f"a good transaction was rejected: {message.error}{message.exhausted}")
    return Written(message.succeeded, message.revision, tuple((f.key, f.mod_revision) for f in message.failed))


class Watcher:
    """Follows all changes at one member, and at another one from where it was when that one is gone."""

    def __init__(self, hosts: Sequence[Host], timeline: Timeline, record: Record, rng: random.Random) -> None:
        self.hosts, self.timeline, self.record, self.rng = hosts, timeline, record, rng
        self.seen = 0
        self._host = rng.choice(hosts)

    def start(self) -> None:
        """Look now and then."""
        self.timeline.after(self.rng.uniform(0.05, 0.5), self._look)

    def _look(self) -> None:
        if self._host.machine is None or self.rng.random() < 0.02:
            self._host = self.rng.choice(self.hosts)
        self._host.enter(lambda _: self._follow(self._host))
        self.start()

    def _follow(self, host: Host) -> None:
        if host.machine is None:
            return
        state = host.machine.state
        try:
            changes = state.changes_after(self.seen)
        except HistoryGone as gone:
            if gone.oldest <= self.seen or gone.asked != self.seen:
                raise Violation(f"{host.name} says that changes after {self.seen} are gone: {gone}") from gone
            self.record.count("watchers begun anew")
            self.seen = state.revision
            return
        told = sorted(
            ((change.revision, change.key, change.value) for change in changes), key=lambda change: change[:2]
        )
        last = changes[-1].revision if changes else state.revision
        due = [(at, *change) for at in range(self.seen + 1, last + 1) for change in self.record.changes[at]]
        if told != due:
            raise Violation(f"{host.name} told a watcher at {self.seen} {told}, happened had {due}")
        self.seen = max(self.seen, last)
