"""Archives of root file systems: recognised by content, unpacked with the container's own user ids.

An unprivileged container's files are written by a tar that runs inside its id range: what it could not own, it cannot
make, and nothing has to be shifted afterwards.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import IO

from agent.compute.idmap import IDMAP, available
from agent.storage.long_command import run_long
from common.errors import GugusError, precondition
from common.process import CommandFailed, run

UNPACK_TIMEOUT_S = 900.0
LIST_TIMEOUT_S = 300.0

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
_TAR_SIGNATURE, _TAR_OFFSET = b"ustar", 257


def compression(path: Path) -> str | None:
    """Return the program that decompresses a file, "" for a plain tar archive, None for what is neither. Blocks."""
    with path.open("rb") as file:
        head = file.read(_TAR_OFFSET + len(_TAR_SIGNATURE))
    for magic, program in _COMPRESSIONS.items():
        if head.startswith(magic):
            return program
    return "" if head[_TAR_OFFSET:] == _TAR_SIGNATURE else None


async def check(path: Path, program: str) -> str:
    """Read an archive to its end; return "" when it is a whole root file system, else what is wrong with it."""
    try:
        done = await run([*_tar(program), "--list", "--file", str(path)], timeout_s=LIST_TIMEOUT_S)
    except CommandFailed as error:
        return f"tar cannot read it ({error.stderr_tail or error.message})"
    names = {line.removeprefix("./").split("/")[0] for line in done.text.splitlines()}
    if not names & {"bin", "sbin", "usr", "init", "etc"}:
        return "it holds no root file system (none of bin, sbin, usr, etc and init at its top)"
    return ""


async def unpack(archive: IO[bytes], program: str, folder: Path, *, privileged: bool) -> None:
    """Unpack an opened archive into an empty folder of the container's root. Raises GugusError, CommandFailed."""
    argv = [*_tar(program), "--extract", "--numeric-owner", "--same-permissions", "--same-owner"]
    argv += ["--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--file", "-"]
    if not privileged:
        # Device nodes cannot be made in a user namespace; containers get theirs in a fresh /dev.
        argv = ["lxc-usernsexec", *IDMAP.usernsexec_args(), "--", *argv, "--exclude=./dev/*", "--exclude=dev/*"]
    # Archive and folder are given as open file and working directory: the container's ids need not reach their paths.
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=archive,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(UNPACK_TIMEOUT_S):
            _, stderr = await process.communicate()
    except TimeoutError:
        raise CommandFailed(argv, None, f"the limit was {UNPACK_TIMEOUT_S:g} s", timed_out=True) from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise CommandFailed(argv, process.returncode, stderr.decode(errors="replace"))


async def pack(folder: Path, file: IO[bytes], *, privileged: bool) -> None:
    """Write a tar archive of all in a folder into an opened file, with the container's own user ids. Raises CommandFailed."""
    argv = [
        "tar",
        "--create",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--sparse",
        "--file",
        "-",
        ".",
    ]
    if not privileged:
        await ensure_idmap()
        argv = ["lxc-usernsexec", *IDMAP.usernsexec_args(), "--", *argv]
    await run_long(argv, cwd=folder, stdout=file)


async def ensure_idmap() -> None:
    """Raise UNPRIVILEGED_UNAVAILABLE unless this host can map a container's ids."""
    if problem := await asyncio.to_thread(available):
        raise unprivileged_unavailable(problem)


def unprivileged_unavailable(problem: str) -> GugusError:
    """Return the error for a host that cannot hold unprivileged containers' files."""
    return precondition(
        "UNPRIVILEGED_UNAVAILABLE",
        f"this host cannot hold unprivileged containers: {problem}.",
        remedy="Repair that, or make the container privileged.",
    )


def _tar(program: str) -> list[str]:
    return ["tar", *([f"--use-compress-program={program}"] if program else [])]
