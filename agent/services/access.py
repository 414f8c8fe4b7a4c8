"""AccessService: consoles of guests on this host, programs in them, and files."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from gugus.agent.v1 import access_pb2, access_pb2_grpc, guest_pb2

from agent.access.consoles import Consoles
from agent.access.requests import absolute, command_of, first, kind_of, size_of, wish_of
from agent.compute.access import Access, FileInfo, access_of, keyboard_of, not_running
from agent.guests import Guests
from agent.observer import Observer
from agent.turns import Turns
from common.errors import GugusError
from common.logs import get_logger

_RUNNING = frozenset({guest_pb2.GUEST_STATE_RUNNING, guest_pb2.GUEST_STATE_STOPPING, guest_pb2.GUEST_STATE_PAUSED})

_log = get_logger("access")


class AccessService(access_pb2_grpc.AccessServiceServicer):
    """See proto/gugus/agent/v1/access.proto."""

    def __init__(self, guests: Guests, observer: Observer, turns: Turns) -> None:
        self._guests, self._observer, self._turns = guests, observer, turns
        self._consoles = Consoles()

    async def OpenConsole(
        self, requests: AsyncIterator[access_pb2.OpenConsoleRequest], context: Any
    ) -> AsyncIterator[access_pb2.OpenConsoleResponse]:
        """Show a console until either end closes it."""
        start = (await first(requests)).start
        kind = kind_of(start.kind)
        access, guest = await self._door(start.epoch, start.name)
        async with self._consoles.open(access, guest, kind, size_of("start.size", start.size)) as opened:
            console = opened.console

            async def take(message: access_pb2.OpenConsoleRequest) -> None:
                if message.WhichOneof("content") == "resize":
                    await console.resize(size_of("resize", message.resize))
                else:
                    await console.write(message.data)

            yield access_pb2.OpenConsoleResponse(opened=access_pb2.ConsoleOpened())
            async with _taking(requests, take, console.close) as failure:
                while data := await console.read():
                    yield access_pb2.OpenConsoleResponse(data=data)
                opened.check()
                failure()

    async def Execute(
        self, requests: AsyncIterator[access_pb2.ExecuteRequest], context: Any
    ) -> AsyncIterator[access_pb2.ExecuteResponse]:
        """Run a program to its end."""
        start = (await first(requests)).start
        command = command_of(start.execution)
        access, _ = await self._door(start.epoch, start.name)
        program = await access.execute(start.name, command)
        _log.info("program started", guest=start.name, program=command.argv[0])
        try:

            async def take(message: access_pb2.ExecuteRequest) -> None:
                match message.WhichOneof("content"):
                    case "resize":
                        await program.resize(size_of("resize", message.resize))
                    case "signal":
                        await program.signal(message.signal)
                    case "end_of_input":
                        await program.end_input()
                    case _:
                        await program.write(message.stdin)

            async with _taking(requests, take, program.end_input, program.close) as failure:
                while (output := await program.read()) is not None:
                    failure()
                    if output.error:
                        yield access_pb2.ExecuteResponse(stderr=output.data)
                    else:
                        yield access_pb2.ExecuteResponse(stdout=output.data)
                failure()
                ended = await program.wait()
            yield access_pb2.ExecuteResponse(exited=access_pb2.ExitStatus(code=ended.code, signal=ended.signal))
        finally:
            await asyncio.shield(program.close())

    async def PushFile(
        self, requests: AsyncIterator[access_pb2.PushFileRequest], context: Any
    ) -> access_pb2.PushFileResponse:
        """Put a file into a guest."""
        start = (await first(requests)).start
        absolute("start.path", start.path)
        wish = wish_of(start)
        access, _ = await self._door(start.epoch, start.name)
        async with aclosing(_content(requests, start)) as content:
            placed = await access.push_file(start.name, start.path, wish, content)
        _log.info("file put into a guest", guest=start.name, path=start.path, bytes=placed.size_bytes)
        return access_pb2.PushFileResponse(file=_file(placed))

    async def PullFile(
        self, request: access_pb2.PullFileRequest, context: Any
    ) -> AsyncIterator[access_pb2.PullFileResponse]:
        """Take a file from a guest."""
        absolute("path", request.path)
        access, _ = await self._door(request.epoch, request.name)
        info, content = await access.pull_file(request.name, request.path)
        sha256, size = hashlib.sha256(), 0
        async with aclosing(content):
            yield access_pb2.PullFileResponse(file=_file(info))
            async for data in content:
                sha256.update(data)
                size += len(data)
                yield access_pb2.PullFileResponse(data=data)
        yield access_pb2.PullFileResponse(end=access_pb2.FileEnd(size_bytes=size, sha256=sha256.digest()))
        _log.info("file taken from a guest", guest=request.name, path=request.path, bytes=size)

    async def SendKeys(self, request: access_pb2.SendKeysRequest, context: Any) -> access_pb2.SendKeysResponse:
        """Press keys."""
        access, guest = await self._door(request.epoch, request.name)
        kind = guest_pb2.GuestKind.Name(guest.kind).removeprefix("GUEST_KIND_").lower().replace("_", " ")
        await keyboard_of(access, f"of this {kind}").send_keys(request.name, request.keys)
        return access_pb2.SendKeysResponse()

    async def _door(self, epoch: int, name: str) -> tuple[Access, guest_pb2.GuestSpec]:
        """Return the way into a running guest. Raises STALE_EPOCH, GUEST_NOT_FOUND, GUEST_NOT_RUNNING, ACCESS_UNSUPPORTED."""
        await self._turns.admit(epoch)
        guest = self._guests.get(name)
        if guest.state not in _RUNNING:
            raise not_running(name)
        seen = self._observer.seen.get(name)
        hypervisor = seen.hypervisor if seen else self._observer.hypervisor_for(guest.spec.kind)
        return access_of(hypervisor), guest.spec


@asynccontextmanager
async def _taking(
    requests: AsyncIterator[Any],
    take: Callable[[Any], Awaitable[None]],
    at_end: Callable[[], Awaitable[None]],
    at_failure: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Callable[[], None]]:
    """Take the messages of a caller while the block answers; yields a function that raises what went wrong with them.

    at_end: called when the caller has sent its last one. at_failure (else at_end): when one could not be taken; it must end the block.
    """
    failures: list[BaseException] = []

    async def run() -> None:
        try:
            async for message in requests:
                await take(message)
        except GugusError as error:
            failures.append(error)
            await (at_failure or at_end)()
        else:
            await at_end()

    def failure() -> None:
        if failures:
            raise failures[0]

    task = asyncio.create_task(run())
    try:
        yield failure
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _content(
    requests: AsyncIterator[access_pb2.PushFileRequest], start: access_pb2.PushFileStart
) -> AsyncGenerator[bytes, None]:
    """Yield a file's content; raise FILE_DAMAGED at its end unless it is what its sender says it is."""
    sha256, size = hashlib.sha256(), 0
    async for request in requests:
        if request.WhichOneof("content") == "end":
            wrong = (
                (size, sha256.digest()) != (request.end.size_bytes, request.end.sha256)
                or (start.size_bytes and size != start.size_bytes)
            )  # fmt: skip
            if wrong:
                raise _damaged(start, f"{size} bytes came that are not those that were sent")
            return
        sha256.update(request.data)
        size += len(request.data)
        yield request.data
    raise _damaged(start, f"it ended after {size} bytes")


def _damaged(start: access_pb2.PushFileStart, why: str) -> GugusError:
    return GugusError(
        grpc.StatusCode.DATA_LOSS,
        "FILE_DAMAGED",
        f'guest "{start.name}": {start.path} did not arrive whole: {why}.',
        remedy="Nothing was changed; push it again.",
    )


def _file(info: FileInfo) -> access_pb2.FileInfo:
    return access_pb2.FileInfo(size_bytes=info.size_bytes, mode=info.mode, uid=info.uid, gid=info.gid)
