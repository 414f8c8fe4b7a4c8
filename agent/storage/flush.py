"""Flushing: what guests that have ended wrote is with the file system's server before another host may run them.

SIGKILL ends a process, not its writes. The kernel keeps dirty pages of a network file system that it cannot reach and
writes them when the network heals, over what the next copy of the guest has written since.
"""

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.01

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(eq=False, slots=True)
class _Sync:
    """One call of syncfs(2) in its thread; it covers the writes of guests that had ended before it began."""

    guests: frozenset[str]
    ended: bool = False
    problem: str = ""


class Flusher:
    """Syncs file systems. One that hangs is waited for again and again, but begun once. Used from any thread's loop."""

    def __init__(self) -> None:
        self._syncs: dict[Path, _Sync] = {}

    async def flush(self, folders: Mapping[Path, frozenset[str]], timeout_s: float) -> dict[str, str]:
        """Sync the file systems of folders, each with the guests that wrote there and have ended.

        Returns the guests whose writes are not known to be through after `timeout_s`, and why.
        """
        syncs = {folder: self._begun(folder, guests) for folder, guests in folders.items()}
        end = time.monotonic() + timeout_s
        while not all(sync.ended for sync in syncs.values()) and time.monotonic() < end:  # noqa: ASYNC110 (threads)
            await asyncio.sleep(POLL_S)
        left: dict[str, str] = {}
        for folder, sync in syncs.items():
            if sync.ended:
                self._syncs.pop(folder, None)
            if not sync.ended or sync.problem:
                why = f"what it wrote is not known to be in {folder} yet: {sync.problem or 'it does not answer'}"
                left |= dict.fromkeys(folders[folder], why)
        return left

    def _begun(self, folder: Path, guests: frozenset[str]) -> _Sync:
        """Return the sync under way when it covers all the guests, else a new one."""
        sync = self._syncs.get(folder)
        if sync is None or not guests <= sync.guests:
            sync = self._syncs[folder] = _Sync(guests)
            threading.Thread(target=_run, args=(folder, sync), name=f"flush-{folder}", daemon=True).start()
        return sync


def _run(folder: Path, sync: _Sync) -> None:
    try:
        syncfs(folder)
    except FileNotFoundError:
        pass  # not mounted any more: unmounting has written everything
    except OSError as error:
        sync.problem = error.strerror or str(error)
    sync.ended = True


def syncfs(folder: Path) -> None:
    """Write back the file system that holds a folder (syncfs(2)). Blocks, for ever if it hangs. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(handle) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(handle)
