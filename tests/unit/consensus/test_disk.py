"""Journal, vote and snapshot: torn tails are cut, damage is refused, and the library is the one we know."""

import inspect
from importlib.metadata import version
from pathlib import Path

import pytest

from manager.consensus import CorruptState, Member
from manager.consensus.disk import FolderDisk
from manager.consensus.journal import Journal
from manager.consensus.library import PRIVATE_FIELDS, PRIVATE_METHODS, REBOUND_NAMES, VERSION, SyncObj, library
from manager.consensus.snapshot import Snapshot


def written(folder: Path, count: int = 5) -> Journal:
    journal = Journal(FolderDisk(folder))
    for index in range(1, count + 1):
        journal.add(b"\x00command %d" % index, index, 1)
        journal.sync()
    return journal


def test_entries_term_and_vote_are_there_after_a_restart(tmp_path: Path) -> None:
    written(tmp_path).setCurrentTerm(7, "n2")
    journal = Journal(FolderDisk(tmp_path))
    assert [journal[i][1] for i in range(len(journal))] == [1, 2, 3, 4, 5]
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (7, "n2")


def test_an_agreeing_entry_is_kept_and_a_conflicting_one_replaces_the_tail(tmp_path: Path) -> None:
    journal = written(tmp_path)
    journal.deleteEntriesFrom(2)
    journal.add(b"\x00command 3", 3, 1)
    assert journal.last_index == 5
    journal.add(b"\x00other", 4, 2)
    assert journal.last_index == 4
    assert Journal(FolderDisk(tmp_path))[-1] == (b"\x00other", 4, 2)


def test_a_committed_entry_is_never_replaced(tmp_path: Path) -> None:
    journal = written(tmp_path)
    journal.setRaftCommitIndex(4)
    with pytest.raises(CorruptState, match="committed"):
        journal.add(b"\x00other", 4, 2)


@pytest.mark.parametrize("cut", [1, 7, 20, 60])
def test_a_torn_tail_is_cut_and_writing_goes_on(tmp_path: Path, cut: int) -> None:
    written(tmp_path)
    path = tmp_path / "journal"
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(FolderDisk(tmp_path))
    assert journal.last_index in (3, 4)
    journal.add(b"\x00again", journal.last_index + 1, 2)
    journal.sync()
    assert Journal(FolderDisk(tmp_path))[-1] == journal[-1]


def test_damage_before_synced_data_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "journal"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptState, match="damaged at byte"):
        Journal(FolderDisk(tmp_path))


def test_a_damaged_vote_is_refused(tmp_path: Path) -> None:
    written(tmp_path).setCurrentTerm(7, "n2")
    (tmp_path / "vote").write_bytes((tmp_path / "vote").read_bytes()[:-1] + b"3")
    with pytest.raises(CorruptState, match="vote"):
        Journal(FolderDisk(tmp_path))


def test_the_log_is_shortened_and_keeps_its_indexes(tmp_path: Path) -> None:
    written(tmp_path).compact(4)
    journal = Journal(FolderDisk(tmp_path))
    assert (journal.first_index, journal.last_index) == (4, 5)


def test_a_snapshot_is_verified_before_it_is_used() -> None:
    data = Snapshot(9, 2, (Member("n1", "h", 1),), False, b"state").encode()
    assert Snapshot.decode(data).state == b"state"
    with pytest.raises(CorruptState):
        Snapshot.decode(data[:-1] + bytes([data[-1] ^ 1]))


def test_the_library_is_the_one_whose_private_names_we_rely_on() -> None:
    assert version("pysyncobj") == VERSION
    assert [m for m in PRIVATE_METHODS if not hasattr(SyncObj, f"_SyncObj__{m}")] == []
    source = inspect.getsource(SyncObj)
    assert [f for f in PRIVATE_FIELDS if f"self.__{f} =" not in source] == []
    assert [n for n in REBOUND_NAMES if not hasattr(library, n)] == []
