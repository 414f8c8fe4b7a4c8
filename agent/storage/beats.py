"""Beats in shared pools: each host writes a small file there all the time, so that others can tell whether one that the network does not
reach still runs. A host whose beat goes on has power and its storage; it is cut off, not dead.

Invariant: nothing waits for a file system that hangs but threads of its own, one that writes for each pool and a bounded number that read.
Nothing is synced: a beat that is lost is followed by the next one. Closing the file is what makes it seen by other hosts (NFS: nfs(5),
"Close-to-open cache consistency"), and opening it anew what makes theirs seen here.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.storage.layout import FOLDER_MODE, MARKER
from common.errors import GugusError
from common.executors import BoundedPool
from common.logs import get_logger

PERIOD_S = 1.0
"""Between two beats: as the heartbeat over the network."""

WATCH_S = 1.2
"""How long a beat is watched at most. One falls into it with time to spare; the answer is there before the host is suspected
(manager.controllers.opinions)."""

STUCK_AFTER_S = WATCH_S + 0.1
"""A pool that hangs must not cost what this host has to say about the network: the acting manager waits for 1.45 s."""

LOOK_S = 0.1
READERS = 4
FOLDER = "beats"

_log = get_logger("storage beats")


class StorageBeats:
    """Writes this host's beats while it is open, and watches those of others. shared: the folders of the shared pools in use."""

    def __init__(self, node: str, boot_id: str, shared: Callable[[], Mapping[str, Path]]) -> None:
        self._node, self._boot_id, self._shared = node, boot_id, shared
        self._writers: dict[Path, _Writer] = {}
        self._readers = BoundedPool("storage beats", READERS, STUCK_AFTER_S)

    def follow(self) -> None:
        """Begin to write to pools that are new, and end it in those that are gone. Does not wait."""
        folders = {path / "gugus" for path in self._shared().values()}
        for folder in self._writers.keys() - folders:
            self._writers.pop(folder).end()
        for folder in folders - self._writers.keys():
            self._writers[folder] = _Writer(folder, self._node, self._boot_id)
            self._writers[folder].start()

    def close(self) -> None:
        """Write no more."""
        for writer in self._writers.values():
            writer.end()
        self._readers.close()

    async def goes_on(self, node: str) -> bool | None:
        """Return whether another host's beat goes on in any pool; None when none can be read, or there is none."""
        files = [path / "gugus" / FOLDER / node for path in self._shared().values()]
        try:
            return await self._readers.run(_watch, files) if files else None
        except GugusError as error:
            _log.info("beats cannot be read", node=node, error=str(error))
            return None


class _Writer(threading.Thread):
    """Writes beats to one pool. It may hang in a write for ever; then nobody waits for it."""

    def __init__(self, folder: Path, node: str, boot_id: str) -> None:
        super().__init__(name=f"beats-{folder.parent.name}", daemon=True)
        self._folder, self._node, self._boot_id = folder, node, boot_id
        self._ended = threading.Event()
        self._count = 0
        self._complaint = ""

    def end(self) -> None:
        """Write no more beats after the one that is being written."""
        self._ended.set()

    def run(self) -> None:
        """Write until ended."""
        while not self._ended.is_set():
            try:
                self._write()
                complaint = ""
            except OSError as error:
                complaint = error.strerror or str(error)
            if complaint and complaint != self._complaint:
                _log.warning("no beats in a shared pool", folder=str(self._folder), error=complaint)
            self._complaint = complaint
            self._ended.wait(PERIOD_S)

    def _write(self) -> None:
        """Write one beat in place: always as long as the one before, so that a reader sees a whole one."""
        if not (self._folder / MARKER).exists():
            raise FileNotFoundError(f"{self._folder} is no pool: is its file system mounted?")
        folder = self._folder / FOLDER
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        self._count += 1
        file = os.open(folder / self._node, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(file, f"{self._boot_id} {self._count:020}\n".encode(), 0)
        finally:
            os.close(file)


def _watch(files: list[Path]) -> bool | None:
    """Return whether any of the files changes within WATCH_S; None when none can be read. Blocks."""
    before = {file: _read(file) for file in files}
    seen = any(before.values())
    end_s = time.monotonic() + WATCH_S
    while time.monotonic() < end_s:
        time.sleep(LOOK_S)
        for file in files:
            if (now := _read(file)) and now != before[file]:
                return True
            seen = seen or bool(now)
    return False if seen else None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
