"""The access service: tickets to consoles, and programs and files of guests, passed through to the agent that has the guest.

What is done is written down first. Of a program its name alone: arguments, environment and input may hold secrets. Of a file its path.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from gugus.agent.v1 import access_pb2 as agent_access
from gugus.agent.v1.access_pb2 import (
    CONSOLE_KIND_SERIAL,
    CONSOLE_KIND_SPICE,
    CONSOLE_KIND_TERMINAL,
    CONSOLE_KIND_UNSPECIFIED,
    CONSOLE_KIND_VNC,
    ConsoleKind,
)
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1 import access_pb2, access_pb2_grpc
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_PAUSED, GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPING, Guest

from common.errors import invalid, precondition
from manager.agents import told
from manager.gateway.passage import AgentStream, Passage, pass_on, send_all
from manager.gateway.tickets import LIFETIME_S, Grant, Tickets
from manager.services.forward import actor

SHOWN_CHARS = 120
"""Characters of a program's name or a file's path in an event."""

_SCREENS = (CONSOLE_KIND_VNC, CONSOLE_KIND_SPICE)
_RUNS = (GUEST_PHASE_RUNNING, GUEST_PHASE_PAUSED, GUEST_PHASE_STOPPING)


class AccessService(access_pb2_grpc.AccessServiceServicer):
    """Serves `gugus guest console`, `exec`, `push` and `pull`. url: of the gateway, without a path."""

    def __init__(self, passage: Passage, tickets: Tickets, url: Callable[[], str]) -> None:
        self._passage = passage
        self._tickets = tickets
        self._url = url

    async def OpenConsole(self, request: access_pb2.OpenConsoleRequest, context: object) -> access_pb2.ConsoleTicket:
        """Make a ticket."""
        guest = (await self._passage.into(request.name)).guest
        kind = _kind(guest, request.kind)
        if guest.status.phase not in _RUNS:
            raise precondition(
                "GUEST_NOT_RUNNING",
                f"guest {request.name} does not run: {guest.status.reason}.",
                remedy=f"`gugus guest start {request.name}` starts it.",
                subject=f"guest/{request.name}",
            )
        ticket = self._tickets.issue(Grant(guest.meta.name, guest.meta.uid, kind, str(actor())))
        answer = access_pb2.ConsoleTicket(url=f"{self._url()}/console/{guest.meta.name}", ticket=ticket, kind=kind)
        answer.expires_at.FromNanoseconds(time.time_ns() + int(LIFETIME_S * 1e9))
        return answer

    async def Execute(
        self, requests: AsyncIterator[agent_access.ExecuteRequest], context: object
    ) -> AsyncIterator[agent_access.ExecuteResponse]:
        """Run a program."""
        first = await _first(requests)
        way = await self._passage.into(first.start.name)
        if not first.start.execution.command:
            raise invalid("start.execution.command", "is empty; name a program.")
        program = _shown(first.start.execution.command[0])
        await self._passage.note(first.start.name, "GUEST_EXECUTED", f"{actor()} asked to run {program} in it")
        first.start.epoch = way.epoch
        stream = AgentStream[Any, agent_access.ExecuteResponse](way.node, way.stub.Execute())
        await stream.write(first)
        async with aclosing(pass_on(requests, _no_start, stream)) as answers:
            async for answer in answers:
                yield answer

    async def PushFile(
        self, requests: AsyncIterator[agent_access.PushFileRequest], context: object
    ) -> agent_access.PushFileResponse:
        """Put a file into a guest."""
        first = await _first(requests)
        way = await self._passage.into(first.start.name)
        path = _shown(first.start.path)
        await self._passage.note(first.start.name, "GUEST_FILE_PUSHED", f"{actor()} asked to put {path} into it")
        first.start.epoch = way.epoch
        stream = AgentStream[Any, agent_access.PushFileResponse](way.node, way.stub.PushFile())
        try:
            await stream.write(first)
            await send_all(requests, _no_start, stream)
            return await stream.answer()
        finally:
            stream.cancel()

    async def PullFile(
        self, request: agent_access.PullFileRequest, context: object
    ) -> AsyncIterator[agent_access.PullFileResponse]:
        """Take a file from a guest."""
        way = await self._passage.into(request.name)
        path = _shown(request.path)
        await self._passage.note(request.name, "GUEST_FILE_PULLED", f"{actor()} asked to take {path} from it")
        request.epoch = way.epoch
        stream = AgentStream[Any, agent_access.PullFileResponse](way.node, way.stub.PullFile(request))
        try:
            while (answer := await stream.read()) is not None:
                yield answer
        finally:
            stream.cancel()

    async def SendKeys(self, request: agent_access.SendKeysRequest, context: object) -> agent_access.SendKeysResponse:
        """Press keys. Which ones is not written down: they may be a password."""
        way = await self._passage.into(request.name)
        if way.guest.spec.kind == GUEST_KIND_CONTAINER:
            raise precondition(
                "ACCESS_UNSUPPORTED",
                f"guest {request.name} is a container, which has no keyboard.",
                remedy=f"`gugus guest console {request.name}` opens its terminal.",
                subject=f"guest/{request.name}",
            )
        await self._passage.note(request.name, "GUEST_KEYS_SENT", f"{actor()} asked to press keys of its keyboard")
        request.epoch = way.epoch
        answer: agent_access.SendKeysResponse = await told(way.node, lambda: way.stub.SendKeys(request))
        return answer


def _kind(guest: Guest, asked: ConsoleKind.ValueType) -> ConsoleKind.ValueType:
    """Return the console to open. Raises INVALID_ARGUMENT for one that this kind of guest never has."""
    container = guest.spec.kind == GUEST_KIND_CONTAINER
    if asked == CONSOLE_KIND_UNSPECIFIED:
        return CONSOLE_KIND_TERMINAL if container else CONSOLE_KIND_SERIAL
    if asked not in ConsoleKind.values() or (container and asked in _SCREENS):
        raise invalid("kind", f"{asked} is no console of guest {guest.meta.name}; a container has SERIAL and TERMINAL.")
    return asked


async def _first(requests: AsyncIterator[Any]) -> Any:
    """Return the first message of a stream. Raises INVALID_ARGUMENT unless it is a `start`."""
    async for request in requests:
        if request.HasField("start"):
            return request
        break
    raise invalid("start", "is missing; the first message of the stream must have it.")


def _no_start(request: Any) -> Any:
    """Return a later message. Raises INVALID_ARGUMENT for a second `start`: it would not be written down."""
    if request.HasField("start"):
        raise invalid("start", "came twice.")
    return request


def _shown(text: str) -> str:
    return ascii(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…").strip("'\"")
