"""File work of one pool in threads of its own: a file system that hangs costs this pool its answers, and nothing else.

A network file system whose server is gone lets calls wait for ever. They are given up in time, and their threads are
replaced, up to a bound; all the rest of the agent, the heartbeat first of all, goes on.
"""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from common.errors import GugusError
from common.executors import BoundedPool

LOOK_THREADS, WORK_THREADS = 2, 4

LOOK_TIMEOUT_S = 5.0
"""How long a file system may take to answer a question: what is there, how much room is left."""

WORK_TIMEOUT_S = 600.0
"""For what takes long on a healthy file system, too: removing a container's million files, syncing a disk."""

_GIVEN_UP = frozenset({"CALL_STUCK", "POOL_BUSY"})
"""Reasons for which a call is given up (common.executors)."""

T = TypeVar("T")


class FileWork:
    """Calls for the files of a pool. Looks have threads apart, so that long work never makes a pool seem dead."""

    def __init__(self, pool: str, path: Path) -> None:
        self._path = path
        self._looks = BoundedPool(f"look-{pool}", LOOK_THREADS, LOOK_TIMEOUT_S)
        self._works = BoundedPool(f"work-{pool}", WORK_THREADS, WORK_TIMEOUT_S)
        weakref.finalize(self, _close, self._looks, self._works)  # a pool that was forgotten keeps no threads

    async def look(self, call: Callable[..., T], *args: Any) -> T:
        """Make a short call. Raises what it raises, and GugusError CALL_STUCK or POOL_BUSY in the pool's words."""
        return await self._run(self._looks, LOOK_TIMEOUT_S, call, *args)

    async def work(self, call: Callable[..., T], *args: Any, timeout_s: float = WORK_TIMEOUT_S) -> T:
        """Make a call that may take long. One that is given up may still end and take effect. Raises as `look`."""
        return await self._run(self._works, timeout_s, call, *args)

    async def _run(self, pool: BoundedPool, timeout_s: float, call: Callable[..., T], *args: Any) -> T:
        try:
            return await pool.run(call, *args, timeout_s=timeout_s)
        except GugusError as error:
            if error.reason not in _GIVEN_UP:
                raise
            what = f"The file system of {self._path} does not answer."
            raise GugusError(error.code, error.reason, what, remedy="Check its mount and its server.") from error


def _close(*pools: BoundedPool) -> None:
    for pool in pools:
        pool.close()
