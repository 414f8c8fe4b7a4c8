"""Pools of this host: which it has (the state remembers), their drivers, and which guests use them."""

import asyncio
from pathlib import Path

from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.state import AgentState
from agent.storage import registry
from agent.storage.pool import StoragePool
from common import validate
from common.errors import GugusError, as_gugus_error, not_found, precondition
from common.logs import get_logger

_log = get_logger("pools")


class Pools:
    """All pools of this host. Methods raise GugusError."""

    def __init__(self, state: AgentState) -> None:
        self._state = state
        self._pools: dict[str, StoragePool] = {}

    async def open(self) -> None:
        """Make the pools that are remembered usable again; one that fails stays and tells why in its status."""
        for spec in list(self._state.pools.values()):
            try:
                self._pools[spec.name] = registry.create(spec)
                await self._pools[spec.name].activate()
            except GugusError as error:
                _log.warning("pool not ready", pool=spec.name, reason=str(error))

    async def ensure(self, spec: volume_pb2.PoolSpec) -> volume_pb2.Pool:
        """Make a pool usable and remember it."""
        validate.require("spec.name", validate.name(spec.name))
        known = self._pools.get(spec.name)
        # The driver in use knows which operations are under way; another would not wait for them.
        pool = known if known is not None and known.spec == spec else registry.create(spec)
        await pool.activate()
        await asyncio.to_thread(self._state.save_pool, spec)
        self._pools[spec.name] = pool
        return await pool.status()

    async def forget(self, name: str) -> None:
        """Forget a pool. Raises POOL_IN_USE."""
        users = self._users(name, "")
        if users:
            raise _in_use("POOL_IN_USE", f'pool "{name}"', f"pool/{name}", users)
        await asyncio.to_thread(self._state.remove_pool, name)
        self._pools.pop(name, None)

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
        return [await self._status(name) for name in sorted(self._state.pools)]

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

    async def _status(self, name: str) -> volume_pb2.Pool:
        spec = self._state.pools[name]
        try:
            return await self.get(name).status()
        except Exception as error:  # a pool of a later version's driver, or a fault of one must not hide the others
            return volume_pb2.Pool(spec=spec, ready=False, reason=str(as_gugus_error(error, _log)))

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
