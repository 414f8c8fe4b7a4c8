"""The inside of guests: consoles as noVNC and xterm.js open them, programs, files, and the command line on a terminal."""

import asyncio
import hashlib
import os
import pty
import select
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from gugus.agent.v1.access_pb2 import CONSOLE_KIND_SERIAL, CONSOLE_KIND_VNC
from gugus.cluster.v1.access_pb2 import ConsoleTicket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from client import access
from common.errors import GugusError
from lab import demo_guests
from lab.cluster import operator_config
from tests.lab.conftest import BOOT_SECONDS, Room

PATIENCE_S = 15.0
RFB = b"RFB 003.008\n"


def trusting(room: Room) -> ssl.SSLContext:
    """TLS of a browser that trusts the cluster's CA and verifies the address."""
    return ssl.create_default_context(cafile=str(operator_config(room.lab.plan).parent / "ca.crt"))


def browse(room: Room, ticket: ConsoleTicket) -> connect:
    """Open a console as a page does."""
    address = f"{ticket.url}?ticket={ticket.ticket}"
    return connect(address, ssl=trusting(room), subprotocols=["binary"], compression=None, proxy=None)  # type: ignore[list-item]


async def read(socket: ClientConnection, text: bytes) -> bytes:
    """Read until a text has come."""
    seen = b""
    async with asyncio.timeout(PATIENCE_S):
        while text not in seen:
            message = await socket.recv()
            assert isinstance(message, bytes)
            seen += message
    return seen


async def shake_hands(socket: ClientConnection) -> tuple[int, int, str]:
    """Begin RFB as noVNC does (RFC 6143, section 7.1 to 7.3); return width, height and name of the screen."""
    buffer = bytearray()

    async def take(count: int) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            while len(buffer) < count:
                buffer.extend(await socket.recv())  # type: ignore[arg-type]
        taken = bytes(buffer[:count])
        del buffer[:count]
        return taken

    assert await take(12) == RFB
    await socket.send(RFB)
    kinds = await take((await take(1))[0])
    assert 1 in kinds  # none: the ticket was the authentication
    await socket.send(b"\x01")
    assert await take(4) == bytes(4)
    await socket.send(b"\x01")  # shared
    width, height = struct.unpack(">HH", await take(4))
    await take(16)
    name = await take(struct.unpack(">I", await take(4))[0])
    await socket.send(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
    assert (await take(4))[0] == 0  # an update of the screen
    return width, height, name.decode()


async def look_into(room: Room) -> None:
    tickets = room.gugus.access.console_ticket
    ticket = await tickets("web", CONSOLE_KIND_SERIAL)
    async with browse(room, ticket) as xterm:
        await xterm.send('{"resize": [100, 30]}')
        await xterm.send(b"\recho $((6*7))-$(hostname)\r")
        await read(xterm, b"42-web")
    with pytest.raises(InvalidStatus) as caught:
        async with browse(room, ticket):
            pass
    assert caught.value.response.status_code == 401
    async with browse(room, await tickets("web", CONSOLE_KIND_VNC)) as novnc:
        assert novnc.subprotocol == "binary"
        width, height, name = await shake_hands(novnc)
        assert (width > 0, height > 0, name) == (True, True, "QEMU (web)")


def test_a_virtual_machine_shows_its_serial_port_and_its_screen(room: Room) -> None:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.virtual_machine.display.model = "std"
    room.create("web", spec)
    room.operator.wait("its shell", lambda: "built-in shell" in room.operator.console_log("web"), BOOT_SECONDS)
    room.operator.run(look_into(room))
    opened = [event.message for event in room.operator.events() if event.reason == "GUEST_CONSOLE_OPENED"]
    assert opened == ["its serial console was opened by operator admin", "its VNC screen was opened by operator admin"]
    with pytest.raises(GugusError) as caught:
        room.operator.run(access.run(room.gugus.access, "web", ["true"]))
    assert caught.value.reason == "GUEST_AGENT_MISSING"


async def carry(room: Room) -> None:
    inside = room.gugus.access
    data = os.urandom(5_000_001)

    async def content() -> AsyncIterator[bytes]:
        for at in range(0, len(data), access.PIECE_BYTES):
            yield data[at : at + access.PIECE_BYTES]

    placed = await inside.push("db", "/root/file", content(), mode=0o640, uid=5, gid=6)
    assert (placed.size_bytes, placed.mode, placed.uid, placed.gid) == (len(data), 0o640, 5, 6)
    code, stdout, _ = await access.run(inside, "db", ["sha256sum", "/root/file"])
    assert (code, stdout.split()[0].decode()) == (0, hashlib.sha256(data).hexdigest())
    async with aclosing(inside.pull("db", "/root/file")) as pieces:
        assert b"".join([piece async for piece in pieces]) == data
    script = 'read word; echo "$word $(id -u)"; echo err >&2; exit 7'
    assert await access.run(inside, "db", ["sh", "-c", script], input=b"hello\n") == (7, b"hello 0\n", b"err\n")
    assert (await access.run(inside, "db", ["sh", "-c", "kill -9 $$"]))[0] == 137


def on_terminal(room: Room, keys: bytes, *words: str) -> tuple[int, str]:
    """Run the command line on a terminal of its own, type something once it shows a prompt; return its exit code and what was shown."""
    ours, theirs = pty.openpty()
    command = ["setsid", "--ctty", sys.executable, "-c", "from client.cli import main; main()", *words]
    environment = {**os.environ, "GUGUS_CONFIG": str(operator_config(room.lab.plan))}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown, end = b"", time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
        if keys and b"# " in shown:
            os.write(ours, keys)
            keys = b""
    os.close(ours)
    return process.wait(PATIENCE_S), shown.decode(errors="replace")


def test_a_container_runs_programs_and_carries_files(room: Room) -> None:
    room.create("db", demo_guests.container_spec("n1", ha=False))
    room.wait_running("db", "n1")
    room.operator.run(carry(room))
    code, shown = on_terminal(room, b"echo $((6*7))-$(hostname); exit 5\r", "guest", "exec", "-t", "db", "--", "sh")
    assert (code, "42-db" in shown) == (5, True)
    code, shown = on_terminal(room, b"echo $((6*7))\r\x1d", "guest", "console", "db")
    assert code == 0
    assert "Ctrl-] leaves" in shown
    assert "left the console of db" in shown
