"""Virtual time: a queue of events, and clocks that run fast or slow.

Invariant: the same seed gives the same run, event for event.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

MS = 1_000_000
S = 1_000 * MS


class Queue:
    """Events in order of real time, in nanoseconds; those of the same time in the order in which they were made."""

    def __init__(self) -> None:
        self.now = 0
        self._made = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []

    def at(self, when: int, what: Callable[[], None]) -> None:
        """Do something at a time; at once if that is past."""
        self._made += 1
        heapq.heappush(self._events, (max(when, self.now), self._made, what))

    def after(self, delay: int, what: Callable[[], None]) -> None:
        """Do something after a time."""
        self.at(self.now + delay, what)

    def run(self, until: int) -> None:
        """Do what is due until a time, which it is then."""
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until


@dataclass(frozen=True, slots=True)
class DriftingClock:
    """A host's own clock: only differences of the same clock mean anything."""

    queue: Queue
    offset: int
    ppm: int

    def now(self) -> int:
        """Return what it shows."""
        return self.offset + self.queue.now + self.queue.now * self.ppm // 1_000_000

    def real(self, own: int) -> int:
        """Return the first real moment at which this clock shows `own` or more."""
        real = (own - self.offset) * 1_000_000 // (1_000_000 + self.ppm)
        while self.offset + real + real * self.ppm // 1_000_000 < own:
            real += 1
        return real
