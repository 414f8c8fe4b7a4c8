"""Snapshot files: verified before anything is built from them, and read without ever unpacking more than is allowed."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from manager.consensus import CorruptState, Member
from manager.consensus.disk import FolderDisk
from manager.consensus.snapshot import Snapshot, SnapshotFile, write_snapshot
from manager.consensus.types import MAX_PIECE_BYTES

HEAD = Snapshot(9, 2, (Member("n1", "h", 1), Member("n2", "h", 2)), 12.5)
PIECES = [b"first " * 1000, b"second", b"\x80\x04 third"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FolderDisk]:
    disk = FolderDisk(tmp_path)
    write_snapshot(disk, "snapshot", HEAD, PIECES)
    yield disk
    disk.close()


def read(disk: FolderDisk) -> tuple[Snapshot, list[bytes]]:
    reader = disk.open("snapshot")
    assert reader is not None
    with closing(reader):
        file = SnapshotFile("snapshot", reader)
        return file.snapshot, list(file.pieces())


def test_head_and_pieces_come_back(disk: FolderDisk) -> None:
    assert read(disk) == (HEAD, PIECES)


def test_any_damaged_byte_is_found(disk: FolderDisk, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(CorruptState, match=r"snapshot: .*add it again"):
            read(disk)


def test_any_cut_is_found(disk: FolderDisk, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptState):
            read(disk)


def test_a_piece_that_would_unpack_to_more_than_a_piece_is_refused(disk: FolderDisk, tmp_path: Path) -> None:
    """The checksum is right: whoever wrote the file wanted it so."""
    bomb = zstandard.ZstdCompressor().compress(bytes(MAX_PIECE_BYTES + 1))
    path = tmp_path / "snapshot"
    body = path.read_bytes()[:-36] + len(bomb).to_bytes(4, "big") + bomb + bytes(4)
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(CorruptState, match="too large"):
        read(disk)


def test_a_reader_goes_on_when_a_newer_snapshot_takes_the_name(disk: FolderDisk) -> None:
    reader = disk.open("snapshot")
    assert reader is not None
    with closing(reader):
        write_snapshot(disk, "snapshot-making", HEAD, [b"newer"])
        disk.rename("snapshot-making", "snapshot")
        assert list(SnapshotFile("snapshot", reader).pieces()) == PIECES
    assert read(disk)[1] == [b"newer"]
