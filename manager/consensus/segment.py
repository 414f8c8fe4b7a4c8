"""The format of the journal's files: records with a checksum, and how a torn tail is told from damage (rule H9).

A segment is a file whose room is reserved when it is made. It holds the header, then records, then zeros. A record: magic, length of the
body, CRC-32 of length and body; the body: kind, how much of this segment was durable when the record was written, and by kind

- ENTRY: index, term, commit index known then, command. An index that is taken already replaces the tail of the log from there.
- VOTE: the current term and who got this member's vote in it. It stands at the start of every segment too.
- RESET: index, term. The log starts anew behind a snapshot.
- SEAL: nothing; the segment is complete and another follows.

Invariant: every segment but the newest ends in a SEAL that was synced before the next one was made. So a bad record in an older segment is
damage; in the newest it is a torn tail, unless a later record says that the place had been durable.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from .types import CorruptState

Entry = tuple[bytes, int, int]
"""The library's entry: command with its kind byte, index, term."""

HEADER = b"gugus raft journal 2\n"
PREFIX = "journal-"
SPARE = "journal-spare"

REMEDY = "check the disk, then remove this voter from the cluster and add it again with an empty data folder"

ENTRY, VOTE, RESET, SEAL = 1, 2, 3, 4

_MAGIC = b"\xc7gjr"
_FRAME = struct.Struct("<4sII")  # magic, length of the body, CRC-32 of length and body
_HEAD = struct.Struct("<BQ")  # kind, durable bytes of the segment before
_ENTRY = struct.Struct("<QQQ")  # index, term, commit index
_VOTE = struct.Struct("<Q")  # term; then the name
_RESET = struct.Struct("<QQ")  # index, term
_MAX_BODY = 1 << 20  # far above the largest command


@dataclass(frozen=True, slots=True)
class Record:
    """One record read back; `end` is where the next one starts."""

    kind: int
    durable: int
    end: int
    data: memoryview

    @property
    def entry(self) -> tuple[Entry, int]:
        """The entry, and the commit index known when it was written."""
        index, term, commit = _ENTRY.unpack_from(self.data)
        return (bytes(self.data[_ENTRY.size :]), index, term), commit

    @property
    def vote(self) -> tuple[int, str | None]:
        """Term and vote."""
        return _VOTE.unpack_from(self.data)[0], bytes(self.data[_VOTE.size :]).decode() or None

    @property
    def reset(self) -> tuple[int, int]:
        """Index and term of the entry that the log starts with."""
        index, term = _RESET.unpack_from(self.data)
        return index, term


def segment_name(sequence: int) -> str:
    """Return the file name of a segment."""
    return f"{PREFIX}{sequence:08d}"


def sequence_of(name: str) -> int | None:
    """Return the sequence number in a file name, None when it is no segment's."""
    number = name.removeprefix(PREFIX)
    return int(number) if name.startswith(PREFIX) and number.isdecimal() else None


def entry_record(entry: Entry, commit: int, durable: int) -> bytes:
    """Return the record of an entry."""
    command, index, term = entry
    return _record(ENTRY, durable, _ENTRY.pack(index, term, commit) + command)


def vote_record(term: int, vote: str | None, durable: int) -> bytes:
    """Return the record of term and vote."""
    return _record(VOTE, durable, _VOTE.pack(term) + (vote or "").encode())


def reset_record(index: int, term: int, durable: int) -> bytes:
    """Return the record that starts the log anew."""
    return _record(RESET, durable, _RESET.pack(index, term))


def seal_record(durable: int) -> bytes:
    """Return the record that ends a segment."""
    return _record(SEAL, durable, b"")


def _record(kind: int, durable: int, data: bytes) -> bytes:
    body = _HEAD.pack(kind, durable) + data
    return _FRAME.pack(_MAGIC, len(body), zlib.crc32(body, len(body))) + body


@dataclass(frozen=True, slots=True)
class Contents:
    """What a segment holds: its good records, where they end, and how many bytes of a torn tail follow."""

    records: list[Record]
    end: int
    torn: int

    @property
    def sealed(self) -> bool:
        """Whether it was completed."""
        return bool(self.records) and self.records[-1].kind == SEAL


def read_segment(name: str, data: bytes, newest: bool) -> Contents:
    """Return the contents of a segment. Raises CorruptState for damage that no crash explains."""
    if not data.startswith(HEADER):
        raise CorruptState(f"{name}: no journal of this version: its header is damaged; {REMEDY}")
    records = list(_records(data))
    end = records[-1].end if records else len(HEADER)
    if records and records[-1].kind == SEAL:
        return Contents(records, end, 0)
    if not newest or _was_durable(data, end):
        raise CorruptState(f"{name}: damaged at byte {end}, before data that was synced later; {REMEDY}")
    return Contents(records, end, len(data[end:].rstrip(b"\0")))


def _records(data: bytes) -> Iterator[Record]:
    position = len(HEADER)
    while (record := _decode(data, position)) is not None:
        yield record
        if record.kind == SEAL:
            return
        position = record.end


def _decode(data: bytes, position: int) -> Record | None:
    if position + _FRAME.size > len(data):
        return None
    magic, length, crc = _FRAME.unpack_from(data, position)
    start = position + _FRAME.size
    if magic != _MAGIC or not _HEAD.size <= length <= _MAX_BODY or start + length > len(data):
        return None
    body = memoryview(data)[start : start + length]
    if zlib.crc32(body, length) != crc:
        return None
    kind, durable = _HEAD.unpack_from(body)
    return Record(kind, durable, start + length, body[_HEAD.size :])


def _was_durable(data: bytes, position: int) -> bool:
    """Return whether a record behind a bad one says that the bad one had been durable."""
    later = data.find(_MAGIC, position)
    while later != -1:
        record = _decode(data, later)
        if record is not None and record.durable > position:
            return True
        later = data.find(_MAGIC, later + 1)
    return False
