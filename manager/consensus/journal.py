"""The Raft log on disk, and the term and vote: what a member has promised survives a power cut (rules H1, H8, H9).

Invariant: `add` never removes an entry that agrees with the new one, and never a committed one; an entry on disk
carries the commit index known when it was written, so that a restart knows at least the commits that the entry's
acknowledgement implied (the safety of membership changes rests on it, see membership.py).

File `journal`: the header, then records: magic, length, CRC32 of the body, body. The body: index, term, commit index,
how much of the file was durable when this record was written, command. A record whose index is already taken
replaces the tail from there: nothing is ever truncated in place. Compaction writes a new file and renames it.

At start a torn tail is cut: a bad record after which no record shows that it had been durable. Any other bad record
is damage, and the member refuses to start.
"""

import struct
import zlib
from dataclasses import dataclass

from .disk import Disk
from .library import NO_OP
from .types import CorruptState

JOURNAL_FILE = "journal"
VOTE_FILE = "vote"

Entry = tuple[bytes, int, int]
"""The library's entry: command with its kind byte, index, term."""

_HEADER = b"gugus raft journal 1\n"
_MAGIC = b"\xc7gjr"
_FRAME = struct.Struct("<4sII")  # magic, length of the body, CRC32 of length and body
_BODY = struct.Struct("<QQQQ")  # index, term, commit index, durable bytes before
_MAX_BODY = 1 << 20  # far above the largest command
_VOTE = struct.Struct("<QI")  # term, CRC32 of term and name; then the name


@dataclass(frozen=True, slots=True)
class _Record:
    entry: Entry
    commit: int
    durable: int
    end: int


class Journal:
    """The log as the library wants it (`add`, slicing, `setCurrentTerm`, ...) and `sync` for us.

    Raises CorruptState when the files are damaged, OSError when the disk fails (then the member must stop).
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._entries: list[Entry] = []
        self._commit = 1
        self.leader_commit = 0
        """Commit index that the message being handled carries; it goes into the entries' records."""
        self._size = self._durable = 0
        self._dirty = False
        self._load()
        self._term, self._vote = _load_vote(disk)

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
        self._entries.append(entry)
        record = _encode(entry, max(self._commit, min(self.leader_commit, index)), self._durable)
        self._disk.append(JOURNAL_FILE, record)
        self._size += len(record)
        self._dirty = True

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
        """Store term and vote durably before returning."""
        if (term, vote) != (self._term, self._vote):
            name = (vote or "").encode()
            body = struct.pack("<Q", term) + name
            self._disk.replace(VOTE_FILE, _VOTE.pack(term, zlib.crc32(body)) + name)
            self._term, self._vote = term, vote

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

    # -- ours

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
        """Return entries from an index on, at least one if there is one, up to about a size of commands in bytes."""
        entries, size = list[Entry](), 0
        for position in range(index - self.first_index, len(self._entries)):
            entry = self._entries[position]
            size += len(entry[0])
            if entries and size > max_bytes:
                break
            entries.append(entry)
        return entries

    @property
    def dirty(self) -> bool:
        """Whether entries wait for `sync`."""
        return self._dirty

    def sync(self) -> None:
        """Make all entries durable; nothing that promises them may leave before (H8)."""
        if self._dirty:
            self._disk.sync(JOURNAL_FILE)
            self._durable = self._size
            self._dirty = False

    def compact(self, first_kept: int) -> None:
        """Drop the entries before an index; a new file is written and renamed."""
        if first_kept > self.first_index:
            self._rewrite(self._entries[first_kept - self.first_index :])

    def reset(self, index: int, term: int) -> None:
        """Start the log anew behind a snapshot: its last entry stands in the log as a no-op placeholder."""
        self._commit = index
        self._rewrite([(bytes([NO_OP]), index, term)])

    def _rewrite(self, entries: list[Entry]) -> None:
        data = bytearray(_HEADER)
        for entry in entries:
            data += _encode(entry, self._commit, len(data))
        self._disk.replace(JOURNAL_FILE, bytes(data))
        self._entries = entries
        self._size = self._durable = len(data)
        self._dirty = False

    def _load(self) -> None:
        data = self._disk.read(JOURNAL_FILE)
        if data is None or (len(data) < len(_HEADER) and _HEADER.startswith(data)):
            self._rewrite([])
            return
        if not data.startswith(_HEADER):
            raise CorruptState(f"{JOURNAL_FILE}: not a journal of this version; restore the member from its peers")
        position = len(_HEADER)
        while position < len(data):
            record = _decode(data, position)
            if record is None:
                _refuse_damage(data, position)
                break
            self._replay(record)
            position = record.end
        self._size = self._durable = position
        if position < len(data):
            self._rewrite(self._entries)

    def _replay(self, record: _Record) -> None:
        command, index, term = record.entry
        self._commit = max(self._commit, record.commit)
        if self._entries:
            position = index - self._entries[0][1]
            if not 0 < position <= len(self._entries) or term < self._entries[position - 1][2]:
                raise CorruptState(f"{JOURNAL_FILE}: entry {index} of term {term} does not follow the one before")
            del self._entries[position:]
        self._entries.append((command, index, term))


def _encode(entry: Entry, commit: int, durable: int) -> bytes:
    command, index, term = entry
    body = _BODY.pack(index, term, commit, durable) + command
    return _FRAME.pack(_MAGIC, len(body), zlib.crc32(body, len(body))) + body


def _decode(data: bytes, position: int) -> _Record | None:
    if position + _FRAME.size > len(data):
        return None
    magic, length, crc = _FRAME.unpack_from(data, position)
    start = position + _FRAME.size
    if magic != _MAGIC or not _BODY.size < length <= _MAX_BODY or start + length > len(data):
        return None
    body = data[start : start + length]
    if zlib.crc32(body, length) != crc:
        return None
    index, term, commit, durable = _BODY.unpack_from(body)
    return _Record((body[_BODY.size :], index, term), commit, durable, start + length)


def _refuse_damage(data: bytes, position: int) -> None:
    """Raise CorruptState when a later record says that the bad one had been durable."""
    later = data.find(_MAGIC, position + 1)
    while later != -1:
        record = _decode(data, later)
        if record is not None and record.durable > position:
            raise CorruptState(
                f"{JOURNAL_FILE}: damaged at byte {position}, before data that was synced later; check the disk, "
                "then remove this voter from the cluster and add it again with an empty data folder"
            )
        later = data.find(_MAGIC, later + 1)


def _load_vote(disk: Disk) -> tuple[int, str | None]:
    data = disk.read(VOTE_FILE)
    if data is None:
        return 0, None
    if len(data) < _VOTE.size:
        raise CorruptState(f"{VOTE_FILE}: {len(data)} bytes, too short; remove this voter and add it again")
    term, crc = _VOTE.unpack_from(data)
    name = data[_VOTE.size :]
    if zlib.crc32(struct.pack("<Q", term) + name) != crc:
        raise CorruptState(f"{VOTE_FILE}: wrong checksum; remove this voter and add it again")
    return term, name.decode() or None
