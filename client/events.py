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
        """Yield every change after a revision (0: the present objects first); carries on at another manager by itself.

        A change may come twice when a manager dies. Raises OUT_OF_RANGE (COMPACTED): start anew with 0.
        """
        seen = from_revision

        def request() -> event_pb2.WatchRequest:
            return event_pb2.WatchRequest(prefixes=prefixes, from_revision=seen)

        changes = self._caller.stream(self._stub, "Watch", request, event_pb2.WatchResponse)
        async with aclosing(changes):
            synced = from_revision > 0
            async for change in changes:
                yield change
                synced = synced or change.synced
                if synced:  # one revision may hold several changes: after a break, ask for the last one again
                    seen = max(seen, change.revision - (0 if change.synced else 1))

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
