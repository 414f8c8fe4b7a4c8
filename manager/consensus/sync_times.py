"""How long syncs take: the first thing to look at when a cluster is slow.

Invariant: memory is bounded; noting one costs no sorting.
"""

from collections import deque

KEPT = 1_000


class SyncTimes:
    """Counts syncs and keeps the newest ones' durations, in seconds."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._newest: deque[float] = deque(maxlen=KEPT)

    def note(self, seconds: float) -> None:
        """Note one sync."""
        self.count += 1
        self.seconds += seconds
        self._newest.append(seconds)

    def percentile(self, fraction: float) -> float:
        """Return the duration that this fraction of the newest syncs did not exceed, 0 when there were none."""
        ordered = sorted(self._newest)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else 0.0
