"""The disk as consensus sees it: a folder of a few files that are appended to or replaced whole.

Invariant: what was synced or replaced survives a power cut; what was only appended may be cut anywhere. The simulator
has another implementation of `Disk` that forgets on purpose.
"""

import os
from pathlib import Path
from typing import Protocol

from common.files import sync_folder, write_atomic

_PRIVATE = 0o600  # the state may hold secrets of guests


class Disk(Protocol):
    """The few operations that journal, vote and snapshot need. All raise OSError."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None when there is none."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file as a whole, durably."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file; durable only after `sync`."""
        ...

    def sync(self, name: str) -> None:
        """Make everything appended durable."""
        ...

    def close(self) -> None:
        """Close open files."""
        ...


class FolderDisk:
    """A real folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._open: dict[str, int] = {}

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None when there is none."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file as a whole, durably; a descriptor of the old one is closed."""
        self._close(name)
        write_atomic(self._folder / name, data, mode=_PRIVATE)

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file; a short write (full disk) raises OSError."""
        if name not in self._open:
            self._open[name] = os.open(self._folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _PRIVATE)
            sync_folder(self._folder)
        view = memoryview(data)
        while view:
            view = view[os.write(self._open[name], view) :]

    def sync(self, name: str) -> None:
        """Make appended data and the file's size durable (fdatasync)."""
        if name in self._open:
            os.fdatasync(self._open[name])

    def close(self) -> None:
        """Close open files."""
        for name in list(self._open):
            self._close(name)

    def _close(self, name: str) -> None:
        if (fd := self._open.pop(name, None)) is not None:
            os.close(fd)
