"""The Raft log on disk, and the term and vote: what a member has promised survives a power cut (rules H1, H8, H9).

Invariant: `add` never removes an entry that agrees with the new one, and never a committed one; an entry on disk
carries the commit index known when it was written, so that a restart knows at least the commits that the entry's
acknowledgement implied (the safety of membership changes rests on it, see membership.py).

The log lies in segments (segment.py). Records are gathered in memory and reach the disk in one write and one sync,
however many wait for it. Nothing is truncated in place: a record replaces a tail. The next segment's room is reserved
ahead, as a spare: a journal without a spare is full, and the member accepts no proposal until there is room again. The
end of each segment is kept for what a full member must still be able to write: votes, and a new leader's empty entry.
"""

import structlog

from .disk import Disk, is_full
from .library import NO_OP, now
from .replay import Replay, Segment, start_at
from .segment import HEADER, SPARE, Entry, entry_record, reset_record, seal_record, segment_name, vote_record
from .sync_times import SyncTimes
from .types import CorruptState

__all__ = ["Entry", "Journal"]

RESERVE_BYTES = 64 * 1024
"""The end of each segment, for some 700 votes of a full member."""
LOOK_FOR_ROOM_S = 1.0
MAX_ENTRIES = 4_096
"""Most entries in one message: a megabyte of tiny ones would cost the receiver seconds."""

_ENTRY_FIELDS_BYTES = 32  # index, term and tags of an entry on the wire; more than they are

_OVERHEAD_BYTES = 64  # a record's frame and fixed fields; more than it is
_HEAD_BYTES = 512  # header and vote at the start of a segment; more than they are

_log = structlog.get_logger("manager.consensus")


class Journal:
    """The log as the library wants it (`add`, slicing, `setCurrentTerm`, ...) and `sync` for us.

    Raises CorruptState when the files are damaged, OSError when the disk fails (then the member must stop).
    """

    def __init__(self, disk: Disk, segment_bytes: int) -> None:
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._file_bytes = segment_bytes + RESERVE_BYTES
        self.leader_commit = 0
        """Commit index that the message being handled carries; it goes into the entries' records."""
        self.written_bytes = 0
        """Bytes of commands added since the start."""
        self.times = SyncTimes()
        self._buffer = bytearray()
        self._has_spare = False
        self._look_again = 0.0
        replay = Replay(disk)
        self._entries, self._commit = replay.entries, replay.commit
        self._term, self._vote = replay.term, replay.vote
        self._segments = replay.segments
        self._end = self._durable = replay.end
        self.cut_bytes = replay.torn
        """Torn tail that was cut at the start."""
        self._open(replay)

    # -- what the library calls

    def add(self, command: bytes, index: int, term: int) -> None:
        """Append an entry; one there with the same term is kept, with another term the tail is replaced (H1)."""
        if self._entries:
            position = index - self._entries[0][1]
            if not 0 <= position <= len(self._entries):
                raise CorruptState(f"entry {index} does not follow the log, which ends at {self._entries[-1][1]}")
            if position < len(self._entries):
                if self._entries[position][2] == term:
                    return
                if index <= self._commit:
                    raise CorruptState(
                        f"entry {index} of term {term} would replace a committed one; commit {self._commit}"
                    )
                del self._entries[position:]
        entry = (bytes(command), index, term)
        self._make_room(len(command) + _OVERHEAD_BYTES, may_use_reserve=command == bytes([NO_OP]))
        self._entries.append(entry)
        self._segments[-1].last_index = max(self._segments[-1].last_index, index)
        self.written_bytes += len(command)
        self._append(entry_record(entry, max(self._commit, min(self.leader_commit, index)), self._durable))

    def deleteEntriesFrom(self, position: int) -> None:
        """Do nothing: the library calls it on every overlap, `add` truncates where there is a conflict (H1)."""

    def deleteEntriesTo(self, position: int) -> None:
        """Do nothing: `compact` shortens the log."""

    def clear(self) -> None:
        """Do nothing: `reset` replaces the log."""

    def __getitem__(self, item: int | slice) -> Entry | list[Entry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, index: int) -> None:
        """Note the commit index; it reaches the disk with the next entry."""
        self._commit = max(self._commit, index)

    def getRaftCommitIndex(self) -> int:
        """Return the highest commit index known to the disk."""
        return self._commit

    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        """Note term and vote; no message that promises them leaves before the next `sync`."""
        if (term, vote) != (self._term, self._vote):
            self._term, self._vote = term, vote
            self._make_room(_OVERHEAD_BYTES + len(vote or ""), may_use_reserve=True)
            self._append(vote_record(term, vote, self._durable))

    def getCurrentTerm(self) -> int:
        """Return the stored term."""
        return self._term

    def getVotedForNodeId(self) -> str | None:
        """Return who got this member's vote in the stored term."""
        return self._vote

    def onOneSecondTimer(self) -> None:
        """Nothing is left for later."""

    def _destroy(self) -> None:
        self._disk.close()

    # -- ours: the log

    @property
    def first_index(self) -> int:
        """Index of the first entry held."""
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        """Index of the last entry held, 0 when empty."""
        return self._entries[-1][1] if self._entries else 0

    def term_at(self, index: int) -> int | None:
        """Return the term of the entry at an index, None when it is not held."""
        position = index - self._entries[0][1] if self._entries else -1
        return self._entries[position][2] if 0 <= position < len(self._entries) else None

    def entries_from(self, index: int, max_bytes: int) -> list[Entry]:
        """Return entries from an index on, at least one if there is one, up to about a size in bytes and MAX_ENTRIES."""
        entries, size = list[Entry](), 0
        start = index - self.first_index
        for position in range(start, min(len(self._entries), start + MAX_ENTRIES)):
            entry = self._entries[position]
            size += len(entry[0]) + _ENTRY_FIELDS_BYTES
            if entries and size > max_bytes:
                break
            entries.append(entry)
        return entries

    def compact(self, first_kept: int) -> None:
        """Drop the entries before an index, and the segments that hold none but such."""
        if first_kept > self.first_index:
            self._entries = self._entries[first_kept - self.first_index :]
        while len(self._segments) > 1 and self._segments[0].last_index < first_kept:
            self._disk.remove(self._segments.pop(0).name)

    def reset(self, index: int, term: int) -> None:
        """Start the log anew behind a snapshot: its last entry stands in the log as a no-op placeholder."""
        self._append(reset_record(index, term, self._durable))
        self.sync()
        self._commit = index
        self._entries = [(bytes([NO_OP]), index, term)]
        start_at(self._segments, index)
        self.compact(index)

    # -- ours: the disk

    @property
    def dirty(self) -> bool:
        """Whether records wait for `sync`."""
        return bool(self._buffer)

    def sync(self) -> None:
        """Make all records durable; nothing that promises them may leave before (H8)."""
        if not self._buffer:
            return
        started, name = now(), self._segments[-1].name
        self._disk.write(name, self._durable, bytes(self._buffer))
        self._disk.sync(name)
        self._durable = self._end
        self._buffer.clear()
        self.times.note(now() - started)

    @property
    def full(self) -> bool:
        """Whether there is no room for another segment."""
        return not self._has_spare

    def look_for_room(self) -> float | None:
        """Reserve the next segment, if it is due; return when to try again, None when there is nothing to try."""
        if self._has_spare:
            return None
        if now() >= self._look_again:
            self._look_again = now() + LOOK_FOR_ROOM_S
            self._reserve()
        return None if self._has_spare else self._look_again

    def fitting(self, entries: list[Entry]) -> int:
        """Return how many of these entries there is room for, without another file."""
        rooms = [self._room(), self._segment_bytes - _HEAD_BYTES if self._has_spare else 0]
        for count, (command, _, _) in enumerate(entries):
            size = len(command) + _OVERHEAD_BYTES
            while rooms and size > rooms[0]:
                rooms.pop(0)
            if not rooms:
                return count
            rooms[0] -= size
        return len(entries)

    @property
    def disk_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def segment_count(self) -> int:
        """Number of segments."""
        return len(self._segments)

    def _append(self, record: bytes) -> None:
        self._buffer += record
        self._end += len(record)

    def _room(self) -> int:
        return self._segments[-1].size - RESERVE_BYTES - self._end

    def _make_room(self, size: int, *, may_use_reserve: bool) -> None:
        """Go on in the next segment when this one has no room. Raises OSError when there is none and it is needed."""
        if size > self._room() and (self._has_spare or not may_use_reserve):
            self._allocate_spare()
            self._append(seal_record(self._durable))
            self.sync()
            self._begin(self._segments[-1].sequence + 1)

    def _begin(self, sequence: int) -> None:
        """Make the spare the newest segment."""
        self._allocate_spare()
        head = HEADER + vote_record(self._term, self._vote, 0)
        self._disk.write(SPARE, 0, head)
        self._disk.sync(SPARE)
        self._disk.rename(SPARE, segment_name(sequence))
        self._segments.append(Segment(sequence, self._file_bytes))
        self._end = self._durable = len(head)
        self._has_spare = False
        self._reserve()

    def _reserve(self) -> None:
        try:
            self._allocate_spare()
        except OSError as error:
            if not is_full(error):
                raise
            _log.error("no room for the journal; no write is accepted until there is", reason=str(error))
            return
        self._has_spare = True

    def _allocate_spare(self) -> None:
        if self._size_of(SPARE) != self._file_bytes:
            self._disk.allocate(SPARE, self._file_bytes)

    def _open(self, replay: Replay) -> None:
        """Make the newest segment, or a fresh one, ready for more."""
        if SPARE in self._disk.names():  # a crash may have left the head of a segment in it
            self._disk.write(SPARE, 0, bytes(_HEAD_BYTES))
            self._disk.sync(SPARE)
        if replay.torn:
            self._cut(self._segments[-1].name, replay.end, replay.torn)
        if replay.sealed:
            self._begin(self._segments[-1].sequence + 1 if self._segments else 1)
        else:
            self._reserve()

    def _size_of(self, name: str) -> int:
        reader = self._disk.open(name)
        if reader is None:
            return 0
        try:
            return reader.size
        finally:
            reader.close()

    def _cut(self, name: str, position: int, torn: int) -> None:
        """Overwrite a torn tail by zeros: records behind it must not come to life when others are written before them."""
        _log.warning(
            "torn tail of the journal cut: writes under way at a crash", file=name, offset=position, bytes=torn
        )
        self._disk.write(name, position, bytes(torn))
        self._disk.sync(name)
