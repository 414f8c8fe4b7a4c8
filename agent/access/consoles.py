"""Open consoles of this host: a terminal has one user, the newest; whoever had it before is told."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gugus.agent.v1 import access_pb2, guest_pb2

from agent.compute.access import KIND_WORDS, Access, Console, Size
from common.errors import GugusError, aborted
from common.logs import get_logger

_log = get_logger("access")

_ONE_USER = frozenset(
    {
        (guest_pb2.GUEST_KIND_VIRTUAL_MACHINE, access_pb2.CONSOLE_KIND_SERIAL),
        (guest_pb2.GUEST_KIND_VIRTUAL_MACHINE, access_pb2.CONSOLE_KIND_TERMINAL),
        (guest_pb2.GUEST_KIND_CONTAINER, access_pb2.CONSOLE_KIND_SERIAL),
    }
)
"""Ports: two readers would each get a part of the output. Screens are shared by their servers, shells are many."""


class OpenConsole:
    """A console and whether another user took it over."""

    def __init__(self, name: str, kind: access_pb2.ConsoleKind.ValueType, console: Console) -> None:
        self.console = console
        self._name, self._kind = name, kind
        self._taken = False

    async def take_away(self) -> None:
        """End it for its present user."""
        self._taken = True
        await self.console.close()

    def check(self) -> None:
        """Raise CONSOLE_TAKEN_OVER when it was taken away."""
        if self._taken:
            raise taken_over(self._name, self._kind)


class Consoles:
    """All open consoles that have one user each. Used in one loop."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, access_pb2.ConsoleKind.ValueType], OpenConsole] = {}

    @asynccontextmanager
    async def open(
        self,
        access: Access,
        guest: guest_pb2.GuestSpec,
        kind: access_pb2.ConsoleKind.ValueType,
        size: Size,
    ) -> AsyncIterator[OpenConsole]:
        """Open a console, and close it in the end. Raises what the driver raises."""
        key = (guest.name, kind)
        if (guest.kind, kind) in _ONE_USER and key in self._open:
            await self._open[key].take_away()
        mine = OpenConsole(guest.name, kind, await access.open_console(guest.name, kind, size))
        if (guest.kind, kind) in _ONE_USER:
            if key in self._open:  # two came at once: the later one has it
                await self._open[key].take_away()
            self._open[key] = mine
        _log.info("console opened", guest=guest.name, kind=KIND_WORDS[kind])
        try:
            yield mine
        finally:
            with contextlib.suppress(OSError):
                await mine.console.close()
            if self._open.get(key) is mine:
                del self._open[key]
            _log.info("console closed", guest=guest.name, kind=KIND_WORDS[kind])


def taken_over(name: str, kind: access_pb2.ConsoleKind.ValueType) -> GugusError:
    """Return the error for whoever had a console that another user opened since."""
    return aborted(
        "CONSOLE_TAKEN_OVER",
        f'the {KIND_WORDS[kind]} console of guest "{name}" was opened by another user.',
        remedy="Open it again to take it back.",
    )
