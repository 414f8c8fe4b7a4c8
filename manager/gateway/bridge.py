"""One console between a WebSocket and an agent: bytes both ways, each at the other side's pace, until either ends.

Pure of any WebSocket library: what is needed of a socket is `Socket`. The framing is in proto/gugus/cluster/v1/access.proto.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

from gugus.agent.v1.access_pb2 import (
    CONSOLE_KIND_SERIAL,
    CONSOLE_KIND_TERMINAL,
    ConsoleKind,
    ConsoleStart,
    OpenConsoleRequest,
    OpenConsoleResponse,
    TerminalSize,
)

from common.errors import GugusError, as_gugus_error, not_found
from common.logs import get_logger
from manager.gateway.passage import AgentStream, Passage
from manager.gateway.tickets import Grant

MAX_MESSAGE_BYTES = 256 * 1024
"""Largest message of a client; terminals and noVNC send a few kilobytes at most."""

IDLE_S = 30 * 60.0
"""A console that was silent both ways for so long is closed: somebody left it open. A screen that is looked at is never silent."""

ENDED, UNREADABLE, FAULT = 1000, 1008, 1011
TAKEN_OVER, IDLE, HOST_LOST, NOT_OPENED = 4000, 4001, 4002, 4004
"""Codes that a console closes with (RFC 6455, section 7.4; from 4000 on they are ours, see access.proto)."""

WORDS = {
    CONSOLE_KIND_SERIAL: "serial console",
    CONSOLE_KIND_TERMINAL: "terminal",
}
_LOST = frozenset({"RPC_UNAVAILABLE", "RPC_CANCELLED", "RPC_DEADLINE_EXCEEDED", "NODE_NOT_ONLINE", "NOT_ACTING"})
_TERMINALS = frozenset(WORDS)
_log = get_logger("gateway")


class Unreadable(Exception):
    """A client's message is none of the framing; the text says why."""


class Socket(Protocol):
    """What is used of a WebSocket."""

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        """Yield messages until the client closes. Raises nothing of its library's."""

    async def send(self, data: bytes) -> None:
        """Send a binary message; returns when the client's side has room. Raises ConnectionError once it is closed."""

    async def close(self, code: int, reason: str) -> None:
        """Close it."""

    async def gone(self) -> None:
        """Return once it is closed, also while nobody reads from it."""


async def serve(socket: Socket, grant: Grant, passage: Passage) -> None:
    """Show a guest's console to the holder of a grant, and close the socket with the code that says why it ended."""
    try:
        stream = await _open(grant, passage)
    except GugusError as error:
        _log.info("console not opened", guest=grant.guest, user=grant.user, error=str(error))
        await socket.close(NOT_OPENED, error.message)
        return
    code, reason = FAULT, "internal error"
    try:
        code, reason = await _carry(socket, stream, terminal=grant.kind in _TERMINALS)
    finally:
        stream.cancel()
        _log.info("console ended", guest=grant.guest, user=grant.user, code=code, reason=reason)
    await socket.close(code, reason)


async def _open(grant: Grant, passage: Passage) -> AgentStream[OpenConsoleRequest, OpenConsoleResponse]:
    """Return a stream to the console, which is open. Raises what the agent says, and GUEST_NOT_FOUND for another guest by now."""
    way = await passage.into(grant.guest)
    if way.guest.meta.uid != grant.uid:
        raise not_found("guest", grant.guest)
    kind = ConsoleKind.Name(grant.kind).removeprefix("CONSOLE_KIND_").lower()
    what = WORDS.get(grant.kind, f"{kind.upper()} screen")
    await passage.note(grant.guest, "GUEST_CONSOLE_OPENED", f"its {what} was opened by {grant.user}")
    stream = AgentStream[OpenConsoleRequest, OpenConsoleResponse](way.node, way.stub.OpenConsole())
    try:
        await stream.write(OpenConsoleRequest(start=ConsoleStart(epoch=way.epoch, name=grant.guest, kind=grant.kind)))
        await stream.read()  # that it is open
    except BaseException:
        stream.cancel()
        raise
    return stream


async def _carry(
    socket: Socket, stream: AgentStream[OpenConsoleRequest, OpenConsoleResponse], *, terminal: bool
) -> tuple[int, str]:
    """Carry bytes until an end; return the closing code and why."""
    clock = _Clock()
    ends = (_up(socket, stream, clock, terminal), _down(socket, stream, clock), _watch(clock), _gone(socket))
    works = [asyncio.create_task(end) for end in ends]
    try:
        done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        return next(work for work in works if work in done).result()
    except Unreadable as error:
        return UNREADABLE, str(error)
    except ConnectionError:
        return ENDED, "the client has gone"
    except Exception as error:
        known = as_gugus_error(error, _log)
        if known.reason == "CONSOLE_TAKEN_OVER":
            return TAKEN_OVER, known.message
        if known.reason in _LOST:
            return HOST_LOST, f"the guest's host cannot be reached any more ({known.message})"
        return FAULT, known.message
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)


class _Clock:
    """When a console last said or heard something."""

    def __init__(self) -> None:
        self.last_s = time.monotonic()

    def tick(self) -> None:
        self.last_s = time.monotonic()


async def _up(
    socket: Socket, stream: AgentStream[OpenConsoleRequest, Any], clock: _Clock, terminal: bool
) -> tuple[int, str]:
    async for message in socket:
        clock.tick()
        if isinstance(message, bytes):
            await stream.write(OpenConsoleRequest(data=message))
        elif not terminal:
            raise Unreadable("a screen takes binary messages only")
        elif (size := _resize(message)) is not None:
            await stream.write(OpenConsoleRequest(resize=size))
    return ENDED, "the client has gone"


async def _down(socket: Socket, stream: AgentStream[Any, OpenConsoleResponse], clock: _Clock) -> tuple[int, str]:
    while (answer := await stream.read()) is not None:
        clock.tick()
        await socket.send(answer.data)
    return ENDED, "the console has ended"


async def _gone(socket: Socket) -> tuple[int, str]:
    await socket.gone()
    return ENDED, "the client has gone"


async def _watch(clock: _Clock) -> tuple[int, str]:
    left_s = IDLE_S
    while left_s > 0:
        await asyncio.sleep(left_s)
        left_s = clock.last_s + IDLE_S - time.monotonic()
    return IDLE, f"nothing happened for {IDLE_S / 60:.0f} minutes"


def _resize(text: str) -> TerminalSize | None:
    """Read a control message; None for one without a size. Raises Unreadable."""
    try:
        control = json.loads(text)
    except ValueError:
        raise Unreadable("a text message holds JSON; bytes of the terminal are binary messages") from None
    if not isinstance(control, dict):
        raise Unreadable("a text message holds a JSON object")
    if "resize" not in control:
        return None
    match control["resize"]:
        case [int(columns), int(rows)] if 1 <= columns <= 1000 and 1 <= rows <= 1000:
            return TerminalSize(columns=columns, rows=rows)
    raise Unreadable('"resize" is [COLUMNS, ROWS], each from 1 to 1000')
