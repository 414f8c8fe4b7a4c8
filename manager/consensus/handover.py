"""Handing things from one thread to another's loop, many for one wake-up: each wake-up costs a system call and a change of threads.

Invariant: whatever is put is taken, once, in order, in the loop's thread; or, when the loop has ended, by `drain` of whoever ends it.
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
        self._woken = False

    def put(self, item: T) -> None:
        """Put something; it is taken after the next `wake`."""
        self._items.append(item)

    def wake(self) -> None:
        """Have everything taken, if there is anything and nobody is on the way. Raises RuntimeError when the loop is closed."""
        if self._items and not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Take everything; in the loop's thread, or when that has ended."""
        self._woken = False  # first: what is put from here on either is seen below or wakes again
        while self._items:
            self._take(self._items.popleft())
        self._taken()
