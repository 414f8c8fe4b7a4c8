"""The folders of a manager's state while it is made anew: the new one is complete and durable before the old one is moved aside.

Invariant: at every moment at least one of the old and the new state is there as a whole, under a name that tells which.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.errors import GugusError
from common.files import sync_folder
from manager.consensus import Member
from manager.consensus.disk import FolderDisk
from manager.consensus.offline import found_anew

RAFT = "raft"
"""The folder in a manager's state folder that holds its consensus' files (`manager.daemon`)."""

MAKING = "raft.making"
"""The new one while it is made; its remains are of no use, and are removed."""


def make_state(state_dir: Path, me: Member, pieces: Iterable[bytes]) -> None:
    """Make a folder of a single voter with a state, beside the present one. Raises what the pieces raise, and OSError."""
    making = state_dir / MAKING
    shutil.rmtree(making, ignore_errors=True)
    try:
        _write(making, me, pieces)
    except (GugusError, OSError):
        shutil.rmtree(making, ignore_errors=True)
        raise
    give_to_owner(making, state_dir)
    sync_folder(making)
    sync_folder(state_dir)


def _write(making: Path, me: Member, pieces: Iterable[bytes]) -> None:
    disk = FolderDisk(making)
    try:
        found_anew(disk, me, pieces)
    finally:
        disk.close()


def put_in_force(state_dir: Path, kept: str) -> None:
    """Move the present folder aside, if that was not done yet, and put the new one in its place. May be repeated."""
    if (state_dir / RAFT).exists() and not (state_dir / kept).exists():
        (state_dir / RAFT).rename(state_dir / kept)
        sync_folder(state_dir)
    if (state_dir / MAKING).exists():
        (state_dir / MAKING).rename(state_dir / RAFT)
        sync_folder(state_dir)


def give_to_owner(folder: Path, of: Path) -> None:
    """Give a folder and all in it to the owner of another: root makes it, and the manager's user is to use it."""
    if os.geteuid() != 0:
        return
    owner = of.stat()
    for path in _all(folder):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _all(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")
