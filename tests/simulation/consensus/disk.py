"""A disk that forgets what was not synced, fails, fills up, and loses power at any operation.

What reached the platter survives; of what was only written a power cut keeps any sectors, in any of their versions. A
`SimDisk` is what one boot of a host sees of its `Platter`; after a power cut it is dead, whoever still holds it.

Invariant: nothing but `sync`, `allocate`, `truncate`, `rename`, `remove` and a power cut changes what is durable.
"""

import errno
import random
from collections.abc import Callable

SECTOR = 512
"""Bytes that reach the platter together or not at all."""


class PowerCut(BaseException):
    """The host loses power inside an operation of its disk. No `except Exception` of the code under test sees it."""


class File:
    """One file: its bytes as readers see them, and those that a power cut cannot take."""

    def __init__(self, size: int = 0) -> None:
        self.content = bytearray(size)
        self.durable = bytearray(size)
        self.pending: list[tuple[int, bytes]] = []
        """Sectors written since the last sync: where, and what. A sector may be there more than once."""

    def write(self, offset: int, data: bytes) -> None:
        """Change the content only."""
        end = offset + len(data)
        if end > len(self.content):
            self.content.extend(bytes(end - len(self.content)))
        self.content[offset:end] = data
        for start in range(offset // SECTOR * SECTOR, end, SECTOR):
            self.pending.append((start, bytes(self.content[start : start + SECTOR])))

    def sync(self) -> None:
        """Make the content durable."""
        self.durable.extend(bytes(len(self.content) - len(self.durable)))
        for start, _ in self.pending:
            self.durable[start : start + SECTOR] = self.content[start : start + SECTOR]
        self.pending.clear()

    def truncate(self, size: int) -> None:
        """Cut, durably; what was written before the cut and not synced stays so."""
        del self.content[size:]
        del self.durable[size:]
        self.durable.extend(bytes(len(self.content) - len(self.durable)))
        self.pending = [(start, data[: size - start]) for start, data in self.pending if start < size]

    def lose_power(self, rng: random.Random) -> None:
        """Keep of what was not synced nothing, all, a beginning, or any sectors in any order."""
        kept = _survivors(rng, self.pending)
        size = len(self.durable)
        if len(self.content) > size and (kept or rng.random() < 0.5):
            size = rng.choice([len(self.content), rng.randint(size, len(self.content))])
        self.durable.extend(bytes(size - len(self.durable)))
        for start, data in kept:
            self.durable[start : start + len(data)] = data
        del self.durable[size:]
        self.content = bytearray(self.durable)
        self.pending.clear()


def _survivors(rng: random.Random, pending: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    match rng.randrange(4):
        case 0:
            return []
        case 1:
            return list(pending)
        case 2:
            return pending[: rng.randint(0, len(pending))]
        case _:
            kept = [sector for sector in pending if rng.random() < 0.5]
            rng.shuffle(kept)
            return kept


class Platter:
    """What a host's disk holds, and how it misbehaves at present."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.files: dict[str, File] = {}
        self.unnamed: set[str] = set()
        """Files whose name is not durable yet: made by a write and not synced."""
        self.full = False
        self.sync_s = 0.0
        """Time that a sync takes."""
        self.sync_fails = False
        """The next sync fails, once."""
        self.cut_after: int | None = None
        """Points of operations (before, inside, after) until the power is cut at one."""

    def lose_power(self) -> None:
        """Forget what was not durable."""
        for name in sorted(self.unnamed):
            if self.rng.random() < 0.5:
                del self.files[name]
        self.unnamed.clear()
        for name in sorted(self.files):
            self.files[name].lose_power(self.rng)
        self.cut_after = None

    def wipe(self) -> None:
        """Put an empty disk in its place."""
        self.files.clear()
        self.unnamed.clear()


class SimReader:
    """An open file; it stays readable when its name goes to another one."""

    def __init__(self, file: File) -> None:
        self._file = file
        self.size = len(file.content)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes, fewer at the end of the file."""
        return bytes(self._file.content[offset : offset + length])

    def close(self) -> None:
        """Nothing to do."""


class SimDisk:
    """The `Disk` of one boot. `waited` is told how long each sync takes."""

    def __init__(self, platter: Platter, waited: Callable[[float], None]) -> None:
        self._platter, self._waited = platter, waited
        self._dead = False

    def kill(self) -> None:
        """Let every later operation fail: the host has lost power."""
        self._dead = True

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        self._alive()
        return sorted(self._platter.files)

    def open(self, name: str) -> SimReader | None:
        """Open a file, None when there is none."""
        self._alive()
        file = self._platter.files.get(name)
        return None if file is None else SimReader(file)

    def allocate(self, name: str, size: int) -> None:
        """Make a file of zeros; a cut inside leaves an empty one."""
        self._may_lose_power()
        self._need_room(name, size)
        self._platter.files[name] = File()
        self._platter.unnamed.discard(name)
        self._may_lose_power()
        self._platter.files[name] = File(size)
        self._may_lose_power()

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write into a file; what of it survives is decided when the power goes."""
        self._may_lose_power()
        file = self._platter.files.get(name)
        if file is None or offset + len(data) > len(file.content):
            self._need_room(name, offset + len(data))
        if file is None:
            file = self._platter.files[name] = File()
            self._platter.unnamed.add(name)
        file.write(offset, data)
        self._may_lose_power()

    def sync(self, name: str) -> None:
        """Make a file durable, or fail: then some of it is durable, and nobody knows what."""
        self._may_lose_power()
        file = self._existing(name)
        self._waited(self._platter.sync_s)
        if self._platter.sync_fails:
            self._platter.sync_fails = False
            file.lose_power(self._platter.rng)
            raise OSError(errno.EIO, f"{name}: the disk failed")
        file.sync()
        self._platter.unnamed.discard(name)
        self._may_lose_power()

    def truncate(self, name: str, size: int) -> None:
        """Cut a file, durably."""
        self._may_lose_power()
        self._existing(name).truncate(size)
        self._platter.unnamed.discard(name)
        self._may_lose_power()

    def rename(self, name: str, to: str) -> None:
        """Rename a file, durably; what of it was not synced is still not durable."""
        self._may_lose_power()
        self._existing(name)
        self._platter.files[to] = self._platter.files.pop(name)
        self._platter.unnamed -= {name, to}
        self._may_lose_power()

    def remove(self, name: str) -> None:
        """Remove a file, durably."""
        self._may_lose_power()
        self._platter.files.pop(name, None)
        self._platter.unnamed.discard(name)
        self._may_lose_power()

    def room(self) -> tuple[int, int]:
        """Return free and total bytes."""
        self._alive()
        return (0 if self._platter.full else 1 << 30), 1 << 31

    def close(self) -> None:
        """Nothing to do."""

    def _may_lose_power(self) -> None:
        """Pass one of the points, before, inside and after an operation, at which the power may go."""
        self._alive()
        if self._platter.cut_after is not None:
            self._platter.cut_after -= 1
            if self._platter.cut_after < 0:
                self._dead = True
                raise PowerCut

    def _alive(self) -> None:
        if self._dead:
            raise PowerCut

    def _existing(self, name: str) -> File:
        file = self._platter.files.get(name)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, f"{name}: no such file")
        return file

    def _need_room(self, name: str, size: int) -> None:
        if self._platter.full:
            raise OSError(errno.ENOSPC, f"{name}: no room for {size} bytes")
