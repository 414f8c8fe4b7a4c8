"""Since when each node is seen here in a state in which nobody renews its lease; remembered for the life of the process.

A manager that takes over need not count from its takeover for a node that it had seen off before
(`manager.ha.node_machine`, off_seen_ns). What is told may be later than it was, never earlier.
"""

import asyncio
import contextlib
from collections.abc import Callable

from gugus.cluster.v1.node_pb2 import NODE_STATE_JOINING, NODE_STATE_ONLINE, Node

from manager.store import Change, Compacted, Store

_RENEWED = frozenset({NODE_STATE_JOINING, NODE_STATE_ONLINE})


class OffNodes:
    """Follows the state. `now_ns`: the clock of the leases."""

    def __init__(self, store: Store, now_ns: Callable[[], int]) -> None:
        self._store, self._now_ns = store, now_ns
        self._since_ns: dict[str, int] = {}
        self._seen = 0
        self._more = asyncio.Event()

    def since_ns(self, node: str) -> int | None:
        """Return when the node was first seen off since it was last ONLINE; None while it is not, or not yet seen so."""
        return self._since_ns.get(node)

    async def caught_up(self, revision: int) -> None:
        """Return once every change up to a revision was taken in."""
        while self._seen < revision:
            self._more.clear()
            await self._more.wait()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            revision, present = self._store.present()
            self._since_ns.clear()  # whatever is off now may have been ONLINE in what was missed
            for change in present:
                self._take(change)
            self._reach(revision)
            with contextlib.suppress(Compacted):
                async for change in self._store.watch(from_revision=revision):
                    self._take(change)
                    self._reach(change.resume)

    def _take(self, change: Change) -> None:
        if change.kind != "node":
            return
        node: Node | None = change.obj
        if node is None or node.status.state in _RENEWED:
            self._since_ns.pop(change.name, None)
        else:
            self._since_ns.setdefault(change.name, self._now_ns())

    def _reach(self, revision: int) -> None:
        self._seen = revision
        self._more.set()
