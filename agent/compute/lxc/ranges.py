"""A range of ids for each running container: user namespaces, kept as files, that idmapped mounts translate by.

liblxc opens such a file by its name at every start of the container, also at a reboot that the agent knows nothing of;
so it has to stay as long as the container. It is a mount of the kernel's (nsfs) on an empty file; no process is behind it.
"""

import asyncio
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from agent.compute.idmap import IdMap
from agent.compute.lxc import mounts
from common.errors import GugusError, internal

MAKE_TIMEOUT_S = 5.0
_MAPS = ("uid_map", "gid_map")


class Ranges:
    """The files of this host, one a range, in a folder that does not outlive the boot."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, ids: IdMap) -> Path:
        """Return the file of a range."""
        return self._folder / str(ids.base)

    async def ensure(self, ids: IdMap) -> Path:
        """Return the file of a range, made now if it is not there. Raises ID_RANGE_FAILED."""
        file = self.file(ids)
        try:
            if not await asyncio.to_thread(self._is_ready, file):
                async with asyncio.timeout(MAKE_TIMEOUT_S):
                    await _make(file, ids)
        except (OSError, TimeoutError) as error:
            raise _failed(ids, str(error) or f"it took longer than {MAKE_TIMEOUT_S:g} s") from error
        return file

    def _is_ready(self, file: Path) -> bool:
        self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        if os.path.ismount(file):
            return True
        file.touch(mode=0o444)
        return False

    def keep_only(self, used: Collection[int]) -> None:
        """Remove the files of all ranges but those with these bases."""
        with suppress(OSError):
            for file in self._folder.iterdir():
                if file.name.isdigit() and int(file.name) not in used:
                    with suppress(OSError):
                        if os.path.ismount(file):
                            mounts.unmount(str(file), lazily=True)
                        file.unlink()


async def _make(file: Path, ids: IdMap) -> None:
    """Have a process enter a new user namespace, say what it maps, and mount that on the file. The process then ends."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("unshare", "--user", "cat", stdin=pipe, stdout=pipe)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"!")
        if not await process.stdout.read(1):  # it answers from within the namespace
            raise OSError("a user namespace could not be made")
        for name in _MAPS:
            _write_whole(f"/proc/{process.pid}/{name}", ids.mount_lines())
        mounts.bind(f"/proc/{process.pid}/ns/user", str(file))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _write_whole(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, data)  # a map is taken in one write, or not at all
    finally:
        os.close(handle)


def _failed(ids: IdMap, why: str) -> GugusError:
    return internal("ID_RANGE_FAILED", f"the id range from {ids.base} cannot be made ready: {why}.")
