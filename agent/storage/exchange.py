"""Swapping two paths in one step of the kernel: there is no moment at which neither is in place."""

import ctypes
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""renameat2(2)."""

_libc = ctypes.CDLL(None, use_errno=True)


def put(made: Path, target: Path) -> None:
    """Put `made` where `target` is; what was there is at `made` afterwards. Blocks. Raises OSError."""
    try:
        target.lstat()
    except FileNotFoundError:
        made.rename(target)
        return
    done = _libc.renameat2(_AT_FDCWD, os.fsencode(made), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))
