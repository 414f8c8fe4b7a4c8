"""Changes of guests, handed to everyone who watches: each watcher has the set of names it has not looked at yet.

Bounded by nature: a name that changes twice before it is looked at is in the set once.
"""

import asyncio


class Watcher:
    """One watcher's unread names."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._event = asyncio.Event()

    def add(self, name: str) -> None:
        """Put a name among the unread ones."""
        self._names.add(name)
        self._event.set()

    async def next(self) -> frozenset[str]:
        """Wait for a change; return all unread names."""
        await self._event.wait()
        self._event.clear()
        names, self._names = frozenset(self._names), set()
        return names


class Changes:
    """Tells every watcher of each change. Used in the event loop only."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    def watch(self) -> Watcher:
        """Begin to watch. `unwatch` must follow."""
        watcher = Watcher()
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Stop watching."""
        self._watchers.discard(watcher)

    def tell(self, name: str) -> None:
        """A guest changed."""
        for watcher in self._watchers:
            watcher.add(name)
