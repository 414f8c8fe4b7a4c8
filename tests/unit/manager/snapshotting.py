"""A hypervisor's ability to take snapshots, for tests: it keeps what is on the volumes of `storage.Storage`, and fails as it is told."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from agent.compute.snapshots import Taken
from common.errors import GugusError
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage

MEMORY_BYTES = 1 << 20


class Snapshotting:
    """As `agent.compute.snapshots.GuestSnapshots` describes it."""

    def __init__(self, storage: Storage, hypervisor: Hypervisor) -> None:
        self._storage, self._hypervisor = storage, hypervisor
        self.obstacles: list[str] = []
        self.fails: dict[str, GugusError] = {}
        """What "take" and "start" raise every time, and "delete" once; "take" leaves the first disk with the snapshot."""
        self.resumed: list[str] = []
        """Tags whose memory guests went on with."""

    async def memory_obstacles(self, name: str) -> list[str]:
        return self.obstacles

    async def machine(self, name: str) -> bytes:
        return b"machine"

    async def take(self, name: str, tag: str, disks: Sequence[Path], *, memory: bool) -> Taken:
        for disk in disks:
            self._storage.kept.setdefault(disk.name, {})[tag] = self._storage.content[disk.name]
            self._fail("take")
        return Taken(paused_ms=5, memory_bytes=MEMORY_BYTES) if memory else Taken()

    async def delete(self, name: str, tag: str, disks: Sequence[Path]) -> None:
        self._fail("delete")
        for disk in disks:
            self._storage.kept.get(disk.name, {}).pop(tag, None)

    async def start_from(
        self,
        name: str,
        generation: int,
        tag: str,
        disks: Sequence[Path],
        machine: bytes,
        revert: Callable[[], Awaitable[None]],
    ) -> None:
        assert machine == b"machine"
        observed = await self._hypervisor.observe(name)
        if observed is not None and observed.running:
            return
        await revert()
        self._fail("start")
        await self._hypervisor.start(name, generation)
        self.resumed.append(tag)

    def _fail(self, what: str) -> None:
        if error := self.fails.get(what):
            if what == "delete":
                del self.fails[what]
            raise error
