"""`gugus guest console`: a guest's terminal in this one, or a way for a viewer to its screen."""

import asyncio
import ipaddress
import os
import signal
from contextlib import aclosing, suppress
from enum import StrEnum
from typing import Annotated

import typer
from gugus.agent.v1.access_pb2 import (
    CONSOLE_KIND_SERIAL,
    CONSOLE_KIND_SPICE,
    CONSOLE_KIND_TERMINAL,
    CONSOLE_KIND_UNSPECIFIED,
    CONSOLE_KIND_VNC,
    ConsoleKind,
)

from client.access import ENDED, Closed, Console
from client.cli import terminal
from client.cli.guest_app import Name, app
from client.cli.output import say
from client.cli.session import run
from client.sdk import Gugus
from common.config import join_endpoint, split_endpoint
from common.errors import aborted, invalid, unavailable

LEAVE = b"\x1d"
"""Ctrl-], as in `virsh console`."""

TAKEN_OVER = 4000
"""Closing code of a console that another user opened (access.proto)."""

BACKLOG = 16
_WELL = frozenset({0, ENDED, 1001, 1005})
"""Codes of a console that this side, or the guest, has ended."""


class Kind(StrEnum):
    """What to open."""

    SERIAL = "serial"
    TERMINAL = "terminal"
    VNC = "vnc"
    SPICE = "spice"


_KINDS = {
    Kind.SERIAL: CONSOLE_KIND_SERIAL,
    Kind.TERMINAL: CONSOLE_KIND_TERMINAL,
    Kind.VNC: CONSOLE_KIND_VNC,
    Kind.SPICE: CONSOLE_KIND_SPICE,
}
_WORDS = {value: kind.value for kind, value in _KINDS.items()}


@app.command()
def console(
    ctx: typer.Context,
    name: Name,
    kind: Annotated[
        Kind | None, typer.Option(help="What to open (vm: serial; container: terminal, a shell of its root).")
    ] = None,
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Do not open it here, but let viewers of this host connect to it: a path of a socket, or 127.0.0.1:PORT (0: any).",
        ),
    ] = "",
) -> None:
    """Open a guest's console in this terminal; Ctrl-] leaves. Of screens: let a viewer connect.

    gugus guest console web --kind vnc --listen /run/user/1000/web.vnc
    """
    wanted = _KINDS[kind] if kind else CONSOLE_KIND_UNSPECIFIED
    if listen:
        run(ctx, lambda gugus: _listen(gugus, name, wanted, listen))
    elif kind in (Kind.VNC, Kind.SPICE):
        raise invalid(
            "--listen",
            f"is missing: a terminal shows no {kind} screen.",
            remedy=f"`gugus guest console {name} --kind {kind} --listen 127.0.0.1:0` lets a viewer of this host connect.",
        )
    else:
        closed = run(ctx, lambda gugus: _attach(gugus, name, wanted))
        _tell_end(name, closed)


async def _attach(gugus: Gugus, name: str, kind: ConsoleKind.ValueType) -> Closed | None:
    """Join the terminal and a console; return why it ended, None when the user left."""
    ticket = await gugus.access.console_ticket(name, kind)
    async with gugus.access.console(ticket) as opened:
        if terminal.is_terminal():
            say(f"{name}: {_WORDS[ticket.kind]} console. Ctrl-] leaves it.")
        leaving = asyncio.Event()
        works = [asyncio.create_task(work) for work in (_show(opened), _type(opened), leaving.wait())]
        resized = asyncio.Event()
        works.append(asyncio.create_task(_resize(opened, resized)))
        resized.set()
        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), leaving.set)
        try:
            with terminal.raw(), terminal.on_signals({**handlers, signal.SIGWINCH: resized.set}):
                done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
                for work in done:
                    work.result()
                return opened.closed if works[0] in done else None
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)


async def _show(opened: Console) -> None:
    async for data in opened:
        terminal.show(data)


async def _type(opened: Console) -> None:
    """Send keys until the one that leaves. Without a terminal, the end of the input leaves nothing: the guest may go on."""
    interactive = terminal.is_terminal()
    async with aclosing(terminal.keys()) as keys:
        async for data in keys:
            before, found, _ = data.partition(LEAVE) if interactive else (data, b"", b"")
            if before:
                await opened.write(before)
            if found:
                return
    if not interactive:
        await asyncio.Event().wait()


async def _resize(opened: Console, resized: asyncio.Event) -> None:
    while True:
        await resized.wait()
        resized.clear()
        if terminal.is_terminal():
            await opened.resize(*terminal.size())


def _tell_end(name: str, closed: Closed | None) -> None:
    if closed is None:
        say(f"left the console of {name}.")
    elif closed.code == ENDED:
        say(f"{closed.reason or 'the console has ended'}.")
    elif closed.code == TAKEN_OVER:
        raise aborted("CONSOLE_TAKEN_OVER", closed.reason, remedy="Open it again to take it back.")
    else:
        raise unavailable(
            "CONSOLE_ENDED", f"the console of {name} ended: {closed.reason or 'the connection broke'} ({closed.code})."
        )


# Viewers


async def _listen(gugus: Gugus, name: str, kind: ConsoleKind.ValueType, address: str) -> None:
    """Let programs of this host connect to a console; each connection is one of its own. Until interrupted."""
    ticket = await gugus.access.console_ticket(name, kind)  # whether it can be opened is known at once
    word = _WORDS[ticket.kind]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            own = await gugus.access.console_ticket(name, kind)
            async with gugus.access.console(own) as opened:
                await _join(opened, reader, writer)
            if opened.closed.code not in _WELL:
                say(f"{name}: {opened.closed.reason} ({opened.closed.code}).")
        except Exception as error:
            say(f"{name}: {error}")
        finally:
            writer.close()

    server, shown = await _server(serve, address)
    stopping = asyncio.Event()
    say(f"{word} console of {name} at {shown}, for example: {_example(word, shown)}. Ctrl-C ends it.")
    async with server:
        with terminal.on_signals(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stopping.set)):
            print(shown, flush=True)
            await stopping.wait()
    if not _is_tcp(address):
        with suppress(FileNotFoundError):
            os.unlink(address)


async def _server(serve: object, address: str) -> tuple[asyncio.Server, str]:
    if _is_tcp(address):
        host, port = _loopback(address)
        server = await asyncio.start_server(serve, host, port, backlog=BACKLOG)  # type: ignore[arg-type]
        return server, join_endpoint(*server.sockets[0].getsockname()[:2])
    before = os.umask(0o177)  # only the user gets in
    try:
        return await asyncio.start_unix_server(serve, address, backlog=BACKLOG), address  # type: ignore[arg-type]
    finally:
        os.umask(before)


def _is_tcp(address: str) -> bool:
    return "/" not in address


def _loopback(address: str) -> tuple[str, int]:
    """Read an address of this host that no other host reaches. Raises GugusError."""
    host, _, port = address.rpartition(":")
    try:
        if port != "0":
            host, _ = split_endpoint(address)
        host = host.strip("[]")
        if ipaddress.ip_address(host).is_loopback:
            return host, int(port)
    except ValueError:
        pass
    raise invalid(
        "--listen", f'"{address}" is neither a path with a "/" nor a loopback address with a port, like 127.0.0.1:5901.'
    )


def _example(word: str, shown: str) -> str:
    if word == Kind.SPICE:
        return f"remote-viewer spice://{shown}" if _is_tcp(shown) else f"remote-viewer spice+unix://{shown}"
    if word == Kind.VNC:
        return f"vncviewer {shown.replace(':', '::')}" if _is_tcp(shown) else f"vncviewer {shown}"
    return f"socat - tcp:{shown}" if _is_tcp(shown) else f"socat - unix:{shown}"


async def _join(opened: Console, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def up() -> None:
        while data := await reader.read(terminal.PIECE_BYTES):
            await opened.write(data)

    async def down() -> None:
        async for data in opened:
            writer.write(data)
            await writer.drain()

    works = [asyncio.create_task(up()), asyncio.create_task(down())]
    try:
        await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
