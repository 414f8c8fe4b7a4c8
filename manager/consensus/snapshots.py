"""A member's newest snapshot: loaded at the start, made while the member goes on, taken over from the leader.

Invariant: from its first start on a member has a snapshot on disk that is complete and verified; a new one takes its place by a rename.
The log keeps every entry behind it.
"""

import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

import structlog

from .disk import Disk, Reader, is_full
from .library import now
from .snapshot import SNAPSHOT_FILE, Snapshot, SnapshotFile, write_snapshot
from .types import CorruptState, Limits, Member, StateMachine

if TYPE_CHECKING:
    from .core import RaftCore

Background = Callable[[Callable[[], None], Callable[[Exception | None], None]], None]
"""Runs the first function elsewhere, then calls the second one in the core's thread, followed by a turn."""

MAKING = "snapshot-making"
RECEIVING = "snapshot-receiving"
RETRY_S = 10.0
"""Pause after a snapshot that there was no room for."""

_log = structlog.get_logger("manager.consensus")


class Snapshots:
    """The newest snapshot's head and size, and the making of the next one."""

    def __init__(
        self, disk: Disk, machine: StateMachine, limits: Limits, founders: tuple[Member, ...], background: Background
    ) -> None:
        self._disk, self._machine, self._background = disk, machine, background
        self._limits = limits
        self._making = False
        self._not_before = 0.0
        self._bytes_covered = 0
        self.size = 0
        disk.remove(MAKING)
        disk.remove(RECEIVING)
        self.newest = self._load() or self._first(founders)

    def open(self) -> Reader:
        """Open the newest snapshot's file, to send it. Raises OSError."""
        reader = self._disk.open(SNAPSHOT_FILE)
        if reader is None:
            raise FileNotFoundError(f"{SNAPSHOT_FILE} is gone from the data folder")
        return reader

    def step(self, core: "RaftCore") -> None:
        """Begin a snapshot if one is due: copy the state now, write it in the background."""
        if self._making or not self._due(core) or now() < self._not_before:
            return
        applied = core.applied_index
        term = core.journal.term_at(applied)
        if term is None:
            raise CorruptState(f"entry {applied} was applied but is not in the log")
        made = Snapshot(applied, term, core.voters, time.time(), core.levels.level)
        covered, pieces = core.journal.written_bytes, self._machine.snapshot()
        self._making = True
        self._background(
            lambda: write_snapshot(self._disk, MAKING, made, pieces),
            lambda error: self._made(core, made, covered, error),
        )

    def take_over(self, file: SnapshotFile) -> None:
        """Put a received, verified file in force. Raises CorruptState when the state machine cannot read it; then nothing has changed."""
        try:
            self._machine.restore(file.pieces())
        except ValueError as error:
            raise CorruptState(f"{RECEIVING}: {error}") from error
        self._disk.rename(RECEIVING, SNAPSHOT_FILE)
        self.newest = file.snapshot
        self.size = self._size()

    def _due(self, core: "RaftCore") -> bool:
        entries = core.applied_index - self.newest.index
        size = core.journal.written_bytes - self._bytes_covered
        limits = self._limits
        return entries >= limits.compact_after_entries or (
            entries > 0 and size >= max(limits.compact_after_bytes, self.size // 2)
        )

    def _made(self, core: "RaftCore", made: Snapshot, covered: int, error: Exception | None) -> None:
        self._making = False
        if isinstance(error, OSError) and is_full(error):
            self._not_before = now() + RETRY_S
            self._disk.remove(MAKING)
            _log.error("no room for a snapshot; the journal grows until there is", reason=str(error))
            return
        if error is not None:
            raise error
        if made.index <= self.newest.index:  # the leader's came meanwhile
            self._disk.remove(MAKING)
            return
        self._disk.rename(MAKING, SNAPSHOT_FILE)
        self.newest, self.size, self._bytes_covered = made, self._size(), covered
        core.journal.compact(made.index - self._limits.keep_entries)

    def _load(self) -> Snapshot | None:
        reader = self._disk.open(SNAPSHOT_FILE)
        if reader is None:
            return None
        with closing(reader):
            file = SnapshotFile(SNAPSHOT_FILE, reader)
            try:
                self._machine.restore(file.pieces())
            except ValueError as error:
                raise CorruptState(f"{SNAPSHOT_FILE}: {error}") from error
            self.size = reader.size
        return file.snapshot

    def _first(self, founders: tuple[Member, ...]) -> Snapshot:
        first = Snapshot(1, 0, tuple(sorted(founders)), time.time())
        write_snapshot(self._disk, MAKING, first, self._machine.snapshot())
        self._disk.rename(MAKING, SNAPSHOT_FILE)
        self.size = self._size()
        return first

    def _size(self) -> int:
        with closing(self.open()) as reader:
            return reader.size
