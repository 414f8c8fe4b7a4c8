"""The gateway as its clients see it: noVNC and xterm.js as they speak, and everybody who should not get in."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gugus.agent.v1.access_pb2 import (
    CONSOLE_KIND_SERIAL,
    CONSOLE_KIND_SPICE,
    CONSOLE_KIND_TERMINAL,
    CONSOLE_KIND_VNC,
    ConsoleKind,
)
from gugus.cluster.v1.access_pb2 import ConsoleTicket
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_STOPPED, Guest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from common.errors import GugusError
from common.identity.ca import CertificateAuthority
from common.identity.names import Role
from manager.gateway import bridge, server
from manager.gateway.tickets import LIFETIME_S, MAX_TICKETS_OF_USER, Grant, Tickets
from tests.unit.access.conftest import House, credentials, eventually

RFB = b"RFB 003.008\n"


def trusting(ca: CertificateAuthority) -> ssl.SSLContext:
    """TLS as a browser has it that trusts the cluster's CA, and verifies the address."""
    return ssl.create_default_context(cadata=ca.cert_pem.decode())


def address(ticket: ConsoleTicket, *, guest: str = "") -> str:
    url = ticket.url if not guest else ticket.url.rpartition("/")[0] + f"/{guest}"
    return f"{url}?ticket={ticket.ticket}"


async def ticket_to(house: House, name: str, kind: ConsoleKind.ValueType) -> ConsoleTicket:
    return await house.gugus.access.console_ticket(name, kind)


@contextlib.asynccontextmanager
async def opened(house: House, url: str, **options: Any) -> AsyncIterator[ClientConnection]:
    options = {"compression": None, "proxy": None, "ssl": trusting(house.ca), **options}
    async with connect(url, **options) as connection:
        yield connection


async def refused(house: House, url: str, **options: Any) -> int:
    """Return the HTTP status that a console is refused with."""
    with pytest.raises(InvalidStatus) as caught:
        async with opened(house, url, **options):
            pass
    return caught.value.response.status_code


async def closing(connection: ClientConnection) -> tuple[int, str]:
    """Return why a console was closed."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(5):
            async for _ in connection:
                pass
    return connection.close_code or 0, connection.close_reason or ""


async def read_until(connection: ClientConnection, text: bytes) -> bytes:
    read = b""
    async with asyncio.timeout(5):
        while text not in read:
            message = await connection.recv()
            assert isinstance(message, bytes)
            read += message
    return read


# Who gets in, and what they get


async def test_novnc_speaks_rfb_to_a_screen(house: House) -> None:
    """As noVNC does: subprotocol "binary", the origin of the gateway's own page, raw RFB in binary messages."""
    ticket = await ticket_to(house, "web", CONSOLE_KIND_VNC)
    origin = f"https://127.0.0.1:{house.gateway.port}"
    async with opened(house, address(ticket), subprotocols=["binary"], origin=origin) as novnc:
        assert novnc.subprotocol == "binary"
        await eventually(lambda: house.inside.screens)
        screen = house.inside.screens[0]
        screen.send(RFB)
        assert await novnc.recv() == RFB
        await novnc.send(RFB)
        await eventually(lambda: peeked(screen) == RFB)
        screen.recv(100)
        screen.send(bytes([1, 1]))  # one security type: none
        assert await novnc.recv() == bytes([1, 1])
        await novnc.send(bytes([1]))
        await eventually(lambda: peeked(screen) == bytes([1]))
        screen.close()
        assert await closing(novnc) == (1000, "the console has ended")
    assert house.events == [("guest/web", "GUEST_CONSOLE_OPENED", "its VNC screen was opened by operator alice")]


def peeked(screen: socket.socket) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return screen.recv(100, socket.MSG_PEEK)
    return b""


async def test_xterm_types_sees_and_resizes_a_terminal(house: House) -> None:
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    async with opened(house, address(ticket)) as xterm:
        assert xterm.subprotocol is None
        await read_until(xterm, b"guest# ")
        await xterm.send(json.dumps({"resize": [132, 43], "later": "members are ignored"}))
        await xterm.send(b"stty size\r")
        assert b"43 132" in await read_until(xterm, b"43 132\r\n")
        await xterm.send(b"exit\r")
        assert (await closing(xterm))[0] == 1000


async def test_serial_console_carries_bytes_as_they_are(house: House) -> None:
    ticket = await ticket_to(house, "web", CONSOLE_KIND_SERIAL)
    async with opened(house, address(ticket)) as xterm:
        await eventually(lambda: house.inside.serial)
        await xterm.send(b"\x00\xff\r\x03")
        async with asyncio.timeout(5):
            while True:
                with contextlib.suppress(BlockingIOError):
                    assert os.read(house.inside.serial["web"], 100) == b"\x00\xff\r\x03"
                    break
                await asyncio.sleep(0.01)
        os.write(house.inside.serial["web"], b"login: \xfe")
        assert await read_until(xterm, b"\xfe") == b"login: \xfe"


async def test_newest_user_takes_a_serial_console_over(house: House) -> None:
    first, second = [await ticket_to(house, "web", CONSOLE_KIND_SERIAL) for _ in range(2)]
    async with opened(house, address(first)) as loser:
        await eventually(lambda: house.inside.serial)
        async with opened(house, address(second)) as winner:
            code, reason = await closing(loser)
            assert (code, "another user" in reason) == (4000, True)
            os.write(house.inside.serial["web"], b"yours")
            assert await read_until(winner, b"yours") == b"yours"


async def test_console_that_the_guest_has_not_is_closed_with_the_reason(house: House) -> None:
    ticket = await ticket_to(house, "web", CONSOLE_KIND_SPICE)
    async with opened(house, address(ticket)) as client:
        code, reason = await closing(client)
    assert code == 4004
    assert "has no SPICE console" in reason


async def test_sdk_opens_a_console(house: House) -> None:
    ticket = await house.gugus.access.console_ticket("db")
    assert ticket.kind == CONSOLE_KIND_TERMINAL
    seen = b""
    async with house.gugus.access.console(ticket) as console:
        await console.write(b"exit\r")
        async for data in console:
            seen += data
        assert console.closed.code == 1000
    assert b"guest# " in seen


# Tickets


async def test_ticket_opens_once(house: House) -> None:
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    async with opened(house, address(ticket)):
        assert await refused(house, address(ticket)) == 401
    assert await refused(house, address(ticket)) == 401


async def test_ticket_ends_with_its_time(house: House) -> None:
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    house.clock.ahead_s = LIFETIME_S + 0.1
    assert await refused(house, address(ticket)) == 401


async def test_ticket_opens_no_other_guest_and_is_gone_by_the_try(house: House) -> None:
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    assert await refused(house, address(ticket, guest="web")) == 401
    assert await refused(house, address(ticket)) == 401


@pytest.mark.parametrize(
    "query", ["", "?ticket=", "?ticket=guess", "?ticket=a&ticket=b", "?other=1", "?" + "a=1&" * 50]
)
async def test_no_good_ticket_gets_nothing(house: House, query: str) -> None:
    assert await refused(house, f"wss://127.0.0.1:{house.gateway.port}/console/db{query}") == 401
    assert not house.events


async def test_ticket_does_not_open_a_later_guest_of_the_same_name(house: House) -> None:
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    house.state.objects[Guest, "db"].meta.uid = "another"
    async with opened(house, address(ticket)) as client:
        assert (await closing(client))[0] == 4004
    assert not house.events


async def test_ticket_of_a_manager_that_acts_no_more_opens_nothing(house: House) -> None:
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    house.acting.valid = False
    assert await refused(house, address(ticket)) == 503


async def test_nothing_opens_that_cannot_be_written_down(house: House) -> None:
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    house.state.down = True
    async with opened(house, address(ticket)) as client:
        assert (await closing(client))[0] == 4004


async def test_guests_that_do_not_run_and_consoles_they_never_have_get_no_ticket(house: House) -> None:
    house.state.objects[Guest, "web"].status.phase = GUEST_PHASE_STOPPED
    for name, kind, reason in (
        ("web", CONSOLE_KIND_SERIAL, "GUEST_NOT_RUNNING"),
        ("db", CONSOLE_KIND_VNC, "INVALID_ARGUMENT"),
        ("none", CONSOLE_KIND_VNC, "GUEST_NOT_FOUND"),
    ):
        with pytest.raises(GugusError) as caught:
            await ticket_to(house, name, kind)
        assert caught.value.reason == reason


def test_only_a_hash_of_a_ticket_is_kept_and_there_are_not_too_many() -> None:
    tickets = Tickets(lambda: 0.0)
    grant = Grant("web", "u", CONSOLE_KIND_VNC, "alice")
    made = [tickets.issue(grant) for _ in range(MAX_TICKETS_OF_USER)]
    assert len(set(made)) == MAX_TICKETS_OF_USER
    assert made[0] not in repr(vars(tickets))
    with pytest.raises(GugusError):
        tickets.issue(grant)
    tickets.issue(Grant("web", "u", CONSOLE_KIND_VNC, "bob"))
    assert tickets.redeem("web", made[0]) == grant
    tickets.clear()
    assert tickets.redeem("web", made[1]) is None


async def test_ticket_is_in_no_log(
    house: House, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    async with opened(house, address(ticket), logger=logging.getLogger("client-side-of-the-test")):
        pass
    await refused(house, address(ticket), logger=logging.getLogger("client-side-of-the-test"))
    lines = [record.getMessage() for record in caplog.records if record.name != "client-side-of-the-test"]
    said = capfd.readouterr()
    assert ticket.ticket not in "\n".join(lines) + said.out + said.err
    assert ticket.ticket not in str(house.events)


# Pages, methods, sizes


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1", "null"])
async def test_page_of_another_origin_opens_nothing_and_spends_no_ticket(house: House, origin: str) -> None:
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    assert await refused(house, address(ticket), origin=origin) == 403
    async with opened(house, address(ticket)):
        pass


async def test_page_of_an_origin_that_is_allowed_may_open_consoles(house: House) -> None:
    async with another_gateway(house, "https://ui.example") as gateway:
        for origin, status in (("https://evil.example", 403), ("https://ui.example", 0)):
            ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
            url = address(ticket).replace(f":{house.gateway.port}/", f":{gateway.port}/")
            if status:
                assert await refused(house, url, origin=origin) == status
            else:
                async with opened(house, url, origin=origin):
                    pass


async def answer(house: House, request: str) -> str:
    """Send a bare request; return the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.gateway.port, ssl=trusting(house.ca))
    writer.write(request.encode())
    async with asyncio.timeout(5):
        text = (await reader.read()).decode()
    writer.close()
    return text


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET / HTTP/1.1", 404),
        ("GET /console HTTP/1.1", 404),
        ("GET /../etc/passwd HTTP/1.1", 404),
        ("GET /console/db HTTP/1.1", 426),
    ],
)
async def test_there_is_nothing_but_consoles(house: House, request_line: str, status: int) -> None:
    said = await answer(house, f"{request_line}\r\nHost: x\r\n\r\n")
    assert said.startswith(f"HTTP/1.1 {status} ")
    assert "no-store" in said
    assert "Server:" not in said


async def test_plain_request_spends_no_ticket(house: House) -> None:
    ticket = await ticket_to(house, "db", CONSOLE_KIND_TERMINAL)
    said = await answer(house, f"GET /console/db?ticket={ticket.ticket} HTTP/1.1\r\nHost: x\r\n\r\n")
    assert " 426 " in said
    async with opened(house, address(ticket)):
        pass


@pytest.mark.parametrize("kind", [CONSOLE_KIND_VNC, CONSOLE_KIND_SERIAL])
async def test_oversized_message_closes(house: House, kind: ConsoleKind.ValueType) -> None:
    ticket = await ticket_to(house, "web", kind)
    async with opened(house, address(ticket)) as client:
        await client.send(b"x" * (bridge.MAX_MESSAGE_BYTES + 1))
        assert (await closing(client))[0] == 1009


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (CONSOLE_KIND_SERIAL, "ls"),
        (CONSOLE_KIND_SERIAL, "[1]"),
        (CONSOLE_KIND_SERIAL, '{"resize": [0, 10]}'),
        (CONSOLE_KIND_SERIAL, '{"resize": [true, "x"]}'),
        (CONSOLE_KIND_VNC, '{"resize": [80, 24]}'),
    ],
)
async def test_text_that_is_no_control_message_closes(house: House, kind: ConsoleKind.ValueType, text: str) -> None:
    ticket = await ticket_to(house, "web", kind)
    async with opened(house, address(ticket)) as client:
        await client.send(text)
        assert (await closing(client))[0] == 1008


async def test_old_tls_is_refused(house: House) -> None:
    context = trusting(house.ca)
    with warnings.catch_warnings(action="ignore"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", house.gateway.port, ssl=context)


# Pace and time


async def test_slow_reader_holds_the_guest_up_instead_of_memory(house: House) -> None:
    ticket = await ticket_to(house, "web", CONSOLE_KIND_VNC)
    async with opened(house, address(ticket), max_queue=1, max_size=None) as client:
        await eventually(lambda: house.inside.screens)
        screen, sent, stalled = house.inside.screens[0], 0, 0
        while stalled < 4:
            try:
                sent += screen.send(b"\0" * 65536)
                stalled = 0
                await asyncio.sleep(0)
            except BlockingIOError:
                stalled += 1
                await asyncio.sleep(0.1)
        assert sent < 32 << 20
        client.transport.abort()


async def test_guest_that_takes_nothing_holds_its_user_up_who_may_go(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PING_PERIOD_S", 1.0)
    monkeypatch.setattr(server, "PING_TIMEOUT_S", 2.0)
    async with another_gateway(house) as gateway:
        ticket = await ticket_to(house, "web", CONSOLE_KIND_VNC)
        url = address(ticket).replace(f":{house.gateway.port}/", f":{gateway.port}/")
        async with opened(house, url) as client:
            sent = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while sent < 64 << 20:
                        await client.send(b"\0" * 65536)
                        sent += 65536
            assert sent < 32 << 20
            client.transport.abort()
        await eventually(lambda: not gateway._server.connections)  # type: ignore[union-attr]


@contextlib.asynccontextmanager
async def another_gateway(house: House, *origins: str) -> AsyncIterator[server.Gateway]:
    """One with the time limits as they are now."""
    mine = credentials(house.ca, Role.MANAGER, "m1")
    gateway = server.Gateway(house.gateway._passage, house.tickets, mine, origins)
    await gateway.start("127.0.0.1", 0)
    yield gateway
    await gateway.stop()


async def test_idle_console_is_closed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "IDLE_S", 0.3)
    ticket = await ticket_to(house, "web", CONSOLE_KIND_SERIAL)
    async with opened(house, address(ticket)) as client:
        for _ in range(4):
            await asyncio.sleep(0.15)
            await client.send(b"x")
        assert client.close_code is None
        assert (await closing(client))[0] == 4001


async def test_too_many_consoles_are_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    first, second = [await ticket_to(house, "web", CONSOLE_KIND_VNC) for _ in range(2)]
    async with opened(house, address(first)):
        assert await refused(house, address(second)) == 503


async def test_silent_client_is_let_go(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects and asks for nothing does not stay."""
    monkeypatch.setattr(server, "OPEN_TIMEOUT_S", 0.3)
    async with another_gateway(house) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=trusting(house.ca))
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_manager_that_stops_says_so(house: House) -> None:
    ticket = await ticket_to(house, "web", CONSOLE_KIND_SERIAL)
    async with opened(house, address(ticket)) as client:
        await eventually(lambda: house.events)
        stopping = asyncio.create_task(house.gateway.stop())
        assert (await closing(client))[0] == server.STOPPING
        await stopping
