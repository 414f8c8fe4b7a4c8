"""Files of a dir pool: where each volume lies, and the record beside it that makes it one.

A volume exists when its record and its data both exist. Data is made in a work folder and renamed into place, then the
record is written; at deletion the data is renamed away first. So a cut at any point leaves a whole volume or none.
"""

import os
import shutil
import socket
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from gugus.agent.v1 import volume_pb2

from agent.compute.processes import ProcessRecord, is_alive, record_of
from common.errors import precondition
from common.files import read_json, remove_durably, sync_folder, write_json

IMAGES, DISKS, FILESYSTEMS, RECORDS, WORK = "images", "disks", "filesystems", "volumes", "work"
MARKER = "pool.json"
FOLDER_MODE = 0o711
"""QEMU and mapped ids must pass through to files whose names they are given; nobody else may look around."""

_BLOCK_BYTES = 512
_QCOW2_SIZE_OFFSET = 24
"""Where a qcow2 header has the virtual size, 8 bytes big-endian (QEMU, docs/interop/qcow2.txt)."""

_SUFFIXES = {
    volume_pb2.VOLUME_FORMAT_QCOW2: ".qcow2",
    volume_pb2.VOLUME_FORMAT_RAW: ".raw",
    volume_pb2.VOLUME_FORMAT_FILESYSTEM: "",
    volume_pb2.VOLUME_FORMAT_ARCHIVE: ".archive",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """What a pool remembers of a volume. `size_bytes` and `privileged` are as they were asked for."""

    name: str
    format: int
    file: str
    imported: bool = False
    source: str = ""
    sha256: str = ""
    size_bytes: int = 0
    privileged: bool = False

    @property
    def backing(self) -> str:
        """Volume that this one still reads from."""
        return self.source if self.format == volume_pb2.VOLUME_FORMAT_QCOW2 and not self.imported else ""


class Layout:
    """The folder `<path>/gugus` of a dir pool. All methods block and raise OSError."""

    def __init__(self, path: Path) -> None:
        self.root = path / "gugus"

    def prepare(self, pool: str) -> None:
        """Make the folders, and mark them as this pool's. Raises PATH_TAKEN when they are another's."""
        for folder in (self.root, *(self.root / name for name in (IMAGES, DISKS, FILESYSTEMS, RECORDS, WORK))):
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
        """Remove what processes of this host that are gone left in their work folders."""
        host = socket.gethostname()
        for folder in (self.root / WORK).iterdir():
            owner = folder.name.rsplit(".", 2)
            if len(owner) == 3 and owner[0] == host and not is_alive(ProcessRecord(int(owner[1]), int(owner[2]))):
                shutil.rmtree(folder, ignore_errors=True)

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

    def find(self, name: str) -> VolumeRecord | None:
        """Return a volume's record; None when it does not exist."""
        try:
            record = VolumeRecord(**read_json(self._record(name)))
        except FileNotFoundError:
            return None
        return record if self.path(record).exists() else None

    def all(self) -> list[VolumeRecord]:
        """Return the records of all volumes, by name."""
        names = sorted(path.stem for path in (self.root / RECORDS).glob("[!.]*.json"))
        return [record for name in names if (record := self.find(name)) is not None]

    def commit(self, made: Path, record: VolumeRecord) -> None:
        """Turn something made into a volume: data in place and durable, then its record."""
        target = self.path(record)
        if target.exists():  # data without a record: an interrupted commit
            remove_tree(target)
        if made.is_file():
            fd = os.open(made, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        made.rename(target)
        sync_folder(target.parent)
        write_json(self._record(record.name), asdict(record))

    def remove(self, name: str) -> Path | None:
        """Make a volume vanish; return what is left of it to be deleted, if anything."""
        try:
            record = VolumeRecord(**read_json(self._record(name)))
        except FileNotFoundError:
            return None
        trash = self.work_file()
        try:
            self.path(record).rename(trash)
        except FileNotFoundError:
            trash = None  # type: ignore[assignment]
        remove_durably(self._record(name))
        return trash

    def _record(self, name: str) -> Path:
        return self.root / RECORDS / f"{name}.json"


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all in it, if it is there. Symbolic links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def virtual_size(path: Path, volume_format: int) -> int:
    """Return the size a guest sees, in bytes; 0 for folders."""
    if volume_format == volume_pb2.VOLUME_FORMAT_FILESYSTEM:
        return 0
    if volume_format == volume_pb2.VOLUME_FORMAT_QCOW2:
        with path.open("rb") as file:
            file.seek(_QCOW2_SIZE_OFFSET)
            return int(struct.unpack(">Q", file.read(8))[0])
    return path.stat().st_size


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
