"""Cache modes of disks: past the host's page cache where the file system allows it."""

import mmap
import os
from pathlib import Path

DIRECT, CACHED = "none", "writeback"
"""QEMU's cache modes. Both honour the guest's flushes, so neither loses what the guest was told is safe."""

_BLOCK_BYTES = 4096


def cache_mode(path: Path) -> str:
    """Return "none" when a file can be read with O_DIRECT, else "writeback" (overlays and tmpfs may lack it)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return CACHED
    try:
        with mmap.mmap(-1, _BLOCK_BYTES) as buffer:  # page-aligned, as O_DIRECT wants it (open(2))
            os.preadv(fd, [buffer], 0)
    except OSError:
        return CACHED
    finally:
        os.close(fd)
    return DIRECT
