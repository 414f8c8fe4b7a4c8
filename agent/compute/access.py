"""Access: what a driver that can show consoles, run programs in guests and carry files offers to the agent.

An ability beside `Hypervisor`: the driver has it as its attribute `access`, None when it cannot. All names are names of guests; methods
raise GugusError only, GUEST_NOT_RUNNING when the guest does not run. Who may do what is decided above; here nothing is logged but names.

Backpressure is the caller's pace: nothing is read from a guest before `read` asks for it; `write` returns when the guest's side took it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from gugus.agent.v1 import access_pb2

from common.errors import GugusError, precondition, unimplemented

CHUNK_BYTES = 64 * 1024
"""Most bytes that one `read` returns."""

DEFAULT_MODE = 0o644
"""Permission bits of a new file when none are asked for (PushFileStart.mode)."""

KIND_WORDS = {
    access_pb2.CONSOLE_KIND_VNC: "VNC",
    access_pb2.CONSOLE_KIND_SPICE: "SPICE",
    access_pb2.CONSOLE_KIND_SERIAL: "serial",
    access_pb2.CONSOLE_KIND_TERMINAL: "terminal",
}


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a terminal in characters."""

    columns: int = 80
    rows: int = 24


class Console(Protocol):
    """An open console: bytes both ways. `agent.access.streams` has ready ones upon file descriptors."""

    async def read(self) -> bytes:
        """Return the next bytes of the guest, at most CHUNK_BYTES; b"" once it has ended."""

    async def write(self, data: bytes) -> None:
        """Give bytes to the guest; returns when they are taken. Does nothing once the console has ended."""

    async def resize(self, size: Size) -> None:
        """Tell the guest the terminal's size; does nothing where there is no terminal."""

    async def close(self) -> None:
        """Let go of it; a `read` under way returns b"". Idempotent. A shell that was begun for it ends."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run. `size` is that of a terminal of its own, None when its streams are pipes. See Execution in access.proto."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    user: str = ""
    size: Size | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a program wrote; `error`: to its standard error."""

    data: bytes
    error: bool = False


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program ended: its exit code (128 + signal, when one ended it) and that signal, or 0."""

    code: int
    signal: int = 0


class Program(Protocol):
    """A program that runs in a guest."""

    async def read(self) -> Output | None:
        """Return the next piece of output of either stream, at most CHUNK_BYTES; None once both have ended."""

    async def write(self, data: bytes) -> None:
        """Give bytes to its standard input; returns when they are taken. Does nothing once the program closed it."""

    async def end_input(self) -> None:
        """End its standard input (on a terminal: type Ctrl-D). Idempotent."""

    async def resize(self, size: Size) -> None:
        """Tell it the size of its terminal; does nothing where there is none."""

    async def signal(self, number: int) -> None:
        """Send it a signal of Linux's numbers. Does nothing once it has ended."""

    async def wait(self) -> Exit:
        """Return how it ended, once it has. Call it after `read` returned None."""

    async def close(self) -> None:
        """Let go of it: what still runs of it is killed. Idempotent."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A regular file in a guest, ids as the guest sees them."""

    size_bytes: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class FileWish:
    """How a file is to be: None keeps what the file that is replaced has, else DEFAULT_MODE and 0."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class Access(Protocol):
    """The ability. Methods raise GugusError only, and never wait for a guest longer than they must."""

    async def open_console(self, name: str, kind: access_pb2.ConsoleKind.ValueType, size: Size) -> Console:
        """Open a console. Errors: CONSOLE_MISSING (`console_missing`), ACCESS_UNSUPPORTED (`unsupported`).

        Called once at a time for each (name, kind) of SERIAL and TERMINAL devices that cannot be shared: the agent has closed the
        console that was open before (`agent.access.consoles`).
        """

    async def execute(self, name: str, command: Command) -> Program:
        """Run a program. Errors: EXECUTE_FAILED, ACCESS_UNSUPPORTED."""

    async def push_file(self, name: str, path: str, wish: FileWish, content: AsyncIterator[bytes]) -> FileInfo:
        """Put a file in place, whole or not at all, once `content` has ended; nothing changes when that raises.

        The path is resolved inside of the guest: no link in it leads out. Returns the file as it is now. Errors: FILE_NOT_WRITTEN.
        """

    async def pull_file(self, name: str, path: str) -> tuple[FileInfo, AsyncGenerator[bytes, None]]:
        """Open a regular file; return what it is, and its content in pieces. The iterator must be closed (aclose) by the caller.

        Errors: FILE_NOT_READ (missing, not a regular file, not readable).
        """

    async def freeze(self, name: str, timeout_s: float) -> int:
        """Have the guest flush and hold its file systems; return how many. Undone by `thaw`, which comes by itself after `timeout_s`.

        Errors: GUEST_AGENT_MISSING, FREEZE_FAILED, ACCESS_UNSUPPORTED. After an error nothing is held.
        """

    async def thaw(self, name: str) -> None:
        """Let the guest's file systems go on. Idempotent; does nothing where nothing is held. Never raises."""


class Keyboard(Protocol):
    """What an `Access` to machines with a keyboard has beside."""

    async def send_keys(self, name: str, keys: Sequence[str]) -> None:
        """Press keys, by QEMU's names, all at once, and let go of them. Errors: INVALID_ARGUMENT."""


def keyboard_of(access: Access, driver: str) -> Keyboard:
    """Return the keyboards of an access's guests. Raises ACCESS_UNSUPPORTED when they have none."""
    if not hasattr(access, "send_keys"):
        raise unsupported("runs guests that have no keyboard", driver)
    return cast(Keyboard, access)


def access_of(hypervisor: object) -> Access:
    """Return a driver's ability to give access. Raises ACCESS_UNSUPPORTED when it has none."""
    found: Access | None = getattr(hypervisor, "access", None)
    if found is None:
        raise unsupported("gives no access to its guests", str(getattr(hypervisor, "name", "")))
    return found


def not_running(name: str) -> GugusError:
    """Return the error for a guest that does not run."""
    return precondition(
        "GUEST_NOT_RUNNING",
        f'guest "{name}" does not run.',
        remedy=f"`gugus guest start {name}` starts it.",
        subject=f"guest/{name}",
    )


def console_missing(name: str, kind: access_pb2.ConsoleKind.ValueType, remedy: str) -> GugusError:
    """Return the error for a guest without a console of a kind."""
    return precondition(
        "CONSOLE_MISSING",
        f'guest "{name}" has no {KIND_WORDS.get(kind, "such")} console.',
        remedy=remedy,
        subject=f"guest/{name}",
    )


def unsupported(what: str, driver: str, remedy: str = "") -> GugusError:
    """Return the error for what a driver cannot do at all; `what` goes on after its name."""
    return unimplemented("ACCESS_UNSUPPORTED", f"the hypervisor {driver} {what}.", remedy=remedy)


def failed(reason: str, name: str, what: str, words: str) -> GugusError:
    """Return the error EXECUTE_FAILED, FILE_NOT_WRITTEN, FILE_NOT_READ or FREEZE_FAILED with the guest's own words."""
    return precondition(reason, f'guest "{name}": {what}: {words.rstrip(".")}.', subject=f"guest/{name}")
