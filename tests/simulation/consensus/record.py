"""What happened anywhere in a run, and the promises that can be checked the moment they are broken.

Invariant: this sees all hosts at once, which no member can; it never influences one.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from manager.consensus.library import Message
from manager.store import StoreState
from manager.store.pieces import Entry

from .timeline import Violation

Change = tuple[str, bytes | None]
"""Key, and value or None when it was deleted."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What the first member to apply an entry did: all others must do the same."""

    payload: bytes
    result: bytes
    revision: int
    visible: object


@dataclass(slots=True)
class Record:
    """All that is known of a run."""

    applied: dict[int, Applied] = field(default_factory=dict)
    changes: dict[int, list[Change]] = field(default_factory=dict)
    """By store revision, from the member that applied it first."""
    snapshots: dict[bytes, int] = field(default_factory=dict)
    """By digest: the first index at which a state was written down; a transaction that fails leaves no other state."""
    digests: dict[int, bytes] = field(default_factory=dict)
    leaders: dict[int, str] = field(default_factory=dict)
    entries: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """By index and term: the command, which is one only (Raft's log matching)."""
    votes: dict[tuple[str, int, int], str] = field(default_factory=dict)
    """By member, its disk's number and term: who got the vote."""
    promised: dict[tuple[str, int], int] = field(default_factory=dict)
    """By member and its disk's number: the highest term in a message that left."""
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        """Count something, for the report."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def leads(self, who: str, term: int) -> None:
        """Note a leader. Raises Violation when the term has another one."""
        if term not in self.leaders:
            self.count("elections")
        if self.leaders.setdefault(term, who) != who:
            raise Violation(f"two leaders in term {term}: {self.leaders[term]} and {who}")

    def left(self, who: str, disk: int, to: str, message: Message) -> None:
        """Note a message that left a host. Raises Violation when it contradicts an earlier one."""
        kind = message["type"]
        if "term" in message:  # it must not be forgotten
            key = (who, disk)
            self.promised[key] = max(self.promised.get(key, 0), message["term"])
        if kind == "response_vote" and self.votes.setdefault((who, disk, message["term"]), to) != to:
            raise Violation(
                f"{who} voted for {self.votes[who, disk, message['term']]} and {to} in term {message['term']}"
            )
        if kind == "append_entries":
            for command, index, term in message["entries"]:
                if self.entries.setdefault((index, term), command) != command:
                    raise Violation(f"{who} sends another command at index {index} of term {term}")

    def booted(self, who: str, disk: int, term: int) -> None:
        """Note a start. Raises Violation when the member forgot a term that it had spoken in."""
        if term < (spoken := self.promised.get((who, disk), 0)):
            raise Violation(f"{who} starts in term {term} but had sent messages of term {spoken}")


class Machine:
    """The store as a member's state machine, with every step compared to what other members did."""

    def __init__(self, who: str, state: StoreState, record: Record) -> None:
        self.who, self.state, self.record = who, state, record
        self.index = 0
        self.restores = 0

    def apply(self, index: int, payload: bytes) -> bytes:
        """Apply, and compare payload, result and all that readers can see."""
        if index <= self.index:
            raise Violation(f"{self.who} applied {index} after {self.index}")
        before, old = self.state.list()
        result = self.state.apply(index, payload)
        self.index = index
        revision, visible = self.state.list()
        mine = Applied(payload, result, revision, visible)
        first = self.record.applied.get(index)
        if first is None:
            self.record.applied[index] = mine
            if revision != before:
                self.record.changes[revision] = _difference(old, visible)
        elif first != mine:
            raise Violation(f"{self.who} differs at {index}: it has {mine}, another member had {first}")
        return result

    def snapshot(self) -> Iterator[bytes]:
        """Return the store's pieces of now; once drawn, they are compared with other members' of the same index."""
        return self._compared(self.state.snapshot(), self.index)

    def _compared(self, pieces: Iterator[bytes], index: int) -> Iterator[bytes]:
        digest = hashlib.blake2b(digest_size=16)
        for piece in pieces:
            digest.update(piece)
            yield piece
        self._drawn(index, digest.digest())

    def _drawn(self, index: int, digest: bytes) -> None:
        self.record.count("snapshots")
        self.record.snapshots[digest] = min(index, self.record.snapshots.get(digest, index))
        if self.record.digests.setdefault(index, digest) != digest:
            raise Violation(f"{self.who} wrote down another state at {index} than another member did")

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Restore a state that some member had at some time; anything else is a violation."""
        whole = list(pieces)
        self.state.restore(iter(whole))
        digest = hashlib.blake2b(b"".join(whole), digest_size=16).digest()
        index = self.record.snapshots.get(digest)
        if index is None:
            raise Violation(f"{self.who} restored a state that never was: {self.state.list()}")
        self.index = index
        self.restores += 1
        first = self.record.applied.get(index)
        if first is not None and (first.revision, first.visible) != self.state.list():
            raise Violation(f"{self.who} restored the state of {index} and shows another one")


def _difference(before: list[Entry], after: list[Entry]) -> list[Change]:
    """Return what changed, by key: made from what readers see, not from what the store tells its watchers."""
    old, new = {entry.key: entry for entry in before}, {entry.key: entry for entry in after}
    written = [(key, entry.value) for key, entry in new.items() if old.get(key) != entry]
    return sorted([*written, *((key, None) for key in old.keys() - new.keys())], key=lambda change: change[0])
