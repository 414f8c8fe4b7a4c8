"""The journal: what was promised is there after a crash, torn tails are cut, damage is refused, a full disk is survived."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.consensus import CorruptState
from manager.consensus.disk import FolderDisk
from manager.consensus.journal import RESERVE_BYTES, Journal
from manager.consensus.library import NO_OP
from manager.consensus.segment import HEADER, SPARE

SMALL = 2_000
"""Room of a segment for some ten entries."""

EMPTY = bytes([NO_OP])


class FullDisk(FolderDisk):
    """A disk that has no room while `full`."""

    full = False

    def allocate(self, name: str, size: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().allocate(name, size)


def command(number: int) -> bytes:
    return b"\x00command %06d " % number + b"x" * 100


def opened(folder: Path, segment_bytes: int = SMALL) -> Journal:
    return Journal(FolderDisk(folder), segment_bytes)


def written(folder: Path, count: int = 5, segment_bytes: int = SMALL) -> Journal:
    journal = opened(folder, segment_bytes)
    for index in range(1, count + 1):
        journal.add(command(index), index, 1)
        journal.sync()
    return journal


def entries(journal: Journal) -> list[tuple[bytes, int, int]]:
    return [journal[i] for i in range(len(journal))]  # type: ignore[misc]


def segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != SPARE)


def used(path: Path) -> int:
    return len(path.read_bytes().rstrip(b"\0"))


def test_entries_term_and_vote_are_there_after_a_restart(tmp_path: Path) -> None:
    before = written(tmp_path, 100)
    before.setCurrentTerm(7, "n2")
    before.sync()
    journal = opened(tmp_path)
    assert entries(journal) == entries(before)
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (7, "n2")
    assert len(segments(tmp_path)) > 5


def test_one_sync_serves_all_that_wait_for_it(tmp_path: Path) -> None:
    journal = opened(tmp_path, 1_000_000)
    syncs = journal.times.count
    for index in range(1, 1_001):
        journal.add(command(index), index, 1)
    journal.setCurrentTerm(2, None)
    journal.sync()
    assert journal.times.count == syncs + 1
    assert opened(tmp_path, 1_000_000).last_index == 1_000


def test_an_agreeing_entry_is_kept_and_a_conflicting_one_replaces_the_tail(tmp_path: Path) -> None:
    journal = written(tmp_path)
    journal.deleteEntriesFrom(2)
    journal.add(command(3), 3, 1)
    assert journal.last_index == 5
    journal.add(b"\x00other", 4, 2)
    journal.sync()
    assert journal.last_index == 4
    assert opened(tmp_path)[-1] == (b"\x00other", 4, 2)


def test_a_committed_entry_is_never_replaced(tmp_path: Path) -> None:
    journal = written(tmp_path)
    journal.setRaftCommitIndex(4)
    with pytest.raises(CorruptState, match="committed"):
        journal.add(b"\x00other", 4, 2)


@pytest.mark.parametrize("cut", [1, 7, 20, 60, 140])
def test_a_torn_tail_is_cut_and_reported_and_writing_goes_on(tmp_path: Path, cut: int) -> None:
    written(tmp_path, 5, 1_000_000)
    path = segments(tmp_path)[-1]
    data = path.read_bytes()
    end = used(path)
    assert data[end - 1]
    path.write_bytes(data[: end - cut] + bytes(len(data) - end + cut))
    journal = opened(tmp_path, 1_000_000)
    assert journal.last_index in (3, 4)
    assert journal.cut_bytes > 0
    journal.add(b"\x00again", journal.last_index + 1, 2)
    journal.sync()
    again = opened(tmp_path, 1_000_000)
    assert entries(again) == entries(journal)
    assert again.cut_bytes == 0


def test_records_behind_a_torn_one_do_not_come_to_life(tmp_path: Path) -> None:
    """Of one unsynced write the disk may keep the end without the beginning."""
    journal = written(tmp_path, 3, 1_000_000)
    path = segments(tmp_path)[-1]
    start = used(path)
    for index in (4, 5):
        journal.add(command(index), index, 1)
    journal.sync()
    data = bytearray(path.read_bytes())
    data[start + 1 : start + 60] = bytes(59)
    path.write_bytes(data)
    journal = opened(tmp_path, 1_000_000)
    assert journal.last_index == 3
    journal.add(command(4), 4, 2)
    journal.sync()
    assert opened(tmp_path, 1_000_000).last_index == 4


@pytest.mark.parametrize("where", [0.2, 0.5, 0.7])
def test_damage_before_synced_data_is_refused_naming_file_offset_and_remedy(tmp_path: Path, where: float) -> None:
    written(tmp_path, 5, 1_000_000)
    path = segments(tmp_path)[-1]
    data = bytearray(path.read_bytes())
    data[int(used(path) * where)] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptState, match=rf"{path.name}: damaged at byte \d+.*add it again"):
        opened(tmp_path, 1_000_000)
    assert path.read_bytes() == data, "damage is never repaired silently"


def test_damage_in_an_older_segment_is_refused(tmp_path: Path) -> None:
    written(tmp_path, 100)
    path = segments(tmp_path)[2]
    data = bytearray(path.read_bytes())
    data[used(path) - 5] ^= 0xFF  # in its last record: in the newest segment this would be a torn tail
    path.write_bytes(data)
    with pytest.raises(CorruptState, match=path.name):
        opened(tmp_path)


def test_a_missing_segment_is_refused_by_name(tmp_path: Path) -> None:
    written(tmp_path, 100)
    gone = segments(tmp_path)[2]
    gone.unlink()
    with pytest.raises(CorruptState, match=f"{gone.name}: is missing"):
        opened(tmp_path)


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    path = segments(tmp_path)[-1]
    path.write_bytes(bytes(len(HEADER)) + path.read_bytes()[len(HEADER) :])
    with pytest.raises(CorruptState, match="header"):
        opened(tmp_path)


def test_the_log_is_shortened_by_whole_segments_and_keeps_its_indexes(tmp_path: Path) -> None:
    journal = written(tmp_path, 100)
    journal.setCurrentTerm(3, "n1")
    journal.sync()
    before = len(segments(tmp_path))
    journal.compact(90)
    assert journal.first_index == 90
    assert len(segments(tmp_path)) < before / 3
    again = opened(tmp_path)
    assert again.first_index <= 90
    assert again.entries_from(90, 1_000_000) == journal.entries_from(90, 1_000_000)
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (3, "n1")


def test_a_log_started_anew_behind_a_snapshot_stays_so(tmp_path: Path) -> None:
    journal = written(tmp_path, 50)
    journal.setCurrentTerm(4, "n3")
    journal.reset(1_000, 3)
    assert len(segments(tmp_path)) == 1
    journal.add(command(1_001), 1_001, 4)
    journal.sync()
    again = opened(tmp_path)
    assert entries(again) == [(EMPTY, 1_000, 3), (command(1_001), 1_001, 4)]
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (4, "n3")


def test_a_full_disk_refuses_entries_but_takes_votes_and_heals(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path)
    journal = Journal(disk, SMALL)
    disk.full = True
    index = 0
    while not journal.full:
        index += 1
        journal.add(command(index), index, 1)
    journal.sync()
    taken = journal.fitting([(command(n), n, 1) for n in range(index + 1, index + 100)])
    assert 0 < taken < 99
    for index in range(index + 1, index + taken + 1):  # noqa: B020 - goes on counting
        journal.add(command(index), index, 1)
    for term in range(2, 300):
        journal.setCurrentTerm(term, "n1")
        journal.sync()
    journal.add(EMPTY, index + 1, 299)
    journal.sync()
    assert entries(Journal(disk, SMALL)) == entries(journal)
    with pytest.raises(OSError, match="No space"):
        journal.add(command(index + 2), index + 2, 299)
    again = Journal(disk, SMALL)
    assert again.look_for_room() is not None
    disk.full = False
    again._look_again = 0.0
    assert again.look_for_room() is None
    assert not again.full
    again.add(command(index + 2), index + 2, 299)
    again.sync()
    assert entries(Journal(disk, SMALL)) == entries(again)


def test_a_crash_between_making_and_naming_a_segment_loses_nothing(tmp_path: Path) -> None:
    journal = written(tmp_path, 30)
    spare = tmp_path / SPARE
    with spare.open("r+b") as file:
        file.write(HEADER + b"\xc7gjr half a head")
    again = opened(tmp_path)
    for index in range(31, 60):
        again.add(command(index), index, 1)
        again.sync()
    assert opened(tmp_path).last_index == 59
    assert entries(opened(tmp_path))[:30] == entries(journal)


def test_files_are_private(tmp_path: Path) -> None:
    written(tmp_path, 30)
    assert {os.stat(path).st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


ops = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 12)),
        st.tuples(st.just("replace"), st.integers(1, 8)),
        st.tuples(st.just("vote"), st.integers(1, 3)),
        st.tuples(st.just("compact"), st.integers(0, 20)),
        st.tuples(st.just("reset"), st.integers(1, 5)),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(ops)
def test_whatever_is_done_the_disk_holds_what_memory_holds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = opened(folder)
    journal.reset(1, 0)
    term = 1
    for what, number in steps:
        last = journal.last_index
        if what == "add":
            for index in range(last + 1, last + 1 + number):
                journal.add(command(index), index, term)
        elif what == "replace":
            index = max(journal.first_index + 1, journal.getRaftCommitIndex() + 1, last - number)
            if index <= last:
                term += 1
                journal.add(b"\x00instead", index, term)
        elif what == "vote":
            term += number
            journal.setCurrentTerm(term, f"n{number}")
        elif what == "compact":
            keep = max(journal.first_index, last - number)
            journal.setRaftCommitIndex(keep)
            journal.compact(keep)
        elif what == "reset":
            journal.reset(last + number, term)
        else:
            journal.sync()
            journal = opened(folder)
    journal.sync()
    again = opened(folder)
    first = journal.first_index
    assert again.first_index <= first
    assert again.entries_from(first, 1 << 30) == journal.entries_from(first, 1 << 30)
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (
        journal.getCurrentTerm(),
        journal.getVotedForNodeId(),
    )
    assert again.cut_bytes == 0
    assert all(path.stat().st_size == SMALL + RESERVE_BYTES for path in folder.iterdir())
