"""Access to containers: programs in them, their console, and files. See agent.compute.access.

Programs enter through lxc-attach(1), which gives them the container's namespaces, cgroup, capabilities and seccomp policy.
Files are read and written by a program of ours within the container's mounts and ids (`agent.compute.lxc.inside`).
"""

import asyncio
import os
import posixpath
import re
import signal
import termios
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from gugus.agent.v1 import access_pb2

from agent.access.programs import LocalProgram, ProgramConsole, spawn
from agent.compute.access import (
    CHUNK_BYTES,
    Command,
    Console,
    Exit,
    FileInfo,
    FileWish,
    Output,
    Program,
    Size,
    console_missing,
    failed,
    unsupported,
)
from agent.compute.lxc import helper, image
from agent.compute.lxc.cgroups import Cgroup
from agent.compute.lxc.config import NO_CONSOLE
from agent.compute.lxc.rootfs import Tree
from agent.compute.processes import ProcessRecord, record_of, send, threads_of

_SHELLS = ("/bin/bash", "/bin/sh")
_ESCAPE = "^_"  # lxc-console(1) ends on it and a following q; its default, ^a, is a key that shells use
_CARRIED = "GUGUS_GIVEN_"
"""Begins the names of variables on their way through lxc-attach, which runs as the host's root: under their own names
they would mean something to it (LD_PRELOAD, PATH), and as arguments all users of the host could read them."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TERM = "xterm-256color"
_HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_FOUND = 127
_WORDS = 400
_HEAD_BYTES = 256
_END_TIMEOUT_S = 3.0
_READY_TIMEOUT_S = 2.0
_POLL_S = 0.005

Running = Callable[[str], Awaitable[ProcessRecord]]
"""Returns a container's init. Raises GUEST_NOT_RUNNING."""


class LxcAccess:
    """The ability, for the containers of one lxcpath."""

    def __init__(self, lxc_path: Path, running: Running) -> None:
        self._path = lxc_path
        self._running = running

    async def open_console(self, name: str, kind: access_pb2.ConsoleKind.ValueType, size: Size) -> Console:
        """Open the container's console, or a shell of root's on a terminal of its own."""
        init = await self._awake(name)
        if kind == access_pb2.CONSOLE_KIND_SERIAL:
            if await asyncio.to_thread(self._has_no_console, name):
                raise console_missing(name, kind, "It was started to be able to move as it runs. It has terminals.")
            words = [f"--name={name}", f"--lxcpath={self._path}", "--tty=0", f"--escape={_ESCAPE}"]
            program = await spawn(["lxc-console", *words], size, {"PATH": _HOST_PATH, "TERM": _TERM})
            await _passes_through(program.pid)
            return ProgramConsole(program)
        if kind != access_pb2.CONSOLE_KIND_TERMINAL:
            raise console_missing(name, kind, "A container has a serial console and terminals.")
        shell = await asyncio.to_thread(_shell, init.pid)
        return ProgramConsole(await self._attach(name, init, Command((shell, "-l"), size=size)))

    async def execute(self, name: str, command: Command) -> Program:
        """Run a program."""
        return await self._attach(name, await self._awake(name), command)

    async def push_file(self, name: str, path: str, wish: FileWish, content: AsyncIterator[bytes]) -> FileInfo:
        """Put a file in place."""
        _check_path(name, "FILE_NOT_WRITTEN", path)
        init = await self._awake(name)
        numbers = ["-" if value is None else str(value) for value in (wish.mode, wish.uid, wish.gid)]
        process = await _inside(init.pid, "put", path, *numbers)
        try:
            async for chunk in content:
                if chunk and not await _give(process, chunk):
                    break
            await _give(process, b"")
            out, said = await process.communicate()
            if process.returncode:
                raise failed("FILE_NOT_WRITTEN", name, path, _words(said))
            return _info(out)
        finally:
            await _end(process)

    async def pull_file(self, name: str, path: str) -> tuple[FileInfo, AsyncGenerator[bytes, None]]:
        """Open a file."""
        _check_path(name, "FILE_NOT_READ", path)
        init = await self._awake(name)
        process = await _inside(init.pid, "get", path)
        try:
            assert process.stdout is not None
            head = await process.stdout.readline()
            if not head:
                assert process.stderr is not None
                raise failed("FILE_NOT_READ", name, path, _words(await process.stderr.read()))
        except BaseException:
            await _end(process)
            raise
        return _info(head), _content(process, name, path)

    async def freeze(self, name: str, timeout_s: float) -> int:
        """Refuse: a container's file systems are the host's, and a snapshot holds its processes instead."""
        raise unsupported("holds no file systems of containers", "lxc")

    async def thaw(self, name: str) -> None:
        """Nothing is ever held."""

    async def _attach(self, name: str, init: ProcessRecord, command: Command) -> Program:
        tree_of = Path(f"/proc/{init.pid}/root")
        try:
            uid, gid, home = await asyncio.to_thread(_account, tree_of, command.user)
        except (OSError, ValueError) as error:
            raise failed("EXECUTE_FAILED", name, command.argv[0] if command.argv else "", str(error)) from error
        given = {"PATH": image.DEFAULT_PATH, "HOME": home, "USER": command.user or "root", "LANG": "C.UTF-8"}
        given |= {"TERM": _TERM} if command.size is not None else {}
        if wrong := sorted(key for key in command.environment if not _VARIABLE.fullmatch(key)):
            raise failed("EXECUTE_FAILED", name, command.argv[0], f'"{wrong[0]}" cannot be the name of a variable')
        if not await asyncio.to_thread(_is_there, tree_of, command, name):
            return NotFound(command)
        argv = ["lxc-attach", f"--name={name}", f"--lxcpath={self._path}", "--clear-env"]
        argv += [f"--set-var={key}={value}" for key, value in given.items()]
        argv += [f"--keep-var={_CARRIED}{key}" for key in command.environment]
        argv += [f"--uid={uid}", f"--gid={gid}"] if uid or gid else []
        argv += ["--", *_prepared(command)]
        carried = {f"{_CARRIED}{key}": value for key, value in command.environment.items()}
        program = await spawn(argv, command.size, {"PATH": _HOST_PATH, "TERM": _TERM} | carried)
        if command.size is not None:
            await _passes_through(program.pid)
        return Attached(program)

    def _has_no_console(self, name: str) -> bool:
        """Whether it was started without: its file is made anew at each start."""
        try:
            return NO_CONSOLE in (self._path / name / "config").read_text().splitlines()
        except OSError:
            return False

    async def _awake(self, name: str) -> ProcessRecord:
        """Return the init of a container that runs and is not held. Raises GUEST_NOT_RUNNING, GUEST_HELD."""
        init = await self._running(name)
        try:
            held = await asyncio.to_thread(lambda: Cgroup(init.pid, name).frozen)
        except OSError:
            held = False
        if held:
            raise failed("GUEST_HELD", name, "it is suspended", "nothing runs in it until it is resumed")
        return init


class Attached:
    """A program in a container. What the host runs is lxc-attach, whose child it is."""

    def __init__(self, outside: LocalProgram) -> None:
        self._outside = outside
        self.read, self.write, self.end_input = outside.read, outside.write, outside.end_input
        self.resize, self.wait = outside.resize, outside.wait

    async def signal(self, number: int) -> None:
        """Signal the program itself."""
        for child in self._children():
            send(child, number)

    async def close(self) -> None:
        """Kill the program, then lxc-attach, which waits for it."""
        children = self._children()
        for child in children:
            send(child, signal.SIGKILL)
        if children:  # it reaps them; until that is done the container could not end
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_TIMEOUT_S):
                    await self._outside.wait()
        await self._outside.close()

    def _children(self) -> list[ProcessRecord]:
        pid = self._outside.pid
        found: list[ProcessRecord] = []
        with suppress(OSError):
            for thread in threads_of(pid):
                records = (record_of(int(child)) for child in (thread / "children").read_text().split())
                found += [record for record in records if record is not None]
        return found


class NotFound:
    """A program that the container does not have: what a shell would say of it, in words of its own."""

    def __init__(self, command: Command) -> None:
        words = f"{command.argv[0]}: not found in the container\n".encode()
        self._said: list[Output] = [Output(words, error=command.size is None)]

    async def read(self) -> Output | None:
        """Return the words, once."""
        return self._said.pop() if self._said else None

    async def write(self, data: bytes) -> None:
        """Nobody reads it."""

    async def end_input(self) -> None:
        """Nobody reads it."""

    async def resize(self, size: Size) -> None:
        """There is no terminal."""

    async def signal(self, number: int) -> None:
        """Nothing runs."""

    async def wait(self) -> Exit:
        """Return what shells do."""
        return Exit(_NOT_FOUND)

    async def close(self) -> None:
        """Nothing runs."""


def _prepared(command: Command) -> list[str]:
    """Return the command to run inside, with a shell before it that takes over what was carried in, where it is needed."""
    words = [f'{name}="${_CARRIED}{name}"; export {name}; unset {_CARRIED}{name}' for name in command.environment]
    words += ['cd -- "$0"'] if command.folder else []
    if not words:
        return list(command.argv)
    return ["/bin/sh", "-c", " && ".join([*words, 'exec "$@"']), command.folder or "sh", *command.argv]


async def _passes_through(pid: int) -> None:
    """Wait until a program of liblxc's has made its terminal pass everything to the one inside, and let nothing be done twice.

    What is typed before would be thrown away (it sets its terminal with TCSAFLUSH), and it leaves ONLCR on, which the
    terminal inside does already.
    """
    end = asyncio.get_running_loop().time() + _READY_TIMEOUT_S
    with suppress(OSError, termios.error):  # it ended
        terminal = os.open(f"/proc/{pid}/fd/0", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while termios.tcgetattr(terminal)[3] & termios.ICANON and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
            modes = termios.tcgetattr(terminal)
            modes[1] &= ~termios.ONLCR
            termios.tcsetattr(terminal, termios.TCSANOW, modes)
        finally:
            os.close(terminal)


async def _inside(pid: int, *words: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *helper.argv(pid, *words),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=helper.environment(),
        start_new_session=True,
        limit=CHUNK_BYTES,
    )


async def _give(process: asyncio.subprocess.Process, piece: bytes) -> bool:
    """Give a piece of content, after its length; return whether it was taken. One that ended early says why by itself."""
    assert process.stdin is not None
    try:
        process.stdin.write(len(piece).to_bytes(4, "big") + piece)
        await process.stdin.drain()
    except ConnectionError:
        return False
    return True


async def _content(process: asyncio.subprocess.Process, name: str, path: str) -> AsyncGenerator[bytes, None]:
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        while chunk := await process.stdout.read(CHUNK_BYTES):
            yield chunk
        if await process.wait():
            raise failed("FILE_NOT_READ", name, path, _words(await process.stderr.read()))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the helper: without its input it cleans up after itself; one that does not, or only reads, is killed."""
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


def _shell(pid: int) -> str:
    """Return root's login shell, or another one that is there."""
    with Tree(Path(f"/proc/{pid}/root"), 0) as tree:
        fields = next(
            (line.split(":") for line in (tree.read("etc/passwd") or "").splitlines() if line.startswith("root:")), []
        )
        wanted = [fields[6]] if len(fields) > 6 and fields[6].startswith("/") else []
        return next((shell for shell in (*wanted, *_SHELLS) if tree.has(shell)), _SHELLS[-1])


def _is_there(root: Path, command: Command, name: str) -> bool:
    """Whether the container has a program. Raises EXECUTE_FAILED when it has no such folder to run it in."""
    with Tree(root, 0) as tree:
        if command.folder and not tree.has_folder(command.folder) and not _is_untold(command.folder):
            raise failed("EXECUTE_FAILED", name, command.folder, "the container has no such folder")
        program, folder = command.argv[0], command.folder or "/"
        places = command.environment.get("PATH", image.DEFAULT_PATH).split(":") if "/" not in program else [""]
        paths = [posixpath.join("/", folder, place, program) for place in places]
        return any(_is_untold(path) or tree.has(path) for path in paths)


def _is_untold(path: str) -> bool:
    """Whether only the container's own processes can tell what is at a path: /proc shows each its own."""
    return posixpath.normpath(path).startswith("/proc")


def _account(root: Path, user: str) -> tuple[int, int, str]:
    with Tree(root, 0) as tree:
        uid, gid = image.ids_of(tree, user)
        return uid, gid, image.home_of(tree, uid)


def _check_path(name: str, reason: str, path: str) -> None:
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise failed(reason, name, path[:80], "it is no absolute path of a file")


def _info(line: bytes) -> FileInfo:
    size, mode, uid, gid = map(int, line.split())
    return FileInfo(size, mode, uid, gid)


def _words(said: bytes) -> str:
    return said.decode(errors="replace").strip()[-_WORDS:] or "the program that carries it ended"
