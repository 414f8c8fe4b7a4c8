"""Access to guests in the SDK: consoles by WebSocket, programs and files by streams.

Nothing of it is repeated by itself: a program that was started once is not started again because an answer was lost.
"""

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from gugus.agent.v1 import access_pb2 as agent_access
from gugus.agent.v1.access_pb2 import CONSOLE_KIND_UNSPECIFIED, ConsoleKind, TerminalSize
from gugus.cluster.v1 import access_pb2, access_pb2_grpc, guest_pb2, guest_pb2_grpc

from client.caller import Caller
from common.errors import GugusError, from_rpc_error, internal, invalid, precondition, unavailable
from common.rpc.streams import Stream

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

OPEN_TIMEOUT_S = 15.0
"""How long the gateway may take to open a console."""

MAX_MESSAGE_BYTES = 1024 * 1024
"""Largest message that a gateway may send; it sends 64 KiB at most."""

PIECE_BYTES = 64 * 1024
"""Bytes of a file or of input in one message."""

NOT_FOUND = 127
"""Exit code of a program that is not there, as shells have it."""

ENDED = 1000
"""Closing code of a console whose guest or shell has ended (access.proto)."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Why a console ended: the gateway's code (access.proto) and its words."""

    code: int
    reason: str


class Console:
    """An open console. Iterate over it for what the guest sends; it ends when the guest, or somebody else, ends it."""

    def __init__(self, connection: "ClientConnection") -> None:
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        from websockets.exceptions import ConnectionClosed

        try:
            async for message in self._connection:
                yield message if isinstance(message, bytes) else message.encode()
        except ConnectionClosed:
            return

    async def write(self, data: bytes) -> None:
        """Send bytes to the guest. Does nothing once it has ended."""
        await self._send(data)

    async def resize(self, columns: int, rows: int) -> None:
        """Tell a terminal's size. Does nothing once it has ended."""
        await self._send(json.dumps({"resize": [columns, rows]}))

    async def close(self) -> None:
        """End it."""
        await self._connection.close()

    @property
    def closed(self) -> Closed:
        """Why it ended, once it has."""
        return Closed(self._connection.close_code or 0, self._connection.close_reason or "")

    async def _send(self, message: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._connection.send(message)
        except ConnectionClosed:
            return


class Execution:
    """A program that runs in a guest. Iterate over it for its output; `exit_code` is there at the end."""

    def __init__(self, call: Any) -> None:
        self._stream = Stream[agent_access.ExecuteRequest, agent_access.ExecuteResponse](call)
        self.exit_code: int | None = None

    async def __aiter__(self) -> AsyncIterator[agent_access.ExecuteResponse]:
        try:
            while (answer := await self._stream.read()) is not None:
                if answer.HasField("exited"):
                    self.exit_code = answer.exited.code
                else:
                    yield answer
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        if self.exit_code is None:
            raise internal("EXECUTE_CUT_OFF", "the stream ended without the program's exit code.")

    async def write(self, data: bytes) -> None:
        """Send bytes to its standard input; returns when there is room for more."""
        await self._stream.write(agent_access.ExecuteRequest(stdin=data))

    async def end_input(self) -> None:
        """End its standard input."""
        await self._stream.write(agent_access.ExecuteRequest(end_of_input=agent_access.EndOfInput()))

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the size of its terminal."""
        await self._stream.write(agent_access.ExecuteRequest(resize=TerminalSize(columns=columns, rows=rows)))

    async def signal(self, number: int) -> None:
        """Send it a signal."""
        await self._stream.write(agent_access.ExecuteRequest(signal=number))


class Access:
    """Consoles, programs and files of guests."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def console_ticket(
        self, name: str, kind: ConsoleKind.ValueType = CONSOLE_KIND_UNSPECIFIED
    ) -> access_pb2.ConsoleTicket:
        """Return a ticket to a console, good for one use within 30 s. Raises NOT_FOUND, FAILED_PRECONDITION."""
        request = access_pb2.OpenConsoleRequest(name=name, kind=kind)
        return await self._caller.call(
            access_pb2_grpc.AccessServiceStub, "OpenConsole", request, access_pb2.ConsoleTicket
        )

    @asynccontextmanager
    async def console(self, ticket: access_pb2.ConsoleTicket) -> AsyncGenerator[Console, None]:
        """Open the console of a ticket, and close it in the end. Raises UNAVAILABLE (GATEWAY_UNREACHABLE), CONSOLE_REFUSED."""
        from websockets.asyncio.client import connect  # here: commands without consoles start faster
        from websockets.exceptions import InvalidHandshake

        ca_pem, manager = self._caller.trust
        tls = ssl.create_default_context(cadata=ca_pem.decode())
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        address = f"{ticket.url}?ticket={ticket.ticket}"
        options = {
            "ssl": tls,
            "server_hostname": manager,
            "compression": None,
            "proxy": None,
            "user_agent_header": None,
        }
        try:
            connection = await connect(address, max_size=MAX_MESSAGE_BYTES, open_timeout=OPEN_TIMEOUT_S, **options)  # type: ignore[arg-type]
        except InvalidHandshake as error:
            raise unavailable(
                "CONSOLE_REFUSED", f"the gateway at {ticket.url} did not open the console: {error}."
            ) from None
        except (OSError, TimeoutError) as error:
            raise unavailable(
                "GATEWAY_UNREACHABLE",
                f"the gateway at {ticket.url} does not answer: {error or 'no answer in time'}.",
                remedy="Its port (7449 unless manager.yaml says otherwise) must be reachable from here.",
            ) from None
        try:
            yield Console(connection)
        finally:
            await connection.close()

    @asynccontextmanager
    async def execute(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        working_directory: str = "",
        user: str = "",
        terminal: tuple[int, int] | None = None,
    ) -> AsyncGenerator[Execution, None]:
        """Run a program in a guest; leaving the block ends it. terminal: columns and rows, to run it on one.

        Raises NOT_FOUND, FAILED_PRECONDITION (GUEST_NOT_RUNNING, GUEST_AGENT_MISSING, EXECUTE_FAILED), also while it is iterated over.
        """
        execution = agent_access.Execution(
            command=command, environment=environment or {}, working_directory=working_directory, user=user
        )
        if terminal is not None:
            execution.terminal = True
            execution.size.columns, execution.size.rows = terminal
        start = agent_access.ExecuteStart(name=name, execution=execution)
        call = (await self._stub(name)).Execute()
        try:
            running = Execution(call)
            await running._stream.write(agent_access.ExecuteRequest(start=start))
            yield running
        finally:
            call.cancel()

    async def push(
        self,
        name: str,
        path: str,
        content: AsyncIterable[bytes],
        *,
        mode: int = 0,
        uid: int | None = None,
        gid: int | None = None,
        size_bytes: int = 0,
    ) -> agent_access.FileInfo:
        """Put a file into a guest; nothing changes there before all of it has arrived. Raises FAILED_PRECONDITION, DATA_LOSS."""
        start = agent_access.PushFileStart(name=name, path=path, mode=mode, uid=uid, gid=gid, size_bytes=size_bytes)

        stub = await self._stub(name)
        stream = Stream[agent_access.PushFileRequest, agent_access.PushFileResponse](stub.PushFile())
        sha256, size = hashlib.sha256(), 0
        try:
            going_on = await stream.write(agent_access.PushFileRequest(start=start))
            async for data in content:
                sha256.update(data)
                size += len(data)
                if not (going_on and await stream.write(agent_access.PushFileRequest(data=data))):
                    break
            end = agent_access.FileEnd(size_bytes=size, sha256=sha256.digest())
            await stream.write(agent_access.PushFileRequest(end=end))
            await stream.end()
            return (await stream.answer()).file
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            stream.cancel()

    async def pull(
        self, name: str, path: str, on_file: Callable[[agent_access.FileInfo], None] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a file of a guest, telling `on_file` of it first. Raises FAILED_PRECONDITION, and DATA_LOSS when it is not whole."""
        call = (await self._stub(name)).PullFile(agent_access.PullFileRequest(name=name, path=path))
        sha256, size, end = hashlib.sha256(), 0, None
        try:
            async for answer in call:
                if answer.HasField("file") and on_file:
                    on_file(answer.file)
                elif answer.HasField("end"):
                    end = answer.end
                elif answer.data:
                    sha256.update(answer.data)
                    size += len(answer.data)
                    yield answer.data
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()
        if end is None or (end.size_bytes, end.sha256) != (size, sha256.digest()):
            raise GugusError(grpc.StatusCode.DATA_LOSS, "FILE_DAMAGED", f"{path} did not arrive whole.")

    async def send_keys(self, name: str, keys: Sequence[str]) -> None:
        """Press keys of a virtual machine, all at once, by QEMU's names. Raises NOT_FOUND, INVALID_ARGUMENT, FAILED_PRECONDITION."""
        request = agent_access.SendKeysRequest(name=name, keys=keys)
        stub = await self._stub(name)
        try:
            await stub.SendKeys(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def set_password(self, name: str, user: str, password: str) -> None:
        """Set the password of a user in a guest, by its own chpasswd(8), which reads it from its input. Raises FAILED_PRECONDITION."""
        if not user or any(sign in user for sign in ":\n") or "\n" in password:
            raise invalid("user", "a user has no colon, and neither it nor a password has a line's end.")
        code, _, words = await run(self, name, ["chpasswd"], input=f"{user}:{password}\n".encode())
        if code == NOT_FOUND:
            what = f'guest "{name}" has no chpasswd, which sets passwords.'
            raise precondition("PASSWORD_NOT_SET", what, remedy="Install it there (package passwd).")
        if code != 0:
            said = words.decode(errors="replace").strip() or f"exit code {code}"
            raise precondition("PASSWORD_NOT_SET", f'guest "{name}": the password of {user} was not set: {said}.')

    async def _stub(self, name: str) -> Any:
        """Return the service at a manager that answers, which a call that may be repeated finds. Raises NOT_FOUND, UNAVAILABLE."""
        request = guest_pb2.GetGuestRequest(name=name)
        await self._caller.call(guest_pb2_grpc.GuestServiceStub, "GetGuest", request, guest_pb2.Guest)
        return access_pb2_grpc.AccessServiceStub(self._caller.channel)


async def run(
    access: Access, name: str, command: Sequence[str], *, input: bytes = b"", **options: Any
) -> tuple[int, bytes, bytes]:
    """Run a program in a guest to its end; return its exit code and what it wrote. For scripts and tests."""
    stdout, stderr = bytearray(), bytearray()
    async with access.execute(name, command, **options) as running:

        async def feed() -> None:
            for at in range(0, len(input), PIECE_BYTES):
                await running.write(input[at : at + PIECE_BYTES])
            await running.end_input()

        feeding = asyncio.create_task(feed())
        try:
            async for answer in running:
                stdout += answer.stdout
                stderr += answer.stderr
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        assert running.exit_code is not None
        return running.exit_code, bytes(stdout), bytes(stderr)
