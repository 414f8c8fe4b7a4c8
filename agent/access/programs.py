"""Programs of this host as a `Program`, for drivers that enter a guest by one (`lxc-attach`): with pipes, or on a terminal."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Protocol

from agent.access.streams import FdConsole, set_size
from agent.compute.access import Exit, Output, Program, Size
from common.errors import GugusError, precondition

REAP_TIMEOUT_S = 2.0
"""How long a killed program may take to vanish; one that is stuck in the kernel is left behind."""

_END_OF_TRANSMISSION = b"\x04"
_SETSID = ("setsid", "--ctty")
"""Makes the terminal the program's own, so that it learns of sizes and Ctrl-C (util-linux; it does not fork here)."""


class LocalProgram(Program, Protocol):
    """A `Program` that is a process of this host."""

    @property
    def pid(self) -> int:
        """Its process id; what it started in a guest is a child of that."""


async def spawn(argv: Sequence[str], size: Size | None, environment: Mapping[str, str] | None = None) -> LocalProgram:
    """Start a program of this host, on a terminal of this size or with pipes (None). Raises EXECUTE_FAILED."""
    try:
        return await (_on_pipes(argv, environment) if size is None else _on_terminal(argv, size, environment))
    except OSError as error:
        raise cannot(argv[0], error.strerror or str(error)) from error


def cannot(program: str, words: str) -> GugusError:
    """Return the error for a program that cannot be run."""
    return precondition("EXECUTE_FAILED", f"{program} cannot be run: {words.rstrip('.')}.")


def outcome(returncode: int) -> Exit:
    """Return how a process ended, from Popen's number (negative: a signal)."""
    return Exit(returncode) if returncode >= 0 else Exit(128 - returncode, -returncode)


class _Local:
    """What both kinds share. The program leads a session of its own: a signal reaches all of it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def signal(self, number: int) -> None:
        """Signal the program's process group."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(self._process.pid, number)

    async def wait(self) -> Exit:
        """Wait for its end."""
        return outcome(await self._process.wait())

    async def _kill(self) -> None:
        if self._process.returncode is not None:
            return
        await self.signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REAP_TIMEOUT_S):
                await self._process.wait()


class _Piped(_Local):
    """A program with three pipes; pipes of our own, for asyncio's read ahead and complain of what was not read to its end."""

    def __init__(self, process: asyncio.subprocess.Process, stdin: int, stdout: int, stderr: int) -> None:
        super().__init__(process)
        self._stdin = FdConsole(stdin)
        self._outputs = (FdConsole(stdout), FdConsole(stderr))
        self._reads = {asyncio.ensure_future(pipe.read()): pipe for pipe in self._outputs}

    async def read(self) -> Output | None:
        """Return what either pipe has first."""
        while self._reads:
            done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                pipe = self._reads.pop(task)
                if data := task.result():
                    self._reads[asyncio.ensure_future(pipe.read())] = pipe
                    return Output(data, error=pipe is self._outputs[1])
        return None

    async def write(self, data: bytes) -> None:
        """Write to its standard input."""
        await self._stdin.write(data)

    async def end_input(self) -> None:
        """Close its standard input."""
        await self._stdin.close()

    async def resize(self, size: Size) -> None:
        """There is no terminal."""

    async def close(self) -> None:
        """Kill it."""
        for pipe in (self._stdin, *self._outputs):
            await pipe.close()
        await asyncio.gather(*self._reads, return_exceptions=True)
        await self._kill()


class _OnTerminal(_Local):
    """A program on a terminal."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        super().__init__(process)
        self._terminal = FdConsole(master, terminal=True)

    async def read(self) -> Output | None:
        """Return what it shows."""
        data = await self._terminal.read()
        return Output(data) if data else None

    async def write(self, data: bytes) -> None:
        """Type."""
        await self._terminal.write(data)

    async def end_input(self) -> None:
        """Type Ctrl-D."""
        await self._terminal.write(_END_OF_TRANSMISSION)

    async def resize(self, size: Size) -> None:
        """Set the terminal's size."""
        await self._terminal.resize(size)

    async def close(self) -> None:
        """Take the terminal away, which hangs up what runs on it, and kill it."""
        await self._terminal.close()
        await self._kill()


class ProgramConsole:
    """A program on a terminal as a `Console`: a shell in a container."""

    def __init__(self, program: "_Readable") -> None:
        self._program = program
        self.write, self.resize, self.close = program.write, program.resize, program.close

    async def read(self) -> bytes:
        """Return what it shows; b"" once it has ended."""
        output = await self._program.read()
        return output.data if output else b""


class _Readable(Protocol):
    """The part of `Program` that a console needs."""

    async def read(self) -> Output | None: ...
    async def write(self, data: bytes) -> None: ...
    async def resize(self, size: Size) -> None: ...
    async def close(self) -> None: ...


async def _on_pipes(argv: Sequence[str], environment: Mapping[str, str] | None) -> LocalProgram:
    (stdin, feed), (out, stdout), (err, stderr) = [os.pipe() for _ in range(3)]
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
        )
    except BaseException:
        for fd in (feed, out, err):
            os.close(fd)
        raise
    finally:
        for fd in (stdin, stdout, stderr):
            os.close(fd)
    return _Piped(process, feed, out, err)


async def _on_terminal(argv: Sequence[str], size: Size, environment: Mapping[str, str] | None) -> LocalProgram:
    master, slave = os.openpty()
    try:
        set_size(slave, size)
        process = await asyncio.create_subprocess_exec(
            *_SETSID, *argv, stdin=slave, stdout=slave, stderr=slave, env=environment
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return _OnTerminal(process, master)
