"""Root file systems as btrfs subvolumes: snapshots and clones at once, and a limit of their size by quota groups.

All methods block and run in the pool's threads. Quotas are switched on for the file system when a size is first asked for, for
they make snapshots dearer (btrfs-quota(8)).
"""

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

from agent.storage.folders import remove_tree

TIMEOUT_S = 300.0
"""A subvolume of a million files is deleted at once; the kernel frees its blocks later."""

BTRFS_MAGIC = "btrfs"
SUBVOLUME_INODE = 256
"""The root of every subvolume has it (BTRFS_FIRST_FREE_OBJECTID, linux/btrfs_tree.h)."""


class Subvolumes:
    """Folders of a pool on btrfs."""

    can_snapshot = can_limit = True

    def make(self, path: Path) -> None:
        """Make an empty subvolume."""
        _btrfs("subvolume", "create", str(path))

    def remove(self, path: Path) -> None:
        """Remove a subvolume, a folder or a file with all in it; subvolumes that a container made inside, too."""
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        if not is_subvolume(path):
            remove_tree(path)
            return
        self.release(path)
        try:
            _btrfs("subvolume", "delete", str(path))
        except OSError:  # other subvolumes are inside: an emptied one is removed like a folder (btrfs(5))
            shutil.rmtree(path)
        _clear_groups(path.parent)

    def snapshot(self, source: Path, target: Path, *, read_only: bool) -> None:
        """Make `target` what `source` is at this moment."""
        _btrfs("subvolume", "snapshot", *(["-r"] if read_only else []), str(source), str(target))

    def limit(self, path: Path, size_bytes: int) -> None:
        """Let a subvolume refer to so much at most; 0 lifts the limit, where there is one."""
        if size_bytes:
            _btrfs("quota", "enable", str(path))
            _btrfs("qgroup", "limit", str(size_bytes), str(path))
            return
        try:
            _btrfs("qgroup", "limit", "none", str(path))
        except OSError:  # quotas were never enabled
            return

    def protect(self, path: Path) -> None:
        """Make a subvolume read-only."""
        _btrfs("property", "set", "-ts", str(path), "ro", "true")

    def release(self, path: Path) -> None:
        """Make a subvolume writable: a read-only one cannot be renamed, either. Other things stay as they are."""
        if path.is_dir() and not path.is_symlink() and is_subvolume(path):
            _btrfs("property", "set", "-f", "-ts", str(path), "ro", "false")


def is_subvolume(path: Path) -> bool:
    """Whether a folder is the root of a subvolume."""
    return path.lstat().st_ino == SUBVOLUME_INODE and file_system(path) == BTRFS_MAGIC


def _clear_groups(path: Path) -> None:
    """Remove the quota groups of subvolumes that are gone, of this one and of any before it.

    Kernels before 6.12 keep them for ever, and each makes every snapshot a little dearer. One that the kernel is not done with yet is
    refused, and goes with the next. Where quotas were never enabled there are none.
    """
    with contextlib.suppress(OSError):
        _btrfs("qgroup", "clear-stale", str(path))


def file_system(path: Path) -> str:
    """Return the type of the file system that holds a path, as the kernel names it; "" when it is not known."""
    best, found = "", ""
    real = os.path.realpath(path)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        place = head.split()[4].encode().decode("unicode_escape")
        inside = real == place or real.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):
            best, found = place, tail.split()[0]
    return found


def _btrfs(*words: str) -> None:
    """Run btrfs(8). Raises OSError with what it said; ENOSPC and EDQUOT as themselves."""
    try:
        subprocess.run(
            ["btrfs", *words], check=True, capture_output=True, timeout=TIMEOUT_S, text=True, stdin=subprocess.DEVNULL
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or f"exit code {error.returncode}"
        code = next((code for code in (errno.ENOSPC, errno.EDQUOT) if os.strerror(code) in said), errno.EIO)
        raise OSError(code, f"btrfs {words[0]}: {said}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"btrfs {words[0]} took longer than {TIMEOUT_S:g} s") from error
