"""Pools of this host: which it has (the state remembers), their drivers, and which guests use them."""

import asyncio
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.state import AgentState
from agent.storage import registry
from agent.storage.flush import Flusher
from agent.storage.pool import StoragePool
from common import validate
from common.errors import GugusError, as_gugus_error, not_found, precondition
from common.logs import get_logger

ACTIVATE_TIMEOUT_S = 2.0
"""How long the start of the agent waits for all pools: well within the shortest lease, which nobody renews meanwhile."""

FLUSH_WAIT_S = 0.5
"""How long one look at dead guests' writes takes at most: a part of the kill budget, in which looks are repeated."""

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

    async def delete_volume(self, pool: str, name: str) -> None:
        """Delete a volume. Raises VOLUME_IN_USE when a guest defined here uses it."""
        users = self._users(pool, name)
        if users:
            raise _in_use("VOLUME_IN_USE", f'volume "{name}" of pool "{pool}"', f"pool/{pool}/volume/{name}", users)
        await self.get(pool).delete_volume(name)

    async def statuses(self) -> list[volume_pb2.Pool]:
        """Tell how each pool is, by name."""
        return await asyncio.gather(*(self._status(name) for name in sorted(self._state.pools)))

    async def locate(self, disk: guest_pb2.GuestDisk) -> tuple[Path, volume_pb2.Volume]:
        """Find the volume of a disk. Raises VOLUME_MISSING."""
        try:
            pool = self.get(disk.pool)
            return await pool.path_of(disk.volume), await pool.get_volume(disk.volume)
        except GugusError as error:
            if not error.reason.endswith("_NOT_FOUND"):
                raise
            raise precondition(
                "VOLUME_MISSING",
                f'disk "{disk.name}" needs the volume "{disk.volume}" in pool "{disk.pool}": {error.message}',
                remedy="Create the volume first, or correct the disk.",
                subject=f"pool/{disk.pool}/volume/{disk.volume}",
            ) from error

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
