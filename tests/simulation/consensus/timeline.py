"""Virtual time: a queue of events, and clocks of hosts that run fast or slow.

Invariant: the same events in the same order give the same run; nothing here reads a real clock.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

Action = Callable[[], None]

MAX_EVENTS = 150_000
"""Events of one run; a healthy one has some five thousand."""


class Violation(AssertionError):
    """A promise of consensus or of the store was broken."""


class Timeline:
    """Events in order of time, in seconds; those of one time in the order in which they were made."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self.told: Callable[[str], None] | None = None
        """Takes a line about each step, when somebody wants to know."""
        self._made = 0
        self._queue: list[tuple[float, int, Action]] = []

    def at(self, when: float, action: Action) -> None:
        """Do something at a time, or now if that is past."""
        self._made += 1
        heapq.heappush(self._queue, (max(when, self.now), self._made, action))

    def after(self, delay: float, action: Action) -> None:
        """Do something after a while."""
        self.at(self.now + delay, action)

    def tell(self, *words: object) -> None:
        """Tell of a step."""
        if self.told is not None:
            self.told(f"{self.now:9.4f} " + " ".join(map(str, words)))

    def run(self, seconds: float) -> None:
        """Let time pass. Raises Violation when events beget events without end."""
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            self.events += 1
            if self.events > MAX_EVENTS:
                raise Violation(f"{self.events} events by {self.now:.1f} s: members send without end")
            action()
        self.now = until


@dataclass(frozen=True, slots=True)
class HostClock:
    """A host's own clock, as CLOCK_MONOTONIC: it starts anywhere and runs at a rate near 1."""

    offset: float
    rate: float

    def own(self, real: float) -> float:
        """Return what the clock shows at a real time."""
        return self.offset + real * self.rate

    def real(self, own: float) -> float:
        """Return the real time at which the clock shows so much."""
        return (own - self.offset) / self.rate
