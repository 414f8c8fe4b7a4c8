"""A manager's state folder has one user: the manager, or a command that rewrites what it holds, never both.

Invariant: the lock is the kernel's (flock(2) of the folder itself), so nothing is left of it when its holder is killed.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from common.errors import precondition


@contextlib.contextmanager
def only_user(state_dir: Path) -> Iterator[None]:
    """Hold the folder, which is made when there is none. Raises GugusError STATE_IN_USE, OSError."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise precondition(
                "STATE_IN_USE",
                f"another process uses {state_dir}: gugus-manager runs, or is being recovered.",
                remedy="`systemctl stop gugus-manager` first, if it is to be recovered.",
                subject=str(state_dir),
            ) from None
        yield
    finally:
        os.close(folder)
