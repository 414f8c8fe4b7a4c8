"""A pool in a folder: the parts of this package put together. What differs between file systems is in `Folders`."""

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from gugus.agent.v1 import volume_pb2

from agent.storage import abilities, changing, copying, importing, making, snapshots
from agent.storage.folders import Folders
from agent.storage.layout import HOSTS
from agent.storage.pool import CopyRequest, Progress, VolumeRequest, VolumeTransfer, VolumeView
from agent.storage.store import VolumeStore
from agent.storage.transfer import Transfer
from agent.storage.witness import Witness
from common import validate
from common.errors import GugusError, invalid, precondition

PREPARE_TIMEOUT_S = 30.0
"""For making a few folders and one small file, on a slow file system, too."""


class FilePool:
    """A driver as `agent.storage.pool.StoragePool` describes it."""

    def __init__(self, spec: volume_pb2.PoolSpec, path: Path, folders: Folders, *, shared: bool = False) -> None:
        validate.require("spec.name", validate.name(spec.name))
        self.spec = spec
        self._path, self._shared = path, shared
        self._store = VolumeStore(spec.name, path, folders)
        self._witness = Witness(self._store.layout.root / HOSTS) if shared else None
        self._transfer = Transfer(self._store)
        self.transfer: VolumeTransfer = self._transfer

    @property
    def abilities(self) -> frozenset[volume_pb2.PoolAbility.ValueType]:
        """What it can do."""
        return abilities.of_pool(self._store.folders, shared=self._shared)

    async def activate(self) -> None:
        """Make the folders and clean up after a process of this host that was killed."""
        store = self._store
        async with store.room():
            there = await store.files.look(self._path.is_dir)
            if self._shared and not there:
                raise precondition(
                    "PATH_MISSING",
                    f'pool "{self.spec.name}" is shared, and its path {self._path} does not exist on this node.',
                    remedy="Mount the shared file system there, or create the folder on all nodes.",
                    subject=f"pool/{self.spec.name}",
                )
            await store.files.work(store.layout.prepare, self.spec.name, timeout_s=PREPARE_TIMEOUT_S)
            await store.files.work(store.layout.clean)
            await self._transfer.clean()

    async def status(self) -> volume_pb2.Pool:
        """Tell its room and whether it is ready."""
        pool = volume_pb2.Pool(
            spec=self.spec, abilities=sorted(self.abilities), formats=abilities.of_formats(self._store.folders)
        )
        try:
            room, pool.reason = await self._store.files.look(self._look)
            if self._witness is not None and not pool.reason:
                pool.writer_proof.CopyFrom(await self._store.files.look(self._witness.look))
        except GugusError as error:
            pool.reason = str(error)
        except OSError as error:
            pool.reason = f"{self._path}: {error.strerror}. Check that it is mounted."
        else:
            pool.capacity_bytes, pool.available_bytes = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
        pool.ready = not pool.reason
        return pool

    async def create_volume(self, request: VolumeRequest) -> volume_pb2.Volume:
        """Make a volume, empty or from an image or a base."""
        return await making.create(self._store, request)

    async def ensure_volume(self, request: VolumeRequest) -> volume_pb2.Volume:
        """Make an empty volume of exactly one size."""
        return await making.ensure(self._store, request)

    async def import_volume(self, name: str, source: str, sha256: str, progress: Progress) -> volume_pb2.Volume:
        """Bring an image in."""
        return await importing.run(self._store, self._transfer, name, source, sha256, progress)

    async def delete_volume(self, name: str) -> None:
        """Delete a volume, unless others read from it."""
        await changing.delete(self._store, name)

    async def delete_orphan(self, name: str, least_age_s: int) -> None:
        """Delete a volume that nobody is known to own."""
        await changing.delete(self._store, name, orphan_age_s=least_age_s)

    async def get_volume(self, name: str) -> volume_pb2.Volume:
        """Return a volume."""
        return await self._store.describe(await self._store.find(name))

    async def list_volumes(self) -> list[volume_pb2.Volume]:
        """Return all volumes by name."""
        return [await self._store.describe(r) for r in await self._store.files.work(self._store.layout.all)]

    async def path_of(self, name: str) -> Path:
        """Return the file or folder of a volume."""
        return self._store.layout.path(await self._store.find(name))

    async def lease_of(self, name: str) -> Path | None:
        """Return the lease of a volume of a shared pool."""
        return self._store.layout.lease(name) if self._shared else None

    async def companion(self, name: str) -> Path:
        """Return the folder for what belongs to a volume's machine; it may not exist."""
        await self._store.find(name)
        return self._store.layout.companion(name)

    async def resize_volume(self, name: str, size_bytes: int, *, done_by_guest: bool = False) -> volume_pb2.Volume:
        """Let a volume grow."""
        return await changing.resize(self._store, name, size_bytes, done_by_guest=done_by_guest)

    def view(self, name: str, snapshot: str = "") -> AbstractAsyncContextManager[VolumeView]:
        """Hold a volume for reading."""
        return copying.view(self._store, name, snapshot)

    async def copy_volume(self, request: CopyRequest, progress: Progress) -> volume_pb2.Volume:
        """Copy a volume in full into this pool."""
        return await copying.copy(self._store, request, progress)

    async def flatten_volume(self, name: str, progress: Progress, *, done_by_guest: bool = False) -> volume_pb2.Volume:
        """Make a linked clone independent."""
        return await copying.flatten(self._store, name, progress, done_by_guest=done_by_guest)

    async def freeze_volume(self, name: str) -> volume_pb2.Volume:
        """Make a volume a base."""
        return await changing.freeze(self._store, name)

    async def rename_volume(self, name: str, new_name: str) -> volume_pb2.Volume:
        """Give a volume another name."""
        return await changing.rename(self._store, name, new_name)

    async def snapshot_volume(self, name: str, snapshot: str) -> volume_pb2.VolumeSnapshot:
        """Snapshot a volume."""
        return await snapshots.create(self._store, name, snapshot)

    async def revert_volume(self, name: str, snapshot: str) -> volume_pb2.Volume:
        """Make a volume what it was when a snapshot was made."""
        return await snapshots.revert(self._store, name, snapshot)

    async def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Delete a snapshot."""
        await snapshots.delete(self._store, name, snapshot)

    async def snapshots_of(self, name: str) -> list[volume_pb2.VolumeSnapshot]:
        """Return the snapshots of a volume, oldest first."""
        return await snapshots.list_(self._store, name)

    async def snapshot_obstacle(self, name: str) -> str:
        """Tell why a volume cannot be snapshotted; "" when it can."""
        return snapshots.obstacle(self._store, await self._store.find(name))

    async def snapshot_companion(self, name: str, snapshot: str) -> None:
        """Keep the companion of a volume as it is now."""
        await snapshots.keep_companion(self._store, name, snapshot)

    async def revert_companion(self, name: str, snapshot: str) -> None:
        """Make the companion what it was when a snapshot was made."""
        await snapshots.revert_companion(self._store, name, snapshot)

    async def delete_companion_snapshot(self, name: str, snapshot: str) -> None:
        """Forget the companion that a snapshot kept."""
        await snapshots.forget_companion(self._store, name, snapshot)

    def _look(self) -> tuple[os.statvfs_result, str]:
        root = self._store.layout.root
        room = os.statvfs(root)
        if room.f_flag & os.ST_RDONLY:
            return room, f"{self._path} is mounted read-only. Remount it for writing."
        return room, "" if os.access(root, os.W_OK) else f"{self._path} cannot be written by the agent."


def folder_of(path: str, field: str) -> Path:
    """Return a pool's folder. Raises INVALID_ARGUMENT for what is no absolute path."""
    found = Path(path)
    if not found.is_absolute() or ".." in found.parts:
        raise invalid(field, f'"{path}" is no absolute path.', remedy="For example: /srv/gugus.")
    return found
