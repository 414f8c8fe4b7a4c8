"""Pool in a folder on btrfs: as `dir`, but root file systems are subvolumes."""

import shutil
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.storage import subvolumes
from agent.storage.file_pool import FilePool, folder_of
from agent.storage.subvolumes import Subvolumes
from common.errors import precondition


class BtrfsPool(FilePool):
    """A driver as `agent.storage.pool.StoragePool` describes it."""

    def __init__(self, spec: volume_pb2.PoolSpec) -> None:
        super().__init__(spec, folder_of(spec.btrfs.path, "spec.btrfs.path"), Subvolumes())

    async def activate(self) -> None:
        """Make it usable. Raises NOT_BTRFS, BTRFS_MISSING beside what every pool raises."""
        if shutil.which("btrfs") is None:
            raise precondition(
                "BTRFS_MISSING", "the program btrfs is not installed.", remedy="Install the Debian package btrfs-progs."
            )
        found = await self._store.files.look(_file_system_of, self._path)
        if found != subvolumes.BTRFS_MAGIC:
            raise precondition(
                "NOT_BTRFS",
                f'pool "{self.spec.name}": {self._path} is on {found or "an unknown file system"}, not on btrfs.',
                remedy="Mount a btrfs file system there, or make a dir pool.",
                subject=f"pool/{self.spec.name}",
            )
        await super().activate()


def _file_system_of(path: Path) -> str:
    """Return the file system that holds a path, or would when it were made."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return subvolumes.file_system(path)


def create(spec: volume_pb2.PoolSpec) -> BtrfsPool:
    """Make the driver of a pool. Raises INVALID_ARGUMENT."""
    return BtrfsPool(spec)
