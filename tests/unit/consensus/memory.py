"""A disk in memory, and a core on it, for tests that need neither a folder nor a clock."""

import random
from collections.abc import Callable

from manager.consensus.core import RaftCore, Setup
from manager.consensus.library import Message
from manager.consensus.types import Limits, Member
from tests.unit.consensus.conftest import Log


class MemoryReader:
    """A file as it was when it was opened."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def close(self) -> None:
        pass


class MemoryDisk:
    """Everything is durable at once, and there is always room."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}

    def names(self) -> list[str]:
        return sorted(self.files)

    def open(self, name: str) -> MemoryReader | None:
        return MemoryReader(bytes(self.files[name])) if name in self.files else None

    def allocate(self, name: str, size: int) -> None:
        self.files[name] = bytearray(size)

    def write(self, name: str, offset: int, data: bytes) -> None:
        file = self.files.setdefault(name, bytearray())
        file.extend(bytes(max(0, offset - len(file))))
        file[offset : offset + len(data)] = data

    def sync(self, name: str) -> None:
        pass

    def truncate(self, name: str, size: int) -> None:
        del self.files[name][size:]

    def rename(self, name: str, to: str) -> None:
        self.files[to] = self.files.pop(name)

    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    def room(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def close(self) -> None:
        pass


def memory_core(me: str, names: list[str], send: Callable[[str, Message], None], seed: int) -> RaftCore:
    """Return a member of a cluster of these; its background work is done at once."""
    limits = Limits(compact_after_entries=5, keep_entries=2, segment_bytes=256 * 1024)

    def background(work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        work()
        done(None)

    voters = tuple(Member(name, "memory") for name in names)
    return RaftCore(Setup(me, voters, limits=limits), MemoryDisk(), Log(), send, random.Random(seed), background)
