"""The data folder of a member that does not run: what it holds, and a new one in its place.

Invariant: `examine` and `read_state` change nothing, so that they can be run again on whatever is left of a cluster. No member may run on
the folder meanwhile; callers see to that.
"""

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from .command import decode_command
from .disk import Disk
from .incarnation import UID_FILE, new_uid, store_uid, stored_uid
from .library import COMMAND
from .replay import Replay
from .snapshot import SNAPSHOT_FILE, Snapshot, SnapshotFile, write_snapshot
from .snapshots import MAKING
from .types import CorruptState, Member, StateMachine


@dataclass(frozen=True, slots=True)
class Remains:
    """What a stopped member's folder holds."""

    last_index: int
    """Last entry of the journal, or the snapshot's when that is later."""
    last_term: int
    commit_index: int
    """Up to here entries are known to be committed; those behind it may be."""
    snapshot_index: int
    voters: tuple[Member, ...]
    """The newest voters that it knows, a change at the uncommitted end of the log included."""
    uid: str
    """Which life of its name the member is; "" when the folder does not say."""
    cut_bytes: int
    """Torn tail that is passed over: writes under way at a crash, promised to nobody."""


def examine(disk: Disk) -> Remains:
    """Return what a folder holds. Raises CorruptState, OSError."""
    replay = Replay(disk)
    with _snapshot(disk) as file:
        head = file.snapshot
    voters, last = head.voters, (head.index, head.term)
    for command, index, term in _after(replay, head.index):
        last = index, term
        content = decode_command(command[1:]) if command[0] == COMMAND else b""
        voters = content if isinstance(content, tuple) else voters
    commit = max(head.index, min(replay.commit, last[0]))
    return Remains(last[0], last[1], commit, head.index, voters, stored_uid(disk) or "", replay.torn)


def read_state(disk: Disk, machine: StateMachine) -> Iterator[bytes]:
    """Bring a fresh state machine to the end of the folder's log, uncommitted entries included, and return its snapshot's pieces.

    An entry that was acknowledged may be known as committed only to a leader that is lost, so the whole log counts.
    Raises CorruptState, OSError, ValueError.
    """
    replay = Replay(disk)
    with _snapshot(disk) as file:
        machine.restore(file.pieces())
        head = file.snapshot
    for command, index, _ in _after(replay, head.index):
        content = decode_command(command[1:]) if command[0] == COMMAND else None
        if isinstance(content, bytes):
            machine.apply(index, content)
    return machine.snapshot()


def found_anew(disk: Disk, me: Member, pieces: Iterable[bytes]) -> None:
    """Make a folder, empty or left by an interrupted call, that of the only voter of a new cluster with this state.

    Durable when it returns. Raises OSError, and FileExistsError when a member has used the folder.
    """
    if any(name not in (MAKING, SNAPSHOT_FILE, UID_FILE) for name in disk.names()):
        raise FileExistsError("the data folder belongs to a member; move it away first")
    uid = new_uid(random.SystemRandom())
    store_uid(disk, uid)
    write_snapshot(disk, MAKING, Snapshot(1, 0, (replace(me, uid=uid),), time.time()), pieces)
    disk.rename(MAKING, SNAPSHOT_FILE)


def _snapshot(disk: Disk) -> "closing[_OpenSnapshot]":
    reader = disk.open(SNAPSHOT_FILE)
    if reader is None:
        raise CorruptState(f"{SNAPSHOT_FILE}: there is none; this is not the data folder of a member")
    try:
        return closing(_OpenSnapshot(SNAPSHOT_FILE, reader))
    except BaseException:
        reader.close()
        raise


class _OpenSnapshot(SnapshotFile):
    def close(self) -> None:
        self._reader.close()


def _after(replay: Replay, index: int) -> list[tuple[bytes, int, int]]:
    """Return the entries behind a snapshot. Raises CorruptState when some between are missing."""
    later = [entry for entry in replay.entries if entry[1] > index]
    if later and later[0][1] != index + 1:
        raise CorruptState(
            f"the journal starts at {later[0][1]}, after the snapshot at {index}: entries between are lost"
        )
    return later
