"""Log lines that nobody waits for: a thread of its own writes them, however long standard error hangs.

What must go on whatever happens (the fencing thread, the watchdog) logs through this: journald may hang on the very disk
that makes a lease end, and then whoever writes to it does, too. Invariant: saying something never blocks; when too much
waits to be written, further lines are dropped.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from common.logs import get_logger

MOST_LINES = 1000
"""Lines that may wait; a lapse of the lease makes about five."""


class SideLog:
    """A logger of one part of the process. Methods may be called from any thread, under any lock."""

    def __init__(self, part: str) -> None:
        self._log = get_logger(part)
        self._waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    def info(self, event: str, **fields: object) -> None:
        """Log what is as it should be."""
        self._put(partial(self._log.info, event, **fields))

    def warning(self, event: str, **fields: object) -> None:
        """Log what somebody may want to look at."""
        self._put(partial(self._log.warning, event, **fields))

    def error(self, event: str, **fields: object) -> None:
        """Log what somebody has to look at."""
        self._put(partial(self._log.error, event, **fields))

    def drain(self, timeout_s: float) -> None:
        """Wait until what was said before is written, at most so long."""
        written = threading.Event()
        self._put(written.set)
        written.wait(timeout_s)

    def _put(self, line: Callable[[], object]) -> None:
        if self._waiting.qsize() < MOST_LINES:
            self._waiting.put(line)
        with self._lock:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="sidelog", daemon=True)
                self._writer.start()

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            with suppress(Exception):  # nobody is left to tell
                line()
