"""A watcher gets each change once, in order, though the streams that it is carried by break anywhere."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, cast

import grpc
import pytest
from gugus.cluster.v1.event_pb2 import WatchRequest, WatchResponse

from client.caller import Caller
from client.config import ClientConfig
from client.events import Events

Stream = Sequence[WatchResponse]


class Streams:
    """A caller whose streams are given, each of which breaks at its end."""

    def __init__(self, *streams: Stream) -> None:
        self.streams = streams
        self.asked: list[int] = []

    async def stream(
        self, stub: object, method: str, request: Callable[[], WatchRequest], answer: object
    ) -> AsyncGenerator[WatchResponse, None]:
        for stream in self.streams:
            self.asked.append(request().from_revision)
            for message in stream:
                yield message


def change(revision: int, key: str, resume: int) -> WatchResponse:
    return WatchResponse(revision=revision, key=key, resume=resume)


def synced(revision: int) -> WatchResponse:
    return WatchResponse(revision=revision, synced=True, resume=revision)


async def watched(streams: Streams, from_revision: int) -> list[tuple[int, str]]:
    events = Events(cast(Caller, cast(Any, streams)))
    return [(one.revision, one.key) async for one in events.watch(from_revision=from_revision)]


async def test_a_transaction_that_was_broken_off_is_carried_on_without_a_gap_or_a_repeat() -> None:
    streams = Streams(
        [change(8, "a/1", 8), change(9, "a/1", 8), change(9, "a/2", 8)],
        [change(9, "a/1", 8)],
        [change(9, "a/1", 8), change(9, "a/2", 8), change(9, "a/3", 9)],
        [change(10, "a/1", 10)],
    )
    assert await watched(streams, 7) == [(8, "a/1"), (9, "a/1"), (9, "a/2"), (9, "a/3"), (10, "a/1")]
    assert streams.asked == [7, 8, 8, 9]


async def test_present_objects_that_a_dead_manager_told_of_are_forgotten() -> None:
    """Else one that was deleted in between would stay with the watcher for ever."""
    streams = Streams(
        [change(3, "a/1", 0), change(9, "a/2", 0)],
        [change(9, "a/2", 0), synced(12), change(13, "a/3", 13)],
        [change(14, "a/3", 14)],
    )
    assert await watched(streams, 0) == [(9, "a/2"), (12, ""), (13, "a/3"), (14, "a/3")]
    assert streams.asked == [0, 0, 13]


async def test_managers_that_do_not_say_where_to_resume_are_asked_for_their_last_revision_again() -> None:
    streams = Streams(
        [
            WatchResponse(revision=3, key="a/1"),
            WatchResponse(revision=5, synced=True),
            WatchResponse(revision=6, key="a/1"),
        ],
        [
            WatchResponse(revision=6, key="a/1"),
            WatchResponse(revision=6, key="a/2"),
            WatchResponse(revision=7, key="a/1"),
        ],
    )
    assert await watched(streams, 0) == [(3, "a/1"), (5, ""), (6, "a/1"), (6, "a/2"), (7, "a/1")]
    assert streams.asked == [0, 5]


@pytest.mark.parametrize("revision", [1, 0])
async def test_a_state_that_is_as_good_as_empty_is_followed(revision: int) -> None:
    streams = Streams([synced(revision), change(2, "a/1", 2)], [change(3, "a/1", 3)])
    assert await watched(streams, 0) == [(revision, ""), (2, "a/1"), (3, "a/1")]


class _Breaking:
    """A stream that is quiet for longer than anyone's patience, then breaks; the next one goes on."""

    def __init__(self, number: int) -> None:
        self.number = number

    def cancel(self) -> None:
        """Nothing runs."""

    async def __aiter__(self) -> AsyncGenerator[WatchResponse, None]:
        if self.number == 1:
            yield WatchResponse(revision=1, synced=True, resume=1)
            await asyncio.sleep(0.5)
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone")
        yield WatchResponse(revision=2, resume=2)


async def test_a_stream_that_was_quiet_for_long_is_carried_on_when_it_breaks(settings: ClientConfig) -> None:
    opened = 0

    class Stub:
        def __init__(self, channel: object) -> None: ...

        def Watch(self, request: WatchRequest) -> _Breaking:
            nonlocal opened
            opened += 1
            return _Breaking(opened)

    stream = Caller(settings).stream(Stub, "Watch", WatchRequest, WatchResponse, patience_s=0.3)
    assert [(await anext(stream)).revision, (await anext(stream)).revision] == [1, 2]
    await stream.aclose()
