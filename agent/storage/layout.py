"""Files of a pool in a folder: where each volume lies, and the record beside it that makes it one.

A volume exists when its record and its data both exist. Data is made in a work folder and renamed into place, then the
record is written; at deletion the data is renamed away first. So a cut at any point leaves a whole volume or none. What
was in place without a record at a cut is known by a note (an intent) and removed when the pool is next made usable.
"""

import contextlib
import os
import socket
import struct
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from gugus.agent.v1 import volume_pb2

from agent.compute.processes import ProcessRecord, is_alive, record_of
from agent.storage import record as records
from agent.storage.folders import Folders
from agent.storage.record import VolumeRecord
from common.errors import precondition
from common.files import read_json, remove_durably, sync_folder, write_json

IMAGES, DISKS, FILESYSTEMS, RECORDS, WORK = "images", "disks", "filesystems", "volumes", "work"
SNAPSHOTS, COMPANIONS, UPLOADS = "snapshots", "companions", "uploads"
LEASES, HOSTS = "leases", "hosts"
FOLDERS = (IMAGES, DISKS, FILESYSTEMS, RECORDS, WORK, SNAPSHOTS, COMPANIONS, UPLOADS, LEASES, HOSTS)
MARKER = "pool.json"
FOLDER_MODE = 0o711
"""QEMU and mapped ids must pass through to files whose names they are given; nobody else may look around."""

_INTENT = ".intent"
_BLOCK_BYTES = 512
_QCOW2_SIZE_OFFSET, _QCOW2_SNAPSHOTS_OFFSET = 24, 60
"""Where a qcow2 header has the virtual size (8 bytes) and the number of snapshots (4), big-endian
(QEMU, docs/interop/qcow2.txt)."""

_SUFFIXES = {
    volume_pb2.VOLUME_FORMAT_QCOW2: ".qcow2",
    volume_pb2.VOLUME_FORMAT_RAW: ".raw",
    volume_pb2.VOLUME_FORMAT_FILESYSTEM: "",
    volume_pb2.VOLUME_FORMAT_ARCHIVE: ".archive",
}


class Layout:
    """The folder `<path>/gugus` of a pool. All methods block and raise OSError."""

    def __init__(self, path: Path, folders: Folders) -> None:
        self.root = path / "gugus"
        self._folders = folders
        self._remove = folders.remove

    def prepare(self, pool: str) -> None:
        """Make the folders, and mark them as this pool's. Raises PATH_TAKEN when they are another's."""
        for folder in (self.root, *(self.root / name for name in FOLDERS)):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(FOLDER_MODE)
        marker = self.root / MARKER
        if not marker.exists():
            write_json(marker, {"pool": pool})
        owner = read_json(marker).get("pool")
        if owner != pool:
            raise precondition(
                "PATH_TAKEN",
                f'{self.root.parent} holds the pool "{owner}", not "{pool}".',
                remedy=f"Choose another path; if that pool is gone for good, remove {marker}.",
                subject=f"pool/{pool}",
            )

    def clean(self) -> None:
        """Remove what processes of this host that are gone left in their work folders, and in place without a record."""
        host = socket.gethostname()
        for folder in (self.root / WORK).iterdir():
            owner = folder.name.rsplit(".", 2)
            if len(owner) != 3 or owner[0] != host or is_alive(ProcessRecord(int(owner[1]), int(owner[2]))):
                continue
            for intent in folder.glob(f"*{_INTENT}"):
                self._undo(intent)
            for left in folder.iterdir():
                with contextlib.suppress(OSError):
                    self._remove(left)
            with contextlib.suppress(OSError):
                folder.rmdir()

    def work_file(self) -> Path:
        """Return a fresh path for something in the making; it is on the pool's own file system."""
        own = record_of(os.getpid()) or ProcessRecord(os.getpid(), 0)
        folder = self.root / WORK / f"{socket.gethostname()}.{own.pid}.{own.start_ticks}"
        folder.mkdir(exist_ok=True)
        folder.chmod(FOLDER_MODE)
        return folder / uuid4().hex

    def file_of(self, name: str, volume_format: int, *, imported: bool) -> str:
        """Return a volume's path relative to the root."""
        folder = FILESYSTEMS if volume_format == volume_pb2.VOLUME_FORMAT_FILESYSTEM else DISKS
        return f"{IMAGES if imported else folder}/{name}{_SUFFIXES[volume_pb2.VolumeFormat.ValueType(volume_format)]}"

    def path(self, record: VolumeRecord) -> Path:
        """Return where a volume's data is."""
        return self.root / record.file

    def companion(self, name: str, snapshot: str = "") -> Path:
        """Return the folder of what belongs to a volume's machine, as it is or as a snapshot keeps it."""
        return self.root / COMPANIONS / (f"{name}@{snapshot}" if snapshot else name)

    def lease(self, name: str) -> Path:
        """Return the file that whoever writes to a volume has locked; it may not exist."""
        return self.root / LEASES / name

    def snapshot(self, name: str, snapshot: str) -> Path:
        """Return where a snapshot of a FILESYSTEM volume is."""
        return self.root / SNAPSHOTS / f"{name}@{snapshot}"

    def find(self, name: str) -> VolumeRecord | None:
        """Return a volume's record; None when it does not exist."""
        try:
            record = records.load(self._record(name))
        except FileNotFoundError:
            return None
        return record if self.path(record).exists() else None

    def all(self) -> list[VolumeRecord]:
        """Return the records of all volumes, by name."""
        names = sorted(path.stem for path in (self.root / RECORDS).glob("[!.]*.json"))
        return [record for name in names if (record := self.find(name)) is not None]

    def commit(self, made: Path, record: VolumeRecord, companion: Path | None = None) -> VolumeRecord:
        """Turn something made into a volume: data in place and durable, then its record. Returns the record as written.

        companion: folder made for its machine's files, if any.
        """
        target = self.path(record)
        for left in (target, self.companion(record.name)):
            if left.exists():  # without a record: an interrupted commit
                self._remove(left)
        if made.is_file():
            _sync(made)
        record = replace(record, created=round(time.time(), 3))
        intent = made.with_name(made.name + _INTENT)
        write_json(intent, {"file": record.file, "name": record.name, "inode": made.stat().st_ino})
        made.rename(target)
        sync_folder(target.parent)
        if companion is not None and companion.exists():
            companion.rename(self.companion(record.name))
        self.write(record)
        intent.unlink()
        return record

    def write(self, record: VolumeRecord) -> None:
        """Write the record of a volume that exists."""
        write_json(self._record(record.name), records.dump(record))

    def rename(self, record: VolumeRecord, new_name: str) -> VolumeRecord:
        """Give a volume another name. A cut leaves the old one, the new one, or (between the two) is finished by a repetition."""
        renamed = replace(record, name=new_name, file=self.file_of(new_name, record.format, imported=record.imported))
        self.write(renamed)  # not a volume yet: its data is not there
        with contextlib.suppress(FileNotFoundError):
            self.companion(record.name).rename(self.companion(new_name))
        with contextlib.suppress(FileNotFoundError):
            self.lease(record.name).rename(self.lease(new_name))
        self._folders.release(self.path(record))
        self.path(record).rename(self.path(renamed))
        if record.frozen and record.format == volume_pb2.VOLUME_FORMAT_FILESYSTEM:
            self._folders.protect(self.path(renamed))
        sync_folder(self.path(renamed).parent)
        remove_durably(self._record(record.name))
        return renamed

    def remove(self, name: str) -> list[Path]:
        """Make a volume vanish; return what is left of it to be deleted."""
        try:
            record = records.load(self._record(name))
        except FileNotFoundError:
            return []
        parts = [self.path(record), self.companion(name), self.lease(name)]
        parts += [self.snapshot(name, snapshot) for snapshot in record.snapshots]
        parts += self.companions_of_snapshots(name)
        trash = []
        for part in parts:
            with contextlib.suppress(FileNotFoundError):
                away = self.work_file()
                self._folders.release(part)
                part.rename(away)
                trash.append(away)
        remove_durably(self._record(name))
        return trash

    def companions_of_snapshots(self, name: str) -> list[Path]:
        """Return the companions that snapshots of a volume keep."""
        return list((self.root / COMPANIONS).glob(f"{name}@*"))

    def _undo(self, intent: Path) -> None:
        """Remove what a process that is gone put into place and made no volume of. Another's file of that name stays."""
        try:
            note = read_json(intent)
            target = self.root / note["file"]
            if self.find(note["name"]) is None and target.stat().st_ino == note["inode"]:
                self._remove(target)
                self._remove(self.companion(note["name"]))
        except (OSError, ValueError, KeyError):
            return

    def _record(self, name: str) -> Path:
        return self.root / RECORDS / f"{name}.json"


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def virtual_size(path: Path, record: VolumeRecord) -> int:
    """Return the size a guest sees, in bytes; for folders their limit, 0 without one."""
    if record.format == volume_pb2.VOLUME_FORMAT_FILESYSTEM:
        return record.size_bytes
    if record.format == volume_pb2.VOLUME_FORMAT_QCOW2:
        return _big_endian(path, _QCOW2_SIZE_OFFSET, ">Q")
    return path.stat().st_size


def snapshot_count(path: Path, record: VolumeRecord) -> int:
    """Return how many snapshots a volume has."""
    if record.format == volume_pb2.VOLUME_FORMAT_QCOW2:
        return _big_endian(path, _QCOW2_SNAPSHOTS_OFFSET, ">I")
    return len(record.snapshots)


def used_bytes(path: Path) -> int:
    """Return the bytes that a file, or a folder with all in it, takes up."""
    total = path.lstat().st_blocks * _BLOCK_BYTES
    if path.is_dir() and not path.is_symlink():
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                try:
                    total += os.lstat(os.path.join(folder, name)).st_blocks * _BLOCK_BYTES
                except FileNotFoundError:  # a running container removed it
                    continue
    return total


def _big_endian(path: Path, offset: int, layout: str) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        return int(struct.unpack(layout, file.read(struct.calcsize(layout)))[0])
