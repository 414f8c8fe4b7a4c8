"""Pools of this host: which it has (the state remembers), their drivers, and which guests use them."""

import asyncio
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.state import AgentState
from agent.storage import registry
from agent.storage.flush import Flusher
from agent.storage.pool import CopyRequest, Progress, StoragePool, VolumeTransfer
from common import validate
from common.errors import GugusError, as_gugus_error, not_found, precondition
from common.logs import get_logger

ACTIVATE_TIMEOUT_S = 2.0
"""How long the start of the agent waits for all pools: well within the shortest lease, which nobody renews meanwhile."""

FLUSH_WAIT_S = 0.5
"""How long one look at dead guests' writes takes at most: a part of the kill budget, in which looks are repeated."""

_BASES = frozenset({volume_pb2.VOLUME_KIND_IMAGE, volume_pb2.VOLUME_KIND_ISO, volume_pb2.VOLUME_KIND_BASE})

_log = get_logger("pools")


class Pools:
    """All pools of this host. Methods raise GugusError."""

    def __init__(self, state: AgentState) -> None:
        self._state = state
        self._pools: dict[str, StoragePool] = {}
        self._active: set[str] = set()
        self._activations: dict[str, asyncio.Task[None]] = {}
        self._flusher = Flusher()

    async def open(self) -> None:
        """Make the pools that are remembered usable again; one that is not yet tells why in its status."""
        for spec in list(self._state.pools.values()):
            try:
                self._pools[spec.name] = registry.create(spec)
            except GugusError as error:
                _log.warning("pool not ready", pool=spec.name, reason=str(error))
        await asyncio.gather(*(self._open(name) for name in self._pools))

    async def ensure(self, spec: volume_pb2.PoolSpec) -> volume_pb2.Pool:
        """Make a pool usable and remember it."""
        validate.require("spec.name", validate.name(spec.name))
        known = self._pools.get(spec.name)
        # The driver in use knows which operations are under way; another would not wait for them.
        pool = known if known is not None and known.spec == spec else registry.create(spec)
        await pool.activate()
        await self._state.run(self._state.save_pool, spec)
        self._pools[spec.name] = pool
        self._active.add(spec.name)
        return await pool.status()

    async def forget(self, name: str) -> None:
        """Forget a pool. Raises POOL_IN_USE."""
        users = self._users(name, "")
        if users:
            raise _in_use("POOL_IN_USE", f'pool "{name}"', f"pool/{name}", users)
        await self._state.run(self._state.remove_pool, name)
        self._pools.pop(name, None)
        self._active.discard(name)
        self._activations.pop(name, None)

    def get(self, name: str) -> StoragePool:
        """Return a pool. Raises POOL_NOT_FOUND."""
        if name not in self._pools:
            raise not_found("pool", name, remedy="Ensure the pool on this node first.")
        return self._pools[name]

    async def delete_volume(self, pool: str, name: str, *, orphan_age_s: int = 0) -> None:
        """Delete a volume. Raises VOLUME_IN_USE when a guest defined here uses it.

        orphan_age_s: if set, also VOLUME_TOO_YOUNG when it was made less than so long ago, VOLUME_BUSY when it is open.
        """
        self._refuse_used(pool, name)
        if orphan_age_s:
            await self.get(pool).delete_orphan(name, orphan_age_s)
        else:
            await self.get(pool).delete_volume(name)

    async def rename_volume(self, pool: str, name: str, new_name: str) -> volume_pb2.Volume:
        """Rename a volume. Raises VOLUME_IN_USE when a guest defined here uses it."""
        self._refuse_used(pool, name)
        return await self.get(pool).rename_volume(name, new_name)

    async def copy_volume(self, request: volume_pb2.CopyVolumeRequest, progress: Progress) -> volume_pb2.Volume:
        """Copy a volume in full, also from another pool."""
        wanted = CopyRequest(
            name=request.name,
            source=self.get(request.source_pool or request.pool),
            source_volume=request.source_volume,
            source_snapshot=request.source_snapshot,
            format=request.format,
            as_image=request.as_image,
            bytes_per_s=request.bytes_per_s,
        )
        return await self.get(request.pool).copy_volume(wanted, progress)

    def exporting(self, id_: str) -> VolumeTransfer:
        """Return the transfer that has an export. Raises EXPORT_NOT_FOUND."""
        for pool in self._pools.values():
            if pool.transfer.has_export(id_):
                return pool.transfer
        raise not_found("export", id_, remedy="It was ended, or the agent was restarted. Export it again.")

    async def end_export(self, id_: str) -> None:
        """Forget an export, if it is there."""
        for pool in list(self._pools.values()):
            await pool.transfer.end_export(id_)

    async def statuses(self) -> list[volume_pb2.Pool]:
        """Tell how each pool is, by name."""
        return await asyncio.gather(*(self._status(name) for name in sorted(self._state.pools)))

    async def locate(self, disk: guest_pb2.GuestDisk) -> tuple[Path, volume_pb2.Volume]:
        """Find the volume of a disk. Raises VOLUME_MISSING, VOLUME_IS_BASE (a base that the guest would write to)."""
        try:
            pool = self.get(disk.pool)
            path, volume = await pool.path_of(disk.volume), await pool.get_volume(disk.volume)
        except GugusError as error:
            if not error.reason.endswith("_NOT_FOUND"):
                raise
            raise precondition(
                "VOLUME_MISSING",
                f'disk "{disk.name}" needs the volume "{disk.volume}" in pool "{disk.pool}": {error.message}',
                remedy="Create the volume first, or correct the disk.",
                subject=f"pool/{disk.pool}/volume/{disk.volume}",
            ) from error
        if volume.kind in _BASES and not (disk.read_only or disk.settings.read_only):
            raise precondition(
                "VOLUME_IS_BASE",
                f'disk "{disk.name}" is the volume "{disk.volume}", an image or a base that is never written.',
                remedy="Make a clone of it, or attach it read-only.",
                subject=f"pool/{disk.pool}/volume/{disk.volume}",
            )
        return path, volume

    def shared(self) -> dict[str, Path]:
        """Return the folders of the shared pools that are in use."""
        specs = [spec for spec in list(self._state.pools.values()) if spec.dir.shared and spec.name in self._active]
        return {spec.name: Path(spec.dir.path) for spec in specs}

    async def flush(self, guests: Collection[str], timeout_s: float = FLUSH_WAIT_S) -> dict[str, str]:
        """Write back what guests that have ended wrote to shared pools; return whose writes are not through, and why.

        Runs in any thread's loop.
        """
        return await self._flusher.flush(self._written_by(guests), timeout_s)

    def _written_by(self, guests: Collection[str]) -> dict[Path, frozenset[str]]:
        """Return the folders of shared pools that guests may have written to. A guest not defined here: to all."""
        shared = {spec.name: Path(spec.dir.path) for spec in list(self._state.pools.values()) if spec.dir.shared}
        writers: defaultdict[Path, set[str]] = defaultdict(set)
        for name in guests:
            spec = self._state.guests.get(name)
            pools = shared.keys() if spec is None else {disk.pool for disk in spec.disks if not disk.read_only}
            for pool in pools & shared.keys():
                writers[shared[pool]].add(name)
        return {folder: frozenset(names) for folder, names in writers.items()}

    async def _status(self, name: str) -> volume_pb2.Pool:
        spec = self._state.pools[name]
        try:
            if problem := await self._activate(self.get(name)):
                return volume_pb2.Pool(spec=spec, ready=False, reason=problem)
            return await self.get(name).status()
        except Exception as error:  # a pool of a later version's driver, or a fault of one must not hide the others
            return volume_pb2.Pool(spec=spec, ready=False, reason=str(as_gugus_error(error, _log)))

    async def _open(self, name: str) -> None:
        if problem := await self._activate(self._pools[name]):
            _log.warning("pool not ready", pool=name, reason=problem)

    async def _activate(self, pool: StoragePool) -> str:
        """Make a pool usable unless it is; return why it is not, "" when it is. Tried anew at each call.

        What takes longer than the limit goes on, and later calls do not wait for it.
        """
        name = pool.spec.name
        if name in self._active:
            return ""
        task = self._activations.get(name)
        if task is None:
            task = self._activations[name] = asyncio.create_task(pool.activate())
            await asyncio.wait({task}, timeout=ACTIVATE_TIMEOUT_S)
        if not task.done():
            return f'Pool "{name}" is not usable yet: its file system is slow or does not answer.'
        self._activations.pop(name, None)
        if (error := task.exception()) is not None:
            return str(as_gugus_error(error, _log))
        self._active.add(name)
        return ""

    def _refuse_used(self, pool: str, name: str) -> None:
        if users := self._users(pool, name):
            raise _in_use("VOLUME_IN_USE", f'volume "{name}" of pool "{pool}"', f"pool/{pool}/volume/{name}", users)

    def _users(self, pool: str, volume: str) -> list[str]:
        """Guests that use a volume of a pool, or any of its volumes when `volume` is empty."""
        specs = self._state.guests.values()
        return sorted({s.name for s in specs for d in s.disks if d.pool == pool and (not volume or d.volume == volume)})


def _in_use(reason: str, what: str, subject: str, users: list[str]) -> GugusError:
    return precondition(
        reason,
        f"{what} is used by {', '.join(users)}.",
        remedy="Delete these guests from this node first.",
        subject=subject,
        metadata={"guests": ",".join(users)},
    )
