"""The event service: what happened, and every change of the state as it happens."""

from collections.abc import AsyncIterator, Sequence

from gugus.cluster.v1 import event_pb2, event_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import Token
from gugus.cluster.v1.event_pb2 import Event, WatchResponse
from gugus.cluster.v1.node_pb2 import FenceSecrets

from common.errors import invalid
from manager.controllers.context import Context
from manager.store import Change
from manager.store.kinds import kind_of, kinds

DEFAULT_LIMIT = 100

HIDDEN = frozenset({kind_of(Token), kind_of(FenceSecrets)})
"""Kinds that are not watched by clients: a token's object holds the hash of its secret, the other the passwords of fence devices."""


class EventService(event_pb2_grpc.EventServiceServicer):
    """Serves `gugus events` and every program that mirrors the state."""

    def __init__(self, context: Context) -> None:
        self._store = context.store

    async def ListEvents(self, request: event_pb2.ListEventsRequest, context: object) -> event_pb2.ListEventsResponse:
        """Return past events, oldest first."""
        events = [e for e in await self._store.list(Event) if request.about in ("", e.about)]
        events.sort(key=lambda e: (e.meta.name[:13], e.meta.revision))
        return event_pb2.ListEventsResponse(events=events[-(request.limit or DEFAULT_LIMIT) :])

    async def Watch(self, request: event_pb2.WatchRequest, context: object) -> AsyncIterator[WatchResponse]:
        """Send every change from a revision on; with 0 the present objects first."""
        prefixes = _visible(request.prefixes)
        revision = request.from_revision
        if not revision:
            revision, present = self._store.present(prefixes)
            for change in present:
                yield _response(change, 0)
            yield WatchResponse(revision=revision, synced=True, resume=revision)
        async for change in self._store.watch(prefixes, from_revision=revision):
            yield _response(change, change.resume)


def _visible(prefixes: Sequence[str]) -> list[str]:
    """Return prefixes of exactly those keys that a client asks for (none: all) and may see.

    Each names a kind of this release in full: objects of a newer one, which may be stored while releases work side by side, cannot be
    read here, and a change that is not shown must not count as the last one of its revision (`Change.final`). Raises INVALID_ARGUMENT.
    """
    visible = [kind for kind in kinds() if kind not in HIDDEN]
    found: list[str] = []
    for index, prefix in enumerate(prefixes or [""]):
        kind, slash, _ = prefix.partition("/")
        matching = (
            [prefix] if slash and kind in visible else [f"{k}/" for k in visible if not slash and k.startswith(kind)]
        )
        if not matching:
            raise invalid(
                f"prefixes[{index}]",
                f'"{prefix}" begins no key that clients of this manager may see.',
                remedy=f"Keys are kind/name; the kinds are {', '.join(sorted(visible))}.",
            )
        found += matching
    return found


def _response(change: Change, resume: int) -> WatchResponse:
    obj = change.obj
    return WatchResponse(
        revision=change.revision,
        key=change.key,
        value=b"" if obj is None else obj.SerializeToString(),
        deleted=change.deleted,
        resume=resume,
    )
