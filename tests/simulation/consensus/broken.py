"""Members that break one rule each on purpose, to show that the simulator notices: what a rule is good for, in code.

Where one of our mechanisms covers for another, so that leaving out one alone cannot be seen, the mutation leaves out both
and says so. Which seed or scenario shows each is in `test_mutations`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

from gugus.store.v1 import store_pb2

from manager.consensus import segment, snapshot
from manager.consensus.core import RaftCore
from manager.consensus.disk import Disk
from manager.consensus.journal import Journal
from manager.consensus.library import Message, Node
from manager.consensus.prevote import PreVote
from manager.consensus.reads import ReadRounds
from manager.consensus.replication import Replication
from manager.consensus.types import Limits, Timings
from manager.store import StoreState

from .disk import SimDisk
from .faults import Faults
from .host import HISTORY_CHANGES, Build
from .scenarios import NEVER_FALLS_BACK
from .world import Options

# -- H1, H2: the log


class _StockTruncation(Journal):
    """Truncates on every overlap, as the stock library."""

    def deleteEntriesFrom(self, position: int) -> None:
        del self._entries[position:]


class WithoutH1(RaftCore):
    """Forgets entries that it has acknowledged when an old message comes again."""

    def open_journal(self, disk: Disk) -> Journal:
        return _StockTruncation(disk, self.limits.segment_bytes)


class WithoutH2(RaftCore):
    """Commits beyond what a message vouches for: with H1 kept, its own stale tail."""

    def capped_commit(self, message: Message) -> int:
        return int(message["commit_index"])


class WithoutH1AndH2(WithoutH1, WithoutH2):
    """The stock library in both."""


# -- H3, H4: acknowledgements and conflicts


class WithoutH3(RaftCore):
    """Counts acknowledgements of other terms."""

    def _on_answer(self, sender: str, message: Message) -> None:
        super()._on_answer(sender, {**message, "term": self.term})


class _Pipelining(Replication):
    """Sends on before the other one has agreed on a position."""

    def _send_entries(self, node: Node, progress: Any, beat: bool) -> None:
        progress.probing = False
        super()._send_entries(node, progress, beat)


class WithoutH4(RaftCore):
    """Pipelines at once, and goes back one entry for each conflict."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.replication = _Pipelining(self)

    def _SyncObj__sendNextNodeIdx(
        self, node: Node, reset: bool = False, nextNodeIdx: int | None = None, success: bool = False
    ) -> None:
        following = self.journal.last_index + 1 if nextNodeIdx is None else nextNodeIdx
        answer = {"type": "next_node_idx", "term": self.term, "next_node_idx": following}
        self.outgoing(node.id, {**answer, "reset": reset, "success": success, "round": self.answered_round})


# -- H5, H6, H7: elections


class WithoutH5(RaftCore):
    """Votes although a live leader was heard."""

    def leader_alive(self) -> bool:
        return False


class _NoPreVote(PreVote):
    def _ask(self) -> None:
        self.cancel()


class WithoutH6(RaftCore):
    """Raises its term whenever it hears no leader, without asking first."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._pre_vote = _NoPreVote(self)


class WithoutH7(RaftCore):
    """Drops messages of an old term silently."""

    def outgoing(self, name: str, message: Message) -> None:
        if message["type"] != "higher_term":
            super().outgoing(name, message)


# -- H8: what is promised is durable


class WithoutHolding(RaftCore):
    """Sends promises before the sync."""

    def outgoing(self, name: str, message: Message) -> None:
        super().outgoing(name, message)
        held, self._held = self._held, []
        for to, promise in held:
            self._send(to, promise)


class _ForgetfulVote(Journal):
    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        self._term, self._vote = term, vote


class WithoutPersistedVotes(RaftCore):
    """Keeps term and vote in memory only."""

    def open_journal(self, disk: Disk) -> Journal:
        return _ForgetfulVote(disk, self.limits.segment_bytes)


class _LyingDisk(SimDisk):
    """Reports a sync that it did not make."""

    def sync(self, name: str) -> None:
        self._may_lose_power()


class _UnsyncedSnapshots(SimDisk):
    def sync(self, name: str) -> None:
        if not name.startswith("snapshot"):
            super().sync(name)


# -- reads


class _UnconfirmedReads(ReadRounds):
    def _finish(self) -> None:
        done, self._in_flight = self._in_flight, []
        for answer in done:
            answer(None)


class WithStaleReads(RaftCore):
    """Answers reads without asking a majority whether it still leads."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.reads = _UnconfirmedReads(self)


class WithEarlyReads(RaftCore):
    """Answers reads before an entry of its own term is committed: it may not know yet what its predecessor committed."""

    @property
    def term_started(self) -> bool:
        return self.is_leader


# -- membership


class _ForgetfulCommit(Journal):
    """Leaves the commit index out of the records."""

    def add(self, command: bytes, index: int, term: int) -> None:
        commit, leader_commit = self._commit, self.leader_commit
        self._commit = self.leader_commit = 0
        try:
            super().add(command, index, term)
        finally:
            self._commit, self.leader_commit = commit, leader_commit


class WithoutCommitInRecords(RaftCore):
    """Restarts with the voters of its snapshot, whatever was committed since."""

    def open_journal(self, disk: Disk) -> Journal:
        return _ForgetfulCommit(disk, self.limits.segment_bytes)


# -- the store


class _ForgetsRequests(StoreState):
    """Leaves the request ids out of its snapshots."""

    def snapshot(self) -> Iterator[bytes]:
        return map(_without_requests, super().snapshot())

    def restore(self, pieces: Iterable[bytes]) -> None:
        super().restore(pieces)


def _without_requests(piece: bytes) -> bytes:
    message = store_pb2.Snapshot.FromString(piece)
    message.ClearField("applied")
    return message.SerializeToString(deterministic=True)


class _RepeatsRequests(StoreState):
    """Applies a request as often as it comes."""

    def apply(self, index: int, payload: bytes) -> bytes:
        txn = store_pb2.Txn.FromString(payload)
        txn.ClearField("request_id")
        return super().apply(index, txn.SerializeToString(deterministic=True))


class _SkipsChanges(StoreState):
    """Forgets, for watchers, a change now and then."""

    def apply(self, index: int, payload: bytes) -> bytes:
        before = self._history
        if index % 16 == 0:
            self._history = type(before)()
        result = super().apply(index, payload)
        self._history = before
        return result


_NO_CHECKSUM = SimpleNamespace(crc32=lambda *_: 0)
_NO_DIGEST = SimpleNamespace(
    sha256=lambda *_: SimpleNamespace(update=lambda _: None, digest=lambda: bytes(sha256().digest_size), digest_size=32)
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule left out: what goes wrong without it, and where that shows."""

    why: str
    core: type[RaftCore] = RaftCore
    store: type[StoreState] = StoreState
    disk: type[SimDisk] = SimDisk
    patches: tuple[tuple[object, str, object], ...] = ()
    timings: Timings | None = None
    setting: Options = field(default_factory=Options)
    """The kind of run in which it shows; what is broken is added to it."""
    seeds: int = 0
    """Among so many seeds there is one that shows it; 0 when only the scenario does."""
    scenario: str = ""

    @property
    def options(self) -> Options:
        """The run with the rule left out."""
        build = Build(self.core, lambda: self.store(history_changes=HISTORY_CHANGES), self.disk)
        return replace(self.setting, build=build, patches=self.patches, timings=self.timings or self.setting.timings)


def _only(**faults: bool) -> Options:
    return Options(faults=replace(Faults.none(), **faults), swarm=False)


_OFTEN_COMPACTED = replace(
    _only(torn_writes=True, crashes=True, partitions=True),
    limits=Limits(compact_after_entries=15, keep_entries=1, segment_bytes=12_000),
)
_FOR_EVER = Options(timings=NEVER_FALLS_BACK, lonely_s=math.inf)

BROKEN: Mapping[str, Mutation] = {
    "sync": Mutation("acknowledged entries are lost at a power cut", disk=_LyingDisk, seeds=20),
    "holding": Mutation("promises leave before they are durable", WithoutHolding, seeds=40),
    "votes": Mutation("a member forgets its vote, and votes twice in a term", WithoutPersistedVotes, seeds=40),
    "h1": Mutation(
        "acknowledged entries are truncated", WithoutH1, seeds=40, scenario="an_old_message_comes_again"
    ),
    "h2": Mutation(
        "with H1 kept, a stale tail is committed", WithoutH2, scenario="a_commit_index_comes_without_its_entries"
    ),
    "h1+h2": Mutation("the stock library in both", WithoutH1AndH2, seeds=40, scenario="an_old_message_comes_again"),
    "h3": Mutation(
        "an acknowledgement of an old term counts in this one", WithoutH3, scenario="an_acknowledgement_of_an_old_term_arrives"
    ),
    "h4": Mutation("pipelined rejections go on for ever", WithoutH4, scenario="a_long_conflict"),
    "h5": Mutation("two leaders depose each other by turns", WithoutH5, scenario="two_cannot_hear_each_other"),
    "h6": Mutation("who comes back from a partition raises the term", WithoutH6, scenario="a_member_comes_back"),
    "h7": Mutation(
        "a deposed leader goes on; the fallback, which ends that after a while, is left out too",
        WithoutH7, setting=_FOR_EVER, scenario="a_deposed_leader_meets_one_who_knows",
    ),
    "fallback": Mutation(
        "a leader goes on without a majority", timings=NEVER_FALLS_BACK, seeds=40, scenario="a_leader_is_alone"
    ),
    "stale-reads": Mutation("a deposed leader answers reads", WithStaleReads, scenario="a_deposed_leader_is_asked"),
    "early-reads": Mutation(
        "a new leader answers reads before it knows what is committed",
        WithEarlyReads, setting=_only(crashes=True, transfers=True, weather=True), seeds=120,
    ),
    "commit-in-records": Mutation(
        "members restart with the voters of long ago", WithoutCommitInRecords, scenario="old_voters_start_again"
    ),
    "torn-tail": Mutation(
        "a torn record is taken for a whole one",
        patches=((segment, "zlib", _NO_CHECKSUM),), setting=_only(torn_writes=True, crashes=True), seeds=100,
    ),
    "snapshot-sync": Mutation("a snapshot is torn after its rename", disk=_UnsyncedSnapshots, seeds=20),
    "snapshot-checksum": Mutation(
        "a snapshot that rotted is taken for a good one",
        patches=((snapshot, "hashlib", _NO_DIGEST),), scenario="a_snapshot_rots",
    ),
    "requests": Mutation("a repeated request is applied twice", store=_RepeatsRequests, seeds=40),
    "requests-in-snapshot": Mutation(
        "a repeated request is applied twice after a snapshot",
        store=_ForgetsRequests, setting=_OFTEN_COMPACTED, seeds=80,
    ),
    "watch": Mutation("a watcher misses a change", store=_SkipsChanges, seeds=20),
}  # fmt: skip
