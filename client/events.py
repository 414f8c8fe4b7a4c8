"""Events: what happened in the cluster, and what happens."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import grpc
from gugus.cluster.v1 import event_pb2, event_pb2_grpc

from client.caller import Caller
from common.errors import GugusError

PREFIX = "event/"


class Events:
    """Past events, and every change of the state."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = event_pb2_grpc.EventServiceStub

    async def list(self, *, about: str = "", limit: int = 0) -> Sequence[event_pb2.Event]:
        """Return the newest events, oldest first: at most `limit` (0: 100), about one "kind/name" or all."""
        request = event_pb2.ListEventsRequest(about=about, limit=limit)
        return (await self._caller.call(self._stub, "ListEvents", request, event_pb2.ListEventsResponse)).events

    async def watch(
        self, prefixes: Sequence[str] = (), *, from_revision: int = 0
    ) -> AsyncGenerator[event_pb2.WatchResponse, None]:
        """Yield every change after a revision (0: the present objects first), each once, whatever managers die meanwhile.

        The present objects come when all of them are here: what a manager told of them before it died may be wrong by then. To go on
        after a change in another call, give its `resume` (gugus.cluster.v1.WatchResponse).
        Raises OUT_OF_RANGE (COMPACTED): start anew with 0. Raises INVALID_ARGUMENT for a prefix of no kind of objects.
        """
        position = _Position(from_revision)
        present: list[event_pb2.WatchResponse] = []
        listing = False

        def request() -> event_pb2.WatchRequest:
            nonlocal listing
            listing = not position.seen
            present.clear()
            return event_pb2.WatchRequest(prefixes=prefixes, from_revision=position.seen)

        changes = self._caller.stream(self._stub, "Watch", request, event_pb2.WatchResponse)
        async with aclosing(changes):
            async for change in changes:
                if listing and not change.synced:
                    present.append(change)
                    continue
                for one in present:
                    yield one
                present.clear()
                listing = False
                if position.takes(change):
                    yield change

    async def follow(self, *, about: str = "", limit: int = 0) -> AsyncGenerator[event_pb2.Event, None]:
        """Yield past events like `list`, then each new one as it happens, without an end. Each comes once."""
        after, known = 0, set[str]()
        while True:
            for event in await self.list(about=about, limit=limit):
                if event.meta.revision > after:
                    after = event.meta.revision
                    yield event
            try:
                async with aclosing(self.watch([PREFIX], from_revision=after)) as changes:
                    async for change in changes:
                        if change.deleted or not change.key:
                            continue
                        event = event_pb2.Event.FromString(change.value)
                        if event.meta.name in known or (about and event.about != about):
                            continue
                        known.add(event.meta.name)
                        after = max(after, change.revision)
                        yield event
            except GugusError as error:
                if error.code is not grpc.StatusCode.OUT_OF_RANGE:
                    raise


class _Position:
    """How far a watcher is. `seen`: the revision after which it has to go on; a part of the next one may have come already."""

    def __init__(self, seen: int) -> None:
        self.seen = seen
        self._revision = 0
        self._keys = set[str]()

    def takes(self, change: event_pb2.WatchResponse) -> bool:
        """Move on to a change, and return whether it did not come before."""
        if change.revision == self._revision and change.key in self._keys:
            return False
        if change.revision != self._revision:
            self._revision = change.revision
            self._keys.clear()
        self._keys.add(change.key)
        # Managers of releases before `resume` leave it at 0: then each revision is asked for once more.
        self.seen = max(self.seen, change.resume or change.revision - (0 if change.synced else 1))
        return True
