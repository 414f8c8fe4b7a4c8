"""Handing things from one thread to another's loop, many for one wake-up: each wake-up costs a system call and a change of threads.

Invariant: whatever is put is taken, once, in order: in the loop's thread, or, once that has ended, in that of whoever notices.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """One way from any thread into one loop's thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, take: Callable[[T], None], taken: Callable[[], None] = lambda: None
    ) -> None:
        self._loop, self._take, self._taken = loop, take, taken
        self._items: deque[T] = deque()
        self._woken = self._closed = False

    def put(self, item: T) -> None:
        """Put something; it is taken after the next `wake`."""
        self._items.append(item)

    def wake(self) -> None:
        """Have everything taken, if there is anything and nobody is on the way."""
        if self._closed:
            self._drain()
        elif self._items and not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed
                self._drain()

    def close(self) -> None:
        """Take everything, and what comes later as it comes: the loop has ended, and may have forgotten that it was woken."""
        self._closed = True  # first: what is put from here on is taken below, or by `wake`
        self._drain()

    def _drain(self) -> None:
        self._woken = False  # first: what is put from here on either is seen below or wakes again
        while self._items:
            try:
                item = self._items.popleft()
            except IndexError:  # two threads drained at the end
                break
            self._take(item)
        self._taken()
