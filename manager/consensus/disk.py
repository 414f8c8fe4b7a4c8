"""The disk as consensus sees it: a folder of files that are allocated, written, synced, renamed and removed.

Invariant: what was synced, allocated, renamed, removed or cut survives a power cut; a write that was not synced may be lost, torn or
kept, and later ones kept without it. Inside an allocated file a write never needs more room. The simulator has another
implementation of `Disk` that forgets on purpose.
"""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from common.files import remove_durably, sync_folder

_PRIVATE = 0o600  # the state may hold secrets of guests
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_full(error: OSError) -> bool:
    """Return whether an error says that there is no room, which passes, rather than that the disk failed, which does not."""
    return error.errno in _NO_ROOM


class Reader(Protocol):
    """An open file. It goes on showing the same content when its name is renamed over or removed meanwhile."""

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from an offset on, fewer at the end of the file. Raises OSError."""
        ...

    def close(self) -> None:
        """Close it; safe to repeat."""
        ...


class Disk(Protocol):
    """The few operations that journal and snapshots need. All raise OSError."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        ...

    def open(self, name: str) -> Reader | None:
        """Open a file for reading, None when there is none."""
        ...

    def allocate(self, name: str, size: int) -> None:
        """Make a file of zeros whose room is reserved, durably; with no room nothing is left of it."""
        ...

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write into a file, which is made when there is none; durable only after `sync`."""
        ...

    def sync(self, name: str) -> None:
        """Make everything written to a file durable."""
        ...

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to a size, durably."""
        ...

    def rename(self, name: str, to: str) -> None:
        """Give a file another name, durably, in place of a file that has it."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, durably; one that is not there is no error."""
        ...

    def room(self) -> tuple[int, int]:
        """Return free and total bytes of the file system."""
        ...

    def close(self) -> None:
        """Close open files."""
        ...


class FolderReader:
    """A file of a real folder."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self._size = os.fstat(fd).st_size

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from an offset on, fewer at the end of the file."""
        if self._fd is None:
            raise OSError(errno.EBADF, "the file was closed")
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        """Close it; safe to repeat."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class FolderDisk:
    """A real folder. Two threads may use it at once for files of different names."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._open: dict[str, int] = {}
        self._fresh: set[str] = set()

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(entry.name for entry in os.scandir(self._folder) if entry.is_file(follow_symlinks=False))

    def open(self, name: str) -> FolderReader | None:
        """Open a file for reading, None when there is none."""
        try:
            return FolderReader(os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return None

    def allocate(self, name: str, size: int) -> None:
        """Make a file of zeros whose blocks are reserved (posix_fallocate(3)), durably."""
        self.remove(name)
        fd = self._descriptor(name)
        try:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
            sync_folder(self._folder)
        except OSError:
            with suppress(OSError):
                self.remove(name)
            raise
        self._fresh.discard(name)

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write into a file, which is made when there is none."""
        fd, view = self._descriptor(name), memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written

    def sync(self, name: str) -> None:
        """Make everything written to a file durable (fdatasync), and its name when it is new."""
        os.fdatasync(self._descriptor(name))
        if name in self._fresh:
            sync_folder(self._folder)
            self._fresh.discard(name)

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to a size, durably."""
        fd = self._descriptor(name)
        os.ftruncate(fd, size)
        os.fsync(fd)

    def rename(self, name: str, to: str) -> None:
        """Give a file another name, durably, in place of a file that has it."""
        self._close(to)
        self._close(name)
        os.replace(self._folder / name, self._folder / to)
        sync_folder(self._folder)

    def remove(self, name: str) -> None:
        """Remove a file, durably; one that is not there is no error."""
        self._close(name)
        remove_durably(self._folder / name)

    def room(self) -> tuple[int, int]:
        """Return free and total bytes of the file system."""
        usage = shutil.disk_usage(self._folder)
        return usage.free, usage.total

    def close(self) -> None:
        """Close open files."""
        for name in list(self._open):
            self._close(name)

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            path = self._folder / name
            if not path.exists():
                self._fresh.add(name)
            self._open[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        return self._open[name]

    def _close(self, name: str) -> None:
        self._fresh.discard(name)
        if (fd := self._open.pop(name, None)) is not None:
            os.close(fd)
