"""Reading the log back from its segments; nothing is changed on the disk.

Invariant: what this returns is what the records say in their order, or CorruptState.
"""

import struct
from contextlib import closing
from dataclasses import dataclass

from .disk import Disk
from .library import NO_OP
from .segment import ENTRY, REMEDY, RESET, VOTE, Entry, Record, read_segment, segment_name, sequence_of
from .types import CorruptState


@dataclass(slots=True)
class Segment:
    """One file of the journal."""

    sequence: int
    size: int
    last_index: int = 0
    """Highest index in it that may still be needed."""

    @property
    def name(self) -> str:
        """Its file name."""
        return segment_name(self.sequence)


class Replay:
    """The log, term and vote as the disk has them. Raises CorruptState, OSError."""

    def __init__(self, disk: Disk) -> None:
        self.entries: list[Entry] = []
        self.commit = 1
        self.term = 0
        self.vote: str | None = None
        self.segments: list[Segment] = []
        self.sealed = True
        """Whether the newest segment is complete, so that the next record needs another one."""
        self.end = 0
        """Where the good records of the newest segment end."""
        self.torn = 0
        """Bytes behind them: writes under way at a crash."""
        sequences = sorted(s for name in disk.names() if (s := sequence_of(name)) is not None)
        for expected, sequence in enumerate(sequences, start=sequences[0] if sequences else 1):
            if sequence != expected:
                raise CorruptState(f"{segment_name(expected)}: is missing; {REMEDY}")
            self._read(segment_name(sequence), _content(disk, segment_name(sequence)), sequence, sequences[-1])

    def _read(self, name: str, data: bytes, sequence: int, newest: int) -> None:
        contents = read_segment(name, data, newest=sequence == newest)
        self.segments.append(Segment(sequence, len(data)))
        for record in contents.records:
            try:
                self._take(name, record)
            except (struct.error, UnicodeDecodeError) as error:
                raise CorruptState(f"{name}: a record before byte {record.end}: {error}; {REMEDY}") from None
        self.sealed, self.end, self.torn = contents.sealed, contents.end, contents.torn

    def _take(self, name: str, record: Record) -> None:
        if record.kind == VOTE:
            self.term, self.vote = record.vote
        elif record.kind == RESET:
            index, term = record.reset
            self.entries, self.commit = [(bytes([NO_OP]), index, term)], index
            start_at(self.segments, index)
        elif record.kind == ENTRY:
            self._take_entry(name, record)

    def _take_entry(self, name: str, record: Record) -> None:
        entry, commit = record.entry
        _, index, term = entry
        self.commit = max(self.commit, commit)
        if self.entries:
            # Before the first one: it replaced entries whose beginning went away with an older segment.
            position = max(0, index - self.entries[0][1])
            if position > len(self.entries) or (position and term < self.entries[position - 1][2]):
                raise CorruptState(f"{name}: entry {index} of term {term} does not follow the one before; {REMEDY}")
            del self.entries[position:]
        self.entries.append(entry)
        self.segments[-1].last_index = max(self.segments[-1].last_index, index)


def start_at(segments: list[Segment], index: int) -> None:
    """Note that the log starts anew in the newest segment: nothing in the others is needed any more."""
    for segment in segments:
        segment.last_index = 0
    segments[-1].last_index = index


def _content(disk: Disk, name: str) -> bytes:
    reader = disk.open(name)
    if reader is None:
        raise CorruptState(f"{name}: went away while it was read")
    with closing(reader):
        return reader.read(0, reader.size)
