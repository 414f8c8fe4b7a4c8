"""The newest changes, for watchers: a watcher is a revision, and asks for what came after it.

Invariant: the changes of one revision are kept, given and dropped together; what `after` returns has no gap and no repeat,
or it raises HistoryGone. Bounded in number and in bytes, whoever watches or does not. Local to a member: not replicated.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

HISTORY_CHANGES: Final = 10_000
"""Changes kept for watchers."""

HISTORY_BYTES: Final = 64 * 1024 * 1024
"""Bytes of keys and values kept for watchers, whichever bound is reached first."""

BATCH_CHANGES: Final = 256
BATCH_BYTES: Final = 1024 * 1024
"""What `after` returns at most, but one whole revision at least: all that a slow watcher holds."""

_SWEEP: Final = 1_000  # dropped changes that stay in the list until they are swept out together


@dataclass(frozen=True, slots=True)
class RawChange:
    """One change of one key; `value` is None when it was deleted."""

    revision: int
    key: str
    value: bytes | None


class HistoryGone(Exception):
    """Changes right after a revision are not kept any more."""

    def __init__(self, asked: int, oldest: int) -> None:
        super().__init__(f"changes after revision {asked} are gone; kept are those after {oldest}")
        self.asked = asked
        self.oldest = oldest


class History:
    """Changes in order of revision, from right after `start` on."""

    def __init__(self, max_changes: int = HISTORY_CHANGES, max_bytes: int = HISTORY_BYTES) -> None:
        self.start = 0
        self._max_changes, self._max_bytes = max_changes, max_bytes
        self._changes: list[RawChange] = []
        self._dropped = 0
        self._size = 0

    def record(self, changes: Sequence[RawChange]) -> None:
        """Add all changes of the next revision, and drop the oldest revisions beyond the bounds."""
        self._changes.extend(changes)
        self._size += sum(map(_size, changes))
        while len(self._changes) - self._dropped > self._max_changes or self._size > self._max_bytes:
            self._drop_oldest()
        if self._dropped >= _SWEEP:
            del self._changes[: self._dropped]
            self._dropped = 0

    def restart(self, revision: int) -> None:
        """Forget all: the state was replaced by one of this revision, and how it came to be is not known."""
        self._changes.clear()
        self._dropped = self._size = 0
        self.start = revision

    def after(self, revision: int) -> list[RawChange]:
        """Return the changes right after a revision, oldest first: a batch; none when there are none yet.

        A revision of the future, as a client of a member further ahead may know it, has none yet. Raises HistoryGone.
        """
        if revision < self.start:
            raise HistoryGone(revision, self.start)
        changes = self._changes
        first = end = bisect_right(changes, revision, lo=self._dropped, key=attrgetter("revision"))
        size = 0
        while end < len(changes) and end - first < BATCH_CHANGES and size < BATCH_BYTES:
            size += _size(changes[end])
            end += 1
        while first < end < len(changes) and changes[end].revision == changes[end - 1].revision:
            end += 1
        return changes[first:end]

    def _drop_oldest(self) -> None:
        oldest = self._changes[self._dropped].revision
        while self._dropped < len(self._changes) and self._changes[self._dropped].revision == oldest:
            self._size -= _size(self._changes[self._dropped])
            self._dropped += 1
        self.start = oldest


def _size(change: RawChange) -> int:
    return len(change.key) + len(change.value or b"")
