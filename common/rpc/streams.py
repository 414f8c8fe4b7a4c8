"""Streams both ways as they should be: answers are never lost, and an error is the one that the server sent.

grpc.aio, when a message cannot be sent because the server has ended the call, calls that INTERNAL ("Internal error from Core"); that
hides the server's own status, which came shortly before or comes shortly after, and from then on `read` raises it, whatever the server had
still sent (grpcio 1.85: `_StreamRequestMixin._write` in grpc/aio/_call.py). So the status is taken down whenever one is set, and answers
are read by iterating, which goes on to the last one.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Generic, TypeVar

import grpc

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")

_HIDING = "Internal error from Core"
_PATIENCE_S = 1.0
"""How long the true status is waited for; it is on its way already."""


class Outcome:
    """How a call really ended. Made right after the call."""

    def __init__(self, call: Any) -> None:
        self._error: grpc.aio.AioRpcError | None = None
        self._known = asyncio.Event()
        call.add_done_callback(self._note)

    async def error(self, seen: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError | None:
        """Return what the server ended the call with, given what grpc.aio raised; None when it ended well."""
        if not _hides(seen.code(), seen.details()):
            return seen
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._known.wait()
        except TimeoutError:
            return seen
        return self._error

    def _note(self, call: Any) -> None:
        """Take a status down; called each time that one is set, when all there is to ask for is there at once."""
        code, details = _at_once(call.code()), _at_once(call.details())
        if _hides(code, details):
            return
        if code is not grpc.StatusCode.OK:
            trailers = _at_once(call.trailing_metadata())
            self._error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)
        self._known.set()


class Stream(Generic[Q, A]):
    """A call whose requests are a stream, and whose answer is one message or a stream. One writer and one reader."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._outcome = Outcome(call)
        self._answers: AsyncIterator[A] | None = None

    async def write(self, message: Q) -> bool:
        """Send a message; returns when there is room for the next, or False once the server has ended the call."""
        try:
            await self._call.write(message)
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            return False  # reading tells why
        return True

    async def end(self) -> None:
        """Send nothing more."""
        try:
            await self._call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            return

    async def read(self) -> A | None:
        """Return the next answer of a stream; None at its end. Raises AioRpcError."""
        if self._answers is None:
            self._answers = self._call.__aiter__()
        try:
            return await anext(self._answers)
        except StopAsyncIteration:
            return None
        except grpc.aio.AioRpcError as error:
            if (true := await self._outcome.error(error)) is not None:
                raise true from None
            return None

    async def answer(self) -> A:
        """Return the one answer. Raises AioRpcError."""
        try:
            one: A = await self._call
        except grpc.aio.AioRpcError as error:
            raise await self._outcome.error(error) or error from None
        return one

    def cancel(self) -> None:
        """End the call; does nothing when it has ended."""
        self._call.cancel()


def _hides(code: grpc.StatusCode, details: str | None) -> bool:
    return code is grpc.StatusCode.INTERNAL and (details or "").startswith(_HIDING)


def _at_once(answer: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that has nothing to wait for."""
    try:
        answer.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    answer.close()
    raise RuntimeError("a call that is done does not tell its status at once")
