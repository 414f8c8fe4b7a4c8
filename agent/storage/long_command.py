"""Programs that copy data for minutes or hours: their output is followed, and they die with whoever wanted them.

Also when this process is killed: a copy that goes on in a file that a new process has removed would fill the disk unseen.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from common.process import REAP_TIMEOUT_S, CommandFailed

LONGEST_S = 24 * 3600.0
"""For the largest disk on the slowest pool."""

_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
_CHUNK_BYTES = 4096
_KEPT_BYTES = 16 * 1024


async def run_long(
    argv: Sequence[str],
    told: Callable[[bytes], None] = lambda _: None,
    *,
    cwd: Path | None = None,
    stdout: IO[bytes] | None = None,
    timeout_s: float = LONGEST_S,
) -> None:
    """Run a program to its end; `told` gets its output as it comes, unless that goes into the file `stdout`.

    When the caller is cancelled, and after `timeout_s`, its process group is killed. Raises CommandFailed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *_DIE_WITH_PARENT,
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout or asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(argv, None, error.strerror or str(error)) from error
    words = bytearray()
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            if process.stdout is not None:
                group.create_task(_follow(process.stdout, told))
            if process.stderr is not None:
                group.create_task(_follow(process.stderr, lambda text: _keep(words, text)))
            group.create_task(process.wait())
    except TimeoutError:
        await _kill(process)
        raise CommandFailed(argv, None, f"the limit was {timeout_s:g} s", timed_out=True) from None
    except BaseException:
        await _kill(process)
        raise
    if process.returncode:
        raise CommandFailed(argv, process.returncode, words.decode(errors="replace"))


async def copy_folder(source: Path, target: Path, bytes_per_s: int = 0) -> None:
    """Copy a folder with owners, attributes and holes into a new or empty one. Raises CommandFailed.

    Blocks are shared where the file system can, unless at most so many bytes a second are to be copied: rsync does that, in KiB.
    """
    if bytes_per_s:
        options = ["--archive", "--hard-links", "--acls", "--xattrs", "--numeric-ids", "--sparse", "--whole-file"]
        limit = f"--bwlimit={max(bytes_per_s // 1024, 1)}"
        await run_long(["rsync", *options, limit, "--", f"{source}/", f"{target}/"])
        return
    argv = [
        "cp",
        "--archive",
        "--sparse=auto",
        "--reflink=auto",
        "--no-target-directory",
        "--",
        str(source),
        str(target),
    ]
    await run_long(argv)


async def _follow(stream: asyncio.StreamReader, told: Callable[[bytes], None]) -> None:
    while text := await stream.read(_CHUNK_BYTES):
        told(text)


def _keep(words: bytearray, text: bytes) -> None:
    words += text
    del words[:-_KEPT_BYTES]


async def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(REAP_TIMEOUT_S):
            await process.wait()
