"""How the leader's log and snapshot reach the others, and how a follower takes a snapshot (rules H3, H4, H12).

Invariant: towards a member that has not yet agreed on a position one message with entries is in flight; afterwards
a few messages are, and what comes meanwhile gathers for the next one. A snapshot is verified as a whole before anything
of it is used.
"""

import math
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from .disk import Reader, is_full
from .journal import Entry
from .library import Message, Node, node_of, now
from .snapshot import SnapshotFile
from .snapshots import RECEIVING
from .types import CorruptState

if TYPE_CHECKING:
    from .core import RaftCore

NOTE_AFTER_S = 0.001
"""How long the news of a commit waits for entries to travel with."""

_log = structlog.get_logger("manager.consensus")


@dataclass(slots=True)
class _Transfer:
    """A snapshot on its way to a member; its file stays readable when a newer one takes its name."""

    index: int
    reader: Reader
    received: int = 0


@dataclass(slots=True)
class _Progress:
    """What is known of a member's log: while probing, one message with entries is in flight, from `asked_from`."""

    probing: bool = True
    asked_at: float | None = None
    asked_from: int = 0
    unanswered: deque[int] = field(default_factory=deque)
    """Last index of each message with entries that was sent and not answered."""
    told_commit: int = 0
    """The newest commit index that was sent."""
    transfer: _Transfer | None = None


@dataclass(slots=True)
class _Incoming:
    sender: str
    index: int
    total: int
    received: int = 0


class Replication:
    """One member's sending and receiving side."""

    def __init__(self, core: "RaftCore") -> None:
        self._core = core
        self._progress: dict[str, _Progress] = {}
        self._incoming: _Incoming | None = None
        self._note_at = math.inf

    def reset(self) -> None:
        """Forget what others had agreed to: leadership was won or lost."""
        self._note_at = math.inf
        for name in list(self._progress):
            self.forget(name)

    def forget(self, name: str) -> None:
        """Forget what a member had agreed to: its connection changed and messages may be lost."""
        self._end_transfer(self._progress.pop(name, None))

    @staticmethod
    def _end_transfer(progress: _Progress | None) -> None:
        if progress is not None and progress.transfer is not None:
            progress.transfer.reader.close()
            progress.transfer = None

    # -- leader

    def deadline(self) -> float:
        """Return when a message that was not answered must be repeated."""
        asked = [p.asked_at for p in self._progress.values() if p.asked_at is not None]
        return min(self._note_at, min(asked) + self._core.timings.retransmit_s if asked else math.inf)

    def note_commit(self) -> None:
        """Have the members learn soon that more is committed, if no entries tell them before."""
        if self._note_at == math.inf:
            self._note_at = now() + NOTE_AFTER_S

    def send_notes(self) -> None:
        """Tell members what is committed, if that is due. They answer nothing: it costs a message each, and no more."""
        core = self._core
        if now() < self._note_at or not core.is_leader:
            return
        self._note_at = math.inf
        for node in self._targets():
            progress = self._progress.get(node.id)
            if progress is not None and not progress.probing and progress.told_commit < core.commit_index:
                self._append(node, progress, [], quiet=True)

    def send_all(self, beat: bool) -> None:
        """Send each connected member what it lacks; if `beat`, a message even to those who lack nothing.

        Answers ask for no beat: else an answer would beget a message that begets an answer.
        """
        core = self._core
        if not core.is_leader:
            return
        for node in self._targets():
            progress = self._progress.setdefault(node.id, _Progress())
            if core._SyncObj__raftNextIndex[node] <= core.journal.first_index:
                self._send_chunk(node, progress)
            else:
                self._end_transfer(progress)
                self._send_entries(node, progress, beat)

    def _targets(self) -> list[Node]:
        core = self._core
        targets = (core._SyncObj__otherNodes | core._SyncObj__readonlyNodes) & core._SyncObj__connectedNodes
        return sorted(targets, key=_name)

    def on_answer(self, sender: str, message: Message) -> None:
        """Take a follower's answer in our own term."""
        core, node = self._core, node_of(sender)
        if node not in core._SyncObj__raftNextIndex:
            return  # a member that left meanwhile
        progress = self._progress.setdefault(sender, _Progress())
        if message["type"] == "snapshot_received":
            self._on_received(node, progress, message)
            return
        before = core._SyncObj__raftNextIndex[node]
        last = core.journal.last_index
        wanted = max(2, min(message["next_node_idx"], last + 1))
        core.to_library(sender, {**message, "next_node_idx": wanted})
        if message["reset"]:
            self._end_transfer(progress)
            self._progress[sender] = _Progress()
        elif message["success"]:
            self._advance(node, progress, before)
        if core._SyncObj__raftNextIndex[node] <= last:
            core.send_due = True

    def _advance(self, node: Node, progress: _Progress, before: int) -> None:
        """Go on behind what a member has; one that took none of the entries that it was sent has no room: it is asked again later."""
        core = self._core
        following = core.match_index(node.id) + 1
        if progress.transfer is not None:  # an answer to what was sent before it ends no transfer
            if following > progress.transfer.index:
                self._end_transfer(progress)
                self._progress[node.id] = _Progress()
                core._SyncObj__raftNextIndex[node] = following
            else:
                core._SyncObj__raftNextIndex[node] = before
            return
        if not progress.probing:
            core._SyncObj__raftNextIndex[node] = max(before, following)
            while progress.unanswered and progress.unanswered[0] < following:
                progress.unanswered.popleft()
            return
        core._SyncObj__raftNextIndex[node] = following
        if progress.asked_at is None or following > progress.asked_from:
            self._progress[node.id] = _Progress(probing=False)

    def _send_entries(self, node: Node, progress: _Progress, beat: bool) -> None:
        core, journal = self._core, self._core.journal
        while True:
            following = core._SyncObj__raftNextIndex[node]
            entries = []
            if not self._blocked(node, progress):
                entries = journal.entries_from(following, core.limits.append_bytes)
            if not entries and not beat:
                return
            self._append(node, progress, entries)
            if not entries:
                return
            if progress.probing:
                progress.asked_at, progress.asked_from = now(), following
                return
            core._SyncObj__raftNextIndex[node] = entries[-1][1] + 1
            progress.unanswered.append(entries[-1][1])
            if entries[-1][1] == journal.last_index or self._blocked(node, progress):
                return

    def _append(self, node: Node, progress: _Progress, entries: list[Entry], *, quiet: bool = False) -> None:
        core = self._core
        previous = core._SyncObj__raftNextIndex[node] - 1
        progress.told_commit = core.commit_index
        core.outgoing(
            node.id,
            {
                "type": "append_entries",
                "term": core.term,
                "commit_index": core.commit_index,
                "prevLogIdx": previous,
                "prevLogTerm": core.journal.term_at(previous),
                "entries": entries,
                "round": core.reads.round,
                "quiet": quiet,
            },
        )

    def _blocked(self, node: Node, progress: _Progress) -> bool:
        core = self._core
        if progress.probing:
            return self._waits(progress)
        return len(progress.unanswered) >= core.limits.window_messages

    def _waits(self, progress: _Progress) -> bool:
        return progress.asked_at is not None and now() - progress.asked_at < self._core.timings.retransmit_s

    def _send_chunk(self, node: Node, progress: _Progress) -> None:
        core = self._core
        if progress.transfer is None:
            progress.transfer = _Transfer(core.snapshots.newest.index, core.snapshots.open())
            progress.asked_at, progress.asked_from = None, 0
        if self._waits(progress):
            return
        progress.asked_at = now()
        transfer = progress.transfer
        core.outgoing(
            node.id,
            {
                "type": "snapshot_chunk",
                "term": core.term,
                "snapshot_index": transfer.index,
                "total_bytes": transfer.reader.size,
                "offset": transfer.received,
                "data": transfer.reader.read(transfer.received, core.limits.chunk_bytes),
                "round": core.reads.round,
            },
        )

    def _on_received(self, node: Node, progress: _Progress, message: Message) -> None:
        core, transfer = self._core, progress.transfer
        core._SyncObj__lastResponseTime[node] = now()
        if transfer is not None and transfer.index == message["snapshot_index"]:
            transfer.received = min(message["received_bytes"], transfer.reader.size - 1)
            progress.asked_at = None
            core.send_due = True

    # -- follower

    def on_chunk(self, sender: str, message: Message) -> None:
        """Take a piece; install the snapshot when it is whole, and answer."""
        core, index, total = self._core, message["snapshot_index"], message["total_bytes"]
        if index <= core.commit_index:  # we have all that it covers
            self._incoming = None
            core._SyncObj__sendNextNodeIdx(node_of(sender), nextNodeIdx=index + 1, success=True)
            return
        if total > core.limits.snapshot_bytes:
            _log.error("snapshot refused: too large", leader=sender, bytes=total, limit=core.limits.snapshot_bytes)
            return
        incoming = self._incoming
        if incoming is None or (incoming.sender, incoming.index, incoming.total) != (sender, index, total):
            core.disk.remove(RECEIVING)
            incoming = self._incoming = _Incoming(sender, index, total)
        if message["offset"] == incoming.received and not self._write(incoming, message["data"]):
            return
        if incoming.received == total:
            self._incoming = None
            self._install(sender, index)
            return
        answer = {"type": "snapshot_received", "term": core.term, "snapshot_index": index}
        core.outgoing(sender, {**answer, "received_bytes": incoming.received, "round": core.answered_round})

    def _write(self, incoming: _Incoming, data: bytes) -> bool:
        """Put a piece on the disk; with no room, forget what there was, and let the leader begin again later."""
        try:
            self._core.disk.write(RECEIVING, incoming.received, data)
        except OSError as error:
            if not is_full(error):
                raise
            self._incoming = None
            self._core.disk.remove(RECEIVING)
            _log.error("no room for the leader's snapshot", bytes=incoming.total, reason=str(error))
            return False
        incoming.received += len(data)
        return True

    def _install(self, sender: str, index: int) -> None:
        core = self._core
        core.disk.sync(RECEIVING)
        reader = core.disk.open(RECEIVING)
        if reader is None:
            raise FileNotFoundError(f"{RECEIVING} is gone from the data folder")
        with closing(reader):
            try:
                file = SnapshotFile(RECEIVING, reader)
                if file.snapshot.index != index:
                    raise CorruptState(f"{RECEIVING}: covers {file.snapshot.index}, announced was {index}")
                core.install(file)
            except CorruptState as error:
                _log.error("snapshot refused", leader=sender, reason=str(error))
                core.disk.remove(RECEIVING)
                return
        core._SyncObj__sendNextNodeIdx(node_of(sender), nextNodeIdx=index + 1, success=True)


def _name(node: Node) -> str:
    return str(node.id)
