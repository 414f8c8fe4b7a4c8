"""Programs in a virtual machine, run by the guest agent.

A program begins when its input is complete: that goes into a file in the guest, for a command to the agent is short
(`guest_agent.MAX_COMMAND_BYTES`). What it writes goes through two files in the guest, which are read as they grow: asked for the output
itself, the agent gives it all in one answer at the end, and libvirt gives an agent up for good whose answer is longer than 10 MiB.
Windows has no shell that could be told so; there input is a part of the command, and output that one answer.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from agent.compute.access import CHUNK_BYTES, Command, Exit, Output, Size, failed
from agent.compute.kvm import agent_files
from agent.compute.kvm.guest_agent import DATA_BYTES, AgentRefusal, GuestAgent, decoded, encoded
from common.errors import GugusError, resource_exhausted

MAX_INPUT_BYTES = 1024 * 1024
"""Most input of one program; it is kept until it is complete."""

MAX_OUTPUT_BYTES = 64 * 1024 * 1024
"""Most output of one program: until it ends, it takes room in the guest."""

POLL_FIRST_S, POLL_LAST_S = 0.05, 1.0
"""How often the agent is asked for news of a program: soon while there are some, then ever more rarely."""

PIECE_BYTES = 512 * 1024
"""Bytes of output in one answer of the agent."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of programs that are given an environment, for the agent then leaves out its own."""

OUTPUT_FOLDERS = ("/tmp", "/var/tmp", "/run")  # noqa: S108 (made by mktemp in there)
"""Where output goes in the guest, the first that is there."""

_SCRIPT = (
    'out=$1; [ ! -e "$out/0" ] || exec <"$out/0"; cd -- "$2" 2>"$out/2" || exit 126; shift 2; '
    'exec $(command -v setsid) "$@" >"$out/1" 2>"$out/2"'
)
"""Runs "$@" in the folder $2 with its output in files of $1, and its input from one if there is any; in a session of its own if the
guest has setsid(1), so that a signal reaches all that it starts. Nothing of a user's is in the script itself."""


class _InGuest:
    """What both kinds share: input that is kept until it is complete, and the agent's pid of the program."""

    most_input = MAX_INPUT_BYTES

    def __init__(self, agent: GuestAgent, name: str, command: Command) -> None:
        self._agent, self._name, self._command = agent, name, command
        self._input = bytearray()
        self._complete = asyncio.Event()
        self._pid: int | None = None
        self._pieces: deque[Output] = deque()
        self._exit: Exit | None = None
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Keep input until it is complete. Raises EXECUTE_INPUT_TOO_LONG."""
        if len(self._input) + len(data) > self.most_input:
            raise resource_exhausted(
                "EXECUTE_INPUT_TOO_LONG",
                f'guest "{self._name}": a program in it takes at most {self.most_input >> 10} KiB of input.',
                remedy="Push a file into the guest and have the program read that.",
            )
        self._input += data

    async def end_input(self) -> None:
        """Let the program start."""
        self._complete.set()

    async def resize(self, size: Size) -> None:
        """There is no terminal."""

    async def signal(self, number: int) -> None:
        """Send a signal by the guest's kill(1), for the agent has no command for it."""
        if self._pid is None or self._exit is not None:
            return
        with contextlib.suppress(GugusError):
            for target in (f"-{self._pid}", str(self._pid)):  # the session, or, where there is none, the program
                if (await self._agent.small(self._name, "kill", "-s", str(number), "--", target))[0] == 0:
                    return

    async def wait(self) -> Exit:
        """Return how it ended."""
        if self._exit is None:
            raise RuntimeError("read comes first")
        return self._exit

    async def close(self) -> None:
        """Kill it if it runs."""
        self._closed = True
        self._complete.set()
        await self.signal(9)

    async def _start(self, argv: list[str], **more: object) -> None:
        environment = [f"{key}={value}" for key, value in self._command.environment.items()]
        options: dict[str, object] = {"path": argv[0], "arg": argv[1:], **more}
        if environment:
            has_path = any(entry.startswith("PATH=") for entry in environment)
            options["env"] = environment if has_path else [f"PATH={DEFAULT_PATH}", *environment]
        try:
            self._pid = int((await self._agent.command(self._name, "guest-exec", options))["pid"])
        except AgentRefusal as error:
            raise failed("EXECUTE_FAILED", self._name, f"{self._command.argv[0]} cannot be run", str(error)) from error

    async def _look(self) -> Any:
        """Ask for the program; note how it ended when it has."""
        answer = await self._agent.ask(
            self._name, "guest-exec-status", {"pid": self._pid}, reason="EXECUTE_OUTPUT_TOO_LONG"
        )
        if answer["exited"]:
            number = int(answer.get("signal", 0))
            self._exit = Exit(128 + number, number) if number else Exit(int(answer.get("exitcode", 0)))
        return answer

    def _keep(self, data: bytes, *, error: bool) -> None:
        self._pieces.extend(Output(data[at : at + CHUNK_BYTES], error) for at in range(0, len(data), CHUNK_BYTES))


class StreamedProgram(_InGuest):
    """A `Program` of a guest that has a shell: its output is shown as it comes."""

    def __init__(self, agent: GuestAgent, name: str, command: Command) -> None:
        super().__init__(agent, name, command)
        self._folder = ""
        self._files: list[int] = []
        self._pause_s = POLL_FIRST_S
        self._bytes = 0

    async def read(self) -> Output | None:
        """Return what it wrote next."""
        if self._pid is None:
            await self._complete.wait()
            if self._closed:
                return None
            await self._begin()
        while not self._pieces and self._exit is None and not self._closed:
            await self._look()  # first: what it wrote before its end is in the files then
            if not await self._drain() and self._exit is None:
                await asyncio.sleep(self._pause_s)
                self._pause_s = min(self._pause_s * 1.5, POLL_LAST_S)
        if not self._pieces and not self._closed:
            await self._drain()
        return self._pieces.popleft() if self._pieces else None

    async def close(self) -> None:
        """Kill it if it runs, and remove its files."""
        await super().close()
        with contextlib.suppress(GugusError):
            while self._files:
                await self._agent.ask(self._name, "guest-file-close", {"handle": self._files.pop()})
            if self._folder:
                await self._agent.small(self._name, "rm", "-rf", "--", self._folder)
                self._folder = ""

    async def _begin(self) -> None:
        code, words = 1, ""
        for folder in OUTPUT_FOLDERS:
            code, words = await self._agent.small(self._name, "mktemp", "-d", f"{folder}/gugus-exec.XXXXXX")
            if code == 0:
                break
        if code != 0:
            raise failed("EXECUTE_FAILED", self._name, "no room for its output", words.strip())
        self._folder = words.strip()
        for stream in ("1", "2"):
            request = {"path": f"{self._folder}/{stream}", "mode": "w+"}
            self._files.append(await self._agent.ask(self._name, "guest-file-open", request, reason="EXECUTE_FAILED"))
        if self._input:
            await agent_files.write(self._agent, self._name, f"{self._folder}/0", self._all_input())
        argv = [*_as_user(self._command), *self._command.argv]
        await self._start(["sh", "-c", _SCRIPT, "gugus", self._folder, self._command.folder or "/", *argv])

    async def _all_input(self) -> AsyncIterator[bytes]:
        yield bytes(self._input)

    async def _drain(self) -> bool:
        """Take a piece of either stream; return whether there was any."""
        before = self._bytes
        for handle, error in zip(self._files, (False, True), strict=False):  # none once it was let go
            request = {"handle": handle, "count": PIECE_BYTES}
            data = decoded(await self._agent.ask(self._name, "guest-file-read", request), "buf-b64")
            self._bytes += len(data)
            self._keep(data, error=error)
        if self._bytes > MAX_OUTPUT_BYTES:
            await self.signal(9)
            raise resource_exhausted(
                "EXECUTE_OUTPUT_TOO_LONG",
                f'guest "{self._name}": the program was killed after {MAX_OUTPUT_BYTES >> 20} MiB of output.',
                remedy="Have it write into a file in the guest, and pull that.",
            )
        if self._bytes > before:
            self._pause_s = POLL_FIRST_S
        return self._bytes > before


class CapturedProgram(_InGuest):
    """A `Program` of a guest without a shell (Windows): its output is shown when it has ended."""

    most_input = DATA_BYTES

    async def read(self) -> Output | None:
        """Return what it wrote."""
        if self._pid is None:
            await self._complete.wait()
            if self._closed:
                return None
            if self._command.folder or self._command.user:
                raise failed("EXECUTE_FAILED", self._name, self._command.argv[0], "no user and no folder can be chosen")
            input_ = {"input-data": encoded(bytes(self._input))} if self._input else {}
            await self._start(list(self._command.argv), **{"capture-output": True}, **input_)
            pause_s = POLL_FIRST_S
            while not (answer := await self._look())["exited"]:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, POLL_LAST_S)
            for key, error in (("out-data", False), ("err-data", True)):
                self._keep(decoded(answer, key), error=error)
        return self._pieces.popleft() if self._pieces else None


def _as_user(command: Command) -> list[str]:
    """Return what changes the user: the guest's own runuser(1)."""
    return [] if command.user in ("", "root", "0") else ["runuser", "-u", command.user, "--"]
