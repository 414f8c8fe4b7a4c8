"""Files of a virtual machine, by the guest agent: written beside their place and moved there when they are whole.

The agent reads and writes files, and no more: mode, owner and the move are the work of the guest's own programs, argument lists all of
them. Windows has none of those; there a file is written in place, and mode and owner are refused.
"""

import asyncio
import contextlib
import secrets
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from posixpath import dirname, join

from agent.compute.access import DEFAULT_MODE, FileInfo, FileWish, failed, unsupported
from agent.compute.kvm.guest_agent import DATA_BYTES, WINDOWS, GuestAgent, decoded, encoded
from common.errors import GugusError

ANSWER_BYTES = 512 * 1024
"""Bytes of one answer; libvirt carries 4 MiB, a third of it for base64."""

NOT_WRITTEN, NOT_READ = "FILE_NOT_WRITTEN", "FILE_NOT_READ"
_STAT_FORMAT = "%f %s %u %g"
"""Type and mode (hexadecimal), size, owner, group (stat(1))."""


async def push(agent: GuestAgent, name: str, path: str, wish: FileWish, content: AsyncIterator[bytes]) -> FileInfo:
    """Put a file in place. Raises FILE_NOT_WRITTEN, GUEST_AGENT_MISSING, and what `content` raises."""
    if await agent.system(name) == WINDOWS:
        return await _push_in_place(agent, name, path, wish, content)
    former = await _former(agent, name, path)
    work = join(dirname(path), f".gugus-{secrets.token_hex(8)}")
    try:
        await _fill(agent, name, path, work, wish, former, content)
    except GugusError as error:
        await _removed(agent, name, work)
        raise _of_user(error, work, path) from error
    except BaseException:
        await _removed(agent, name, work)
        raise
    placed = await _look(agent, name, path)
    if placed is None:
        raise failed(NOT_WRITTEN, name, path, "it was put in place and is not there any more")
    return placed


async def _fill(
    agent: GuestAgent,
    name: str,
    path: str,
    work: str,
    wish: FileWish,
    former: FileInfo | None,
    content: AsyncIterator[bytes],
) -> None:
    """Write a file beside its place, and move it there. What is not wished for stays as the former file had it."""
    await write(agent, name, work, content)
    mode = wish.mode if wish.mode is not None else former.mode if former else DEFAULT_MODE
    uid = wish.uid if wish.uid is not None else former.uid if former else 0
    gid = wish.gid if wish.gid is not None else former.gid if former else 0
    await _do(agent, name, path, "chown", f"{uid}:{gid}", work)
    await _do(agent, name, path, "chmod", f"{mode:04o}", work)
    await _do(agent, name, path, "mv", "-T", "-f", work, path)


async def _former(agent: GuestAgent, name: str, path: str) -> FileInfo | None:
    """Return what is at the place of a file that comes. Raises FILE_NOT_WRITTEN when none can be put there."""
    found = await _stat(agent, name, path)
    if found is not None and stat.S_ISDIR(found[0]):
        raise failed(NOT_WRITTEN, name, path, 'it is a folder; end it with "/" to put the file into it')
    if found is not None and not stat.S_ISREG(found[0]):
        raise failed(NOT_WRITTEN, name, path, "it is no regular file")
    if found is not None:
        return found[1]
    folder = dirname(path)
    above = await _stat(agent, name, folder)
    if above is None:
        raise failed(NOT_WRITTEN, name, path, f"the folder {folder} does not exist; make it first")
    if not stat.S_ISDIR(above[0]):
        raise failed(NOT_WRITTEN, name, path, f"{folder} is no folder")
    return None


async def pull(agent: GuestAgent, name: str, path: str) -> tuple[FileInfo, AsyncGenerator[bytes, None]]:
    """Open a file. Raises FILE_NOT_READ, GUEST_AGENT_MISSING."""
    info = FileInfo(0, 0, 0, 0)
    if await agent.system(name) != WINDOWS:
        found = await _look(agent, name, path)
        if found is None:
            raise failed(NOT_READ, name, path, "there is no such file")
        info = found
    handle = await agent.ask(name, "guest-file-open", {"path": path, "mode": "r"}, reason=NOT_READ)
    return info, _content(agent, name, handle)


async def _content(agent: GuestAgent, name: str, handle: int) -> AsyncGenerator[bytes, None]:
    try:
        while True:
            arguments = {"handle": handle, "count": ANSWER_BYTES}
            answer = await agent.ask(name, "guest-file-read", arguments, reason=NOT_READ)
            if data := decoded(answer, "buf-b64"):
                yield data
            if answer.get("eof") or not data:
                return
    finally:
        await _closed(agent, name, handle)


async def _push_in_place(
    agent: GuestAgent, name: str, path: str, wish: FileWish, content: AsyncIterator[bytes]
) -> FileInfo:
    if wish != FileWish():
        raise unsupported("sets no mode and no owner of files in Windows", "kvm")
    return FileInfo(await write(agent, name, path, content), 0, 0, 0)


async def write(agent: GuestAgent, name: str, path: str, content: AsyncIterator[bytes]) -> int:
    """Write a file from the beginning; return its size."""
    handle = await agent.ask(name, "guest-file-open", {"path": path, "mode": "w"}, reason=NOT_WRITTEN)
    size = 0
    try:
        async for piece in content:
            for at in range(0, len(piece), DATA_BYTES):
                size += await _written(agent, name, path, handle, piece[at : at + DATA_BYTES])
        await agent.ask(name, "guest-file-flush", {"handle": handle}, reason=NOT_WRITTEN)
    finally:
        await _closed(agent, name, handle)
    return size


async def _written(agent: GuestAgent, name: str, path: str, handle: int, piece: bytes) -> int:
    options: dict[str, object] = {"handle": handle, "buf-b64": encoded(piece)}
    answer = await agent.ask(name, "guest-file-write", options, reason=NOT_WRITTEN)
    if int(answer["count"]) != len(piece):
        raise failed(NOT_WRITTEN, name, path, f"only {answer['count']} of {len(piece)} bytes were written: is it full?")
    return len(piece)


async def _look(agent: GuestAgent, name: str, path: str) -> FileInfo | None:
    """Return what a path is, None when it is nothing. Raises FILE_NOT_READ when it is no regular file."""
    found = await _stat(agent, name, path)
    if found is not None and stat.S_ISDIR(found[0]):
        raise failed(NOT_READ, name, path, "it is a folder; name a file in it")
    if found is not None and not stat.S_ISREG(found[0]):
        raise failed(NOT_READ, name, path, "it is no regular file")
    return found[1] if found else None


async def _stat(agent: GuestAgent, name: str, path: str) -> tuple[int, FileInfo] | None:
    """Return type and mode of what a path leads to, and the rest of it; None when it is nothing."""
    code, text = await agent.small(name, "stat", "-L", "-c", _STAT_FORMAT, "--", path)
    if code != 0:
        return None
    mode, size, uid, gid = text.split()
    return int(mode, 16), FileInfo(int(size), stat.S_IMODE(int(mode, 16)), int(uid), int(gid))


async def _do(agent: GuestAgent, name: str, path: str, program: str, *arguments: str) -> None:
    code, words = await agent.small(name, program, *arguments)
    if code != 0:
        raise failed(NOT_WRITTEN, name, path, words.strip() or f"{program} failed with exit code {code}")


def _of_user(error: GugusError, work: str, path: str) -> GugusError:
    """Return an error with the name that the user gave in the place of the one that was written under."""
    words = error.message.replace(work, path)
    return GugusError(error.code, error.reason, words, remedy=error.remedy, metadata=error.metadata)


async def _closed(agent: GuestAgent, name: str, handle: int) -> None:
    """Close a file also when the caller was cancelled: the agent keeps it open for ever otherwise."""
    with contextlib.suppress(GugusError):
        await asyncio.shield(agent.ask(name, "guest-file-close", {"handle": handle}))


async def _removed(agent: GuestAgent, name: str, path: str) -> None:
    with contextlib.suppress(GugusError):
        await asyncio.shield(agent.small(name, "rm", "-f", "--", path))
