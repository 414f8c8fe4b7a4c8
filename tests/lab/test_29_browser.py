"""Consoles in a browser: noVNC and xterm.js as they come, in a headless Chromium that trusts the cluster's authority and verifies TLS."""

import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from gugus.agent.v1.access_pb2 import CONSOLE_KIND_SERIAL, CONSOLE_KIND_TERMINAL, CONSOLE_KIND_VNC, ConsoleKind

from lab import demo_guests
from lab.cluster import operator_config
from tests.lab.browser.chromium import Page, chromium, why_not
from tests.lab.conftest import BOOT_SECONDS, Room

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no browser: {why_not()}")

ROWS = "document.querySelector('.xterm-rows').innerText.replaceAll('\\u00a0', ' ')"
"""What a person reads on the screen of xterm.js."""

COLOURS = """(() => {
    const canvas = document.querySelector("canvas"), {width, height} = canvas;
    return new Set(new Uint32Array(canvas.getContext("2d").getImageData(0, 0, width, height).data.buffer)).size;
})()"""
"""How many colours a person sees on the screen of noVNC; a blank one has one."""


def browser(room: Room, home: Path) -> AbstractAsyncContextManager[Page]:
    return chromium(home, operator_config(room.lab.plan).parent / "ca.crt")


async def ticket(room: Room, name: str, kind: ConsoleKind.ValueType) -> tuple[str, str]:
    """Return the gateway's own origin, where the web UI will be, and a console's address with its ticket."""
    made = await room.gugus.access.console_ticket(name, kind)
    return made.url.replace("wss:", "https:").partition("/console/")[0], f"{made.url}?ticket={made.ticket}"


async def open_xterm(page: Page, room: Room, name: str, kind: ConsoleKind.ValueType) -> None:
    origin, url = await ticket(room, name, kind)
    await page.open(f"{origin}/xterm.html#{url}")
    await page.until("window.seen?.some(([what]) => what == 'open')")


async def look_at_the_machine(room: Room, home: Path) -> None:
    async with browser(room, home) as page:
        await open_xterm(page, room, "web", CONSOLE_KIND_SERIAL)
        await page.type("\necho hello-$((40+2))\n")
        await page.until(f"{ROWS}.includes('hello-42')")
        await page.type("setsid -c sh </dev/tty1 >/dev/tty1 2>&1 &\n")  # a shell on the screen

        origin, url = await ticket(room, "web", CONSOLE_KIND_VNC)
        await page.open(f"{origin}/novnc.html#{url}")
        seen = await page.until("window.seen?.some(([what]) => what == 'desktopname') && window.seen")
        assert sorted(map(tuple, seen)) == [("connect", ""), ("desktopname", "QEMU (web)")]
        width, height = await page.value("(({width, height}) => [width, height])(document.querySelector('canvas'))")
        assert (width >= 640, height >= 350) == (True, True)
        before = await page.until(f"{COLOURS} > 1 && document.querySelector('canvas').toDataURL()")
        await page.type("touch /run/typed-by-a-person\n")
        await page.until(f"document.querySelector('canvas').toDataURL() != {json.dumps(before)}")

        await open_xterm(page, room, "web", CONSOLE_KIND_SERIAL)
        await page.type("\nuntil ls /run | grep person; do sleep 1; done\n")
        await page.until(f"{ROWS}.includes('typed-by-a-person')")


def test_novnc_shows_a_screen_and_types_and_xterm_a_serial_port(room: Room, tmp_path: Path) -> None:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.virtual_machine.display.model = "std"
    room.create("web", spec)
    room.operator.wait("its shell", lambda: "built-in shell" in room.operator.console_log("web"), BOOT_SECONDS)
    room.operator.run(look_at_the_machine(room, tmp_path))


async def look_at_the_container(room: Room, home: Path) -> None:
    async with browser(room, home) as page:
        await open_xterm(page, room, "db", CONSOLE_KIND_TERMINAL)
        await page.type("echo hello-$((40+2))\n")
        await page.until(f"{ROWS}.includes('hello-42')")
        await page.value("terminal.resize(100, 30)")
        await page.type("stty size; printf '\\303\\251t\\303\\251 %s\\n' $(hostname)\n")
        await page.until(f"{ROWS}.includes('30 100') && {ROWS}.includes('été db')")
        await page.type("exit\n")
        assert await page.until("window.seen.find(([what]) => what == 'close')") == ["close", 1000]


def test_xterm_is_a_terminal_of_a_container(room: Room, tmp_path: Path) -> None:
    room.create("db", demo_guests.container_spec("n1", ha=False))
    room.wait_running("db", "n1")
    room.operator.run(look_at_the_container(room, tmp_path))


async def look_from_elsewhere(room: Room, home: Path) -> None:
    async with browser(room, home) as page:
        origin, url = await ticket(room, "db", CONSOLE_KIND_TERMINAL)
        await page.open(f"https://evil.example/xterm.html#{url}")
        assert await page.until("window.seen?.length && window.seen") == [["close", 1006]]
        await page.open(f"{origin}/xterm.html#{url}")  # which has spent no ticket
        await page.until("window.seen?.some(([what]) => what == 'open')")
        await page.open(f"{origin}/xterm.html#{url}")  # and now it is spent
        assert await page.until("window.seen?.length && window.seen") == [["close", 1006]]


def test_a_page_of_another_origin_opens_nothing(room: Room, tmp_path: Path) -> None:
    room.create("db", demo_guests.container_spec("n1", ha=False))
    room.wait_running("db", "n1")
    room.operator.run(look_from_elsewhere(room, tmp_path))
