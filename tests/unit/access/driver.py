"""A simulated hypervisor whose guests can be entered: programs of this machine, files of a folder, consoles whose guest is the test."""

import asyncio
import os
import socket
import tty
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

from gugus.agent.v1 import access_pb2

from agent.access.programs import ProgramConsole, spawn
from agent.access.streams import FdConsole
from agent.compute.access import Command, Console, FileInfo, FileWish, Program, Size, console_missing, failed
from agent.compute.kvm.keys import keycodes
from agent.compute.simulated import SimulatedHypervisor

PIECE_BYTES = 32 * 1024


class HostAccess:
    """An `Access`. serial: the guest's end of the serial port of each guest; screens: of each screen that was opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.serial: dict[str, int] = {}
        self._ports: dict[str, str] = {}
        self.screens: list[socket.socket] = []
        self.programs: list[Program] = []
        self.pushing = asyncio.Event()
        self.pressed: list[int] = []

    async def open_console(self, name: str, kind: access_pb2.ConsoleKind.ValueType, size: Size) -> Console:
        if kind == access_pb2.CONSOLE_KIND_VNC:
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self.screens.append(theirs)
            return FdConsole(ours.detach())
        if kind == access_pb2.CONSOLE_KIND_SERIAL:
            if name not in self.serial:
                self.serial[name], port = os.openpty()
                tty.setraw(port)
                os.set_blocking(self.serial[name], False)
                self._ports[name] = os.ttyname(port)
            return FdConsole(os.open(self._ports[name], os.O_RDWR | os.O_NOCTTY))
        if kind == access_pb2.CONSOLE_KIND_TERMINAL:
            return ProgramConsole(await spawn(["/bin/sh", "-i"], size, {"PS1": "guest# ", "PATH": os.environ["PATH"]}))
        raise console_missing(name, kind, "Give it one.")

    async def execute(self, name: str, command: Command) -> Program:
        environment = {"PATH": os.environ["PATH"], **command.environment}
        program = await spawn(command.argv, command.size, environment)
        self.programs.append(program)
        return program

    async def push_file(self, name: str, path: str, wish: FileWish, content: AsyncIterator[bytes]) -> FileInfo:
        target = self.folder / path.lstrip("/")
        work = target.with_name(".work")
        try:
            with work.open("wb") as file:
                async for piece in content:
                    self.pushing.set()
                    file.write(piece)
            work.chmod(wish.mode if wish.mode is not None else 0o644)
            work.replace(target)
        except FileNotFoundError as error:
            raise failed("FILE_NOT_WRITTEN", name, path, "its folder does not exist") from error
        finally:
            work.unlink(missing_ok=True)
        return self._info(target)

    async def pull_file(self, name: str, path: str) -> tuple[FileInfo, AsyncGenerator[bytes, None]]:
        source = self.folder / path.lstrip("/")
        if not source.is_file():
            raise failed("FILE_NOT_READ", name, path, "there is no such file")

        async def content() -> AsyncGenerator[bytes, None]:
            with source.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece

        return self._info(source), content()

    async def send_keys(self, name: str, keys: Sequence[str]) -> None:
        self.pressed += keycodes(keys)

    async def freeze(self, name: str, timeout_s: float) -> int:
        return 1

    async def thaw(self, name: str) -> None:
        return None

    def _info(self, path: Path) -> FileInfo:
        status = path.stat()
        return FileInfo(status.st_size, status.st_mode & 0o7777, status.st_uid, status.st_gid)


class Enterable(SimulatedHypervisor):
    """The simulated hypervisor with that ability."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "state", folder / "run")
        guest = folder / "guest"
        guest.mkdir(parents=True)
        self.inside = HostAccess(guest)
        self.access = self.inside  # type: ignore[assignment]
