"""Folders that belong to a process while it lives, so that the next one finds what a killed one left in them.

Invariant: who made such a folder holds a lock on it, which the kernel lets go when that process ends, however it ends: a process id
that was given away again is never taken for the owner. Nobody removes a folder without holding its lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.machine import unmount_under


@contextlib.contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent``, removed at the end; folders of this prefix that killed processes left are removed first."""
    sweep(parent, prefix)
    with owned(parent, prefix) as folder:
        try:
            yield folder
        finally:
            remove(folder)


@contextlib.contextmanager
def owned(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent`` that is this process's until the end of the context, which leaves it where it is."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with _opened(folder) as descriptor:
            # Somebody may have swept it away before the lock was taken.
            if descriptor is not None and _lock(descriptor, wait=True) and _is(folder, descriptor):
                yield folder
                return


def sweep(parent: Path, prefix: str, clear: Callable[[Path], object] | None = None) -> None:
    """Have ``clear`` (or ``remove``) take each folder of this prefix away whose owner is dead. Other users' are left alone."""
    for folder in parent.glob(f"{prefix}*"):
        with _opened(folder) as descriptor:
            if descriptor is not None and _lock(descriptor, wait=False) and _is(folder, descriptor):
                (clear or remove)(folder)


def has_owner(folder: Path) -> bool:
    """Whether the process that made the folder lives."""
    with _opened(folder) as descriptor:
        return descriptor is not None and not _lock(descriptor, wait=False)


def remove(folder: Path) -> None:
    """Remove a folder, and what is mounted in it."""
    unmount_under(folder)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """The folder, opened; None when it is gone, no folder, or another user's."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        yield descriptor if os.fstat(descriptor).st_uid == os.geteuid() else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is(folder: Path, descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    return False
