"""Access to virtual machines: screens and ports of the running domain, programs and files through the guest agent.

Screens need no port of the host: libvirt hands out a connection to QEMU's VNC or SPICE server (virDomainOpenGraphicsFD). Serial ports are
pseudo-terminals, read directly, so that a console outlives a restart of libvirtd.
"""

import os
import termios
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import libvirt
from gugus.agent.v1 import access_pb2

from agent.access.streams import FdConsole
from agent.compute.access import (
    Command,
    Console,
    FileInfo,
    FileWish,
    Program,
    Size,
    console_missing,
    unsupported,
)
from agent.compute.kvm import agent_files
from agent.compute.kvm.agent_program import CapturedProgram, StreamedProgram
from agent.compute.kvm.freezing import Freezing
from agent.compute.kvm.guest_agent import WINDOWS, Call, GuestAgent, domain_of, live_devices
from agent.compute.kvm.keys import keycodes
from common.errors import internal

DRIVER = "kvm"
KEY_HOLD_MS = 100
"""How long keys are held down, as long as a person does (`virsh send-key` has 50)."""

_SCREENS = {access_pb2.CONSOLE_KIND_VNC: "vnc", access_pb2.CONSOLE_KIND_SPICE: "spice"}
_REMEDIES = {
    access_pb2.CONSOLE_KIND_VNC: "Give it a screen (virtual_machine.display.model), and start it anew.",
    access_pb2.CONSOLE_KIND_SPICE: "Set virtual_machine.display.spice, and start it anew.",
    access_pb2.CONSOLE_KIND_TERMINAL: "Set virtual_machine.virtio_console and start it anew, or use its serial console.",
}


class KvmAccess:
    """The ability as `agent.compute.access.Access` describes it. folder: of this boot, for what must be thawed again."""

    def __init__(self, call: Call, folder: Path) -> None:
        self._call = call
        self._agent = GuestAgent(call)
        self._freezing = Freezing(self._agent, folder)

    async def open(self) -> None:
        """Thaw what an agent process before this one may have left frozen."""
        await self._freezing.open()

    async def close(self) -> None:
        """Thaw what is frozen, as far as that is quickly done."""
        await self._freezing.close()

    async def open_console(self, name: str, kind: access_pb2.ConsoleKind.ValueType, size: Size) -> Console:
        """Open a screen or a port."""
        if kind in _SCREENS:
            return FdConsole(await self._on_domain(name, lambda domain: _screen(domain, name, kind)))
        path = await self._on_domain(name, lambda domain: _port(domain, name, kind))
        return FdConsole(_open_terminal(name, path))

    async def execute(self, name: str, command: Command) -> Program:
        """Run a program by the guest agent."""
        if command.size is not None:
            remedy = f"`gugus guest console {name}` gives a terminal; programs run without one (no --tty)."
            raise unsupported("gives programs in virtual machines no terminal", DRIVER, remedy)
        windows = await self._agent.system(name) == WINDOWS
        return (CapturedProgram if windows else StreamedProgram)(self._agent, name, command)

    async def push_file(self, name: str, path: str, wish: FileWish, content: AsyncIterator[bytes]) -> FileInfo:
        """Write a file by the guest agent."""
        return await agent_files.push(self._agent, name, path, wish, content)

    async def pull_file(self, name: str, path: str) -> tuple[FileInfo, AsyncGenerator[bytes, None]]:
        """Read a file by the guest agent."""
        return await agent_files.pull(self._agent, name, path)

    async def send_keys(self, name: str, keys: Sequence[str]) -> None:
        """Press keys."""
        codes = keycodes(keys)

        def press(domain: Any) -> None:
            domain.sendKey(libvirt.VIR_KEYCODE_SET_LINUX, KEY_HOLD_MS, codes, len(codes), 0)

        await self._on_domain(name, press)

    async def freeze(self, name: str, timeout_s: float) -> int:
        """Freeze file systems by the guest agent."""
        return await self._freezing.freeze(name, timeout_s)

    async def thaw(self, name: str) -> None:
        """Thaw them."""
        await self._freezing.thaw(name)

    async def _on_domain(self, name: str, ask: Callable[[Any], Any]) -> Any:
        return await self._call(lambda connection: ask(domain_of(connection, name)))


def _screen(domain: Any, name: str, kind: access_pb2.ConsoleKind.ValueType) -> int:
    """Return a descriptor connected to a screen, in a thread of libvirt's pool."""
    kinds = [graphics.get("type") for graphics in live_devices(domain).findall("graphics")]
    if _SCREENS[kind] not in kinds:
        raise console_missing(name, kind, _REMEDIES[kind])
    return int(domain.openGraphicsFD(kinds.index(_SCREENS[kind]), libvirt.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH))


def _port(domain: Any, name: str, kind: access_pb2.ConsoleKind.ValueType) -> str:
    """Return the path of a port's pseudo-terminal."""
    devices = live_devices(domain)
    if kind == access_pb2.CONSOLE_KIND_SERIAL:
        ports = devices.findall("serial[@type='pty']")
    else:
        ports = [
            port for port in devices.findall("console[@type='pty']")
            if (target := port.find("target")) is not None and target.get("type") == "virtio"
        ]  # fmt: skip
    source = ports[0].find("source") if ports else None
    path = source.get("path", "") if source is not None else ""
    if not path:
        raise console_missing(name, kind, _REMEDIES.get(kind, "Start it anew."))
    return path


def _open_terminal(name: str, path: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise internal("CONSOLE_NOT_OPENED", f'the console of guest "{name}" cannot be opened: {error}.') from error
    termios.tcflush(fd, termios.TCIFLUSH)  # what came while nobody looked is in the log
    return fd
