"""How a pool keeps the folders that are containers' root file systems: as plain ones, or as subvolumes (subvolumes.py).

All methods block and raise OSError; they run in the pool's threads.
"""

import os
import shutil
from pathlib import Path
from typing import Protocol


class Folders(Protocol):
    """What differs between file systems."""

    can_snapshot: bool
    """Whether `snapshot` works at all."""
    can_limit: bool
    """Whether `limit` works at all."""

    def make(self, path: Path) -> None:
        """Make an empty folder."""

    def remove(self, path: Path) -> None:
        """Remove a folder with all in it, or a file, if it is there. Symbolic links are not followed."""

    def snapshot(self, source: Path, target: Path, *, read_only: bool) -> None:
        """Make `target` what `source` is at this moment, at once."""

    def limit(self, path: Path, size_bytes: int) -> None:
        """Let a folder and all in it take up so much at most; 0 lifts the limit."""

    def protect(self, path: Path) -> None:
        """Refuse writes to a folder from now on, where the file system can."""

    def release(self, path: Path) -> None:
        """Let a folder be renamed and removed again."""


class PlainFolders:
    """Folders of any file system."""

    can_snapshot = can_limit = False

    def make(self, path: Path) -> None:
        """Make an empty folder."""
        path.mkdir()

    def remove(self, path: Path) -> None:
        """Remove a folder with all in it, or a file."""
        remove_tree(path)

    def snapshot(self, source: Path, target: Path, *, read_only: bool) -> None:
        """Not possible."""
        raise OSError(os.strerror(95))

    def limit(self, path: Path, size_bytes: int) -> None:
        """Not possible."""
        raise OSError(os.strerror(95))

    def protect(self, path: Path) -> None:
        """Do nothing: the pool itself refuses what would write to a base."""

    def release(self, path: Path) -> None:
        """Do nothing."""


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all in it, if it is there. Symbolic links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
