"""Runs other programs: argument lists only, always with a time limit; what takes longer is killed with its children."""

import asyncio
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from common.errors import GugusError

STDERR_TAIL_CHARS = 800
"""How much of a failed program's words goes into the error: its last lines say why."""

REAP_TIMEOUT_S = 2.0
"""How long a killed program may take to vanish; one stuck in the kernel (state D) is left behind and reported."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program left: its exit code (negative: the signal that ended it) and its output."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are none are replaced."""
        return self.stdout.decode(errors="replace")


class CommandFailed(GugusError):
    """A program failed, is missing, or took too long. `returncode` is None unless it ended by itself."""

    def __init__(
        self, argv: Sequence[str], returncode: int | None, stderr: str, *, timed_out: bool = False, remedy: str = ""
    ) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr_tail = stderr.strip()[-STDERR_TAIL_CHARS:]
        self.timed_out = timed_out
        super().__init__(
            grpc.StatusCode.DEADLINE_EXCEEDED if timed_out else grpc.StatusCode.INTERNAL,
            "COMMAND_TIMED_OUT" if timed_out else "COMMAND_FAILED",
            f"`{shlex.join(self.argv)}` {_outcome(returncode, timed_out)}" + _because(self.stderr_tail),
            remedy=remedy,
            metadata={"command": self.argv[0]},
        )


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    input: bytes | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> Completed:
    """Run a program to its end. Secrets go in by `input`, never by argument.

    On time-out, and when the caller is cancelled, its whole process group is killed. `env` replaces the environment.
    Raises CommandFailed when it is missing, takes longer than `timeout_s`, or (with `check`) exits other than 0.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE if input is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        remedy = "Install the Debian package that has it." if isinstance(error, FileNotFoundError) else ""
        raise CommandFailed(argv, None, error.strerror or str(error), remedy=remedy) from error
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate(input)
    except TimeoutError:
        await _kill(process)
        raise CommandFailed(argv, None, f"the limit was {timeout_s:g} s", timed_out=True) from None
    except BaseException:
        await _kill(process)
        raise
    done = Completed(tuple(argv), process.returncode or 0, stdout, stderr)
    if check and done.returncode != 0:
        raise CommandFailed(argv, done.returncode, stderr.decode(errors="replace"))
    return done


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the process group, whose leader may have ended already, and reap the leader."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(REAP_TIMEOUT_S):
            await process.wait()


def _outcome(returncode: int | None, timed_out: bool) -> str:
    if timed_out:
        return "took too long and was killed"
    if returncode is None:
        return "could not be run"
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"failed with exit code {returncode}"


def _because(tail: str) -> str:
    return f": {tail}" if tail else "."
