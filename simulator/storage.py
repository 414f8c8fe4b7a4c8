"""Shared pools in the simulation: who has the disks of guests locked, and for how long the storage believes it.

What a lock decides, and in which words, is the product's (`agent.leases`). Made up is whose processes live, and when a storage gives
the locks of a host back that it does not hear. At rest nothing is done: what became of a lock is found out when somebody claims the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from gugus.agent.v1.guest_pb2 import GuestSpec

from agent.leases.lease import Record, is_outdated
from agent.leases.refusals import in_use, outdated
from simulator.clockwork import S

if TYPE_CHECKING:
    from common.errors import GugusError
    from simulator.host import Host
    from simulator.world import World

DEFAULT_LEASE_S = 90.0
"""As an NFS 4 server of Linux has it (docs/fencing.md)."""


class Locks(StrEnum):
    """When the locks of a host end that are not given up by the process that has them."""

    HOST = "host"
    """With its power; a cut of the network does not part it from the storage."""
    LEASE = "lease"
    """Some time after the storage's server has last heard the host, which its network leads to."""
    NONE = "none"
    """There are none."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A shared pool. lease_ns: for so long its server keeps the locks of a host that it does not hear."""

    name: str
    locks: Locks = Locks.LEASE
    lease_ns: int = round(DEFAULT_LEASE_S * S)


@dataclass(slots=True)
class _Disk:
    """A guest's disk as the storage has it. lives: whether the process that locked it last does; writers: hosts that can write to it."""

    record: Record
    lives: bool = True
    writers: list[str] = field(default_factory=list)


class Storage:
    """All shared pools. One that was not declared is as a folder on NFS."""

    def __init__(self, world: World, pools: Iterable[Pool]) -> None:
        self.world = world
        self._pools: Mapping[str, Pool] = {pool.name: pool for pool in pools}
        self._disks: dict[str, dict[str, _Disk]] = {}
        """Of each guest that ever ran, by pool."""
        self._unheard: dict[str, int] = {}
        """Since when servers do not hear a host."""

    def heard(self, host: Host) -> None:
        """Note whether a host reaches its storage's servers by now."""
        if host.powered and not host.frozen and host.name not in self.world.isolated:
            self._unheard.pop(host.name, None)
        else:
            self._unheard.setdefault(host.name, self.world.queue.now)

    def claim(self, host: Host, spec: GuestSpec, generation: int) -> GugusError | None:
        """Lock the disks of a guest that is about to run on a host, or say why it may not."""
        claimed = Record(
            guest=spec.name, uid=spec.uid, generation=generation, host=host.name, boot_id=host.agent.boot_id
        )
        disks = self._disks.setdefault(spec.name, {})
        pools = [self._pools.get(disk.pool) or Pool(disk.pool) for disk in spec.disks]
        for pool in pools if self.world.rules.storage_locks else ():
            disk = disks.get(pool.name)
            if disk is not None and pool.locks is not Locks.NONE and self._is_locked(pool, disk):
                return in_use(claimed, pool.name, disk.record)
            if disk is not None and is_outdated(claimed, disk.record):
                return outdated(claimed, pool.name, disk.record)
        for pool in pools:
            disks[pool.name] = self._taken(pool, disks.get(pool.name), claimed)
        return None

    def release(self, host: str, guest: str) -> None:
        """A guest's process on a host has ended."""
        for disk in self._disks.get(guest, {}).values():
            if host in disk.writers:
                disk.writers.remove(host)
            if disk.record["host"] == host:
                disk.lives = False

    def two_writers(self, guest: str) -> str:
        """Return which disk of a guest is written to from two hosts; "" when none is."""
        for pool, disk in self._disks.get(guest, {}).items():
            if len(disk.writers) > 1:
                return f"the disk of {guest} in {pool} is written to from {' and '.join(disk.writers)}"
        return ""

    def _is_locked(self, pool: Pool, disk: _Disk) -> bool:
        """Whether the storage has a disk locked: a server hears of the end of a process only while it hears the host."""
        since = self._unheard.get(disk.record["host"])
        if pool.locks is Locks.HOST or since is None:
            return disk.lives
        return self.world.queue.now - since < pool.lease_ns

    def _taken(self, pool: Pool, before: _Disk | None, claimed: Record) -> _Disk:
        """Return a disk as it is once it is open on another host, too; whoever had a lock that was given away can write no more."""
        writers = [host for host in before.writers if host != claimed["host"]] if before else []
        if self.world.rules.storage_locks and pool.locks is not Locks.NONE:
            for host in writers:
                self.world.tell(f"guest/{claimed['guest']}", f"{host} has lost the lock of its disk in {pool.name}")
            writers = []
        return _Disk(claimed, writers=[*writers, claimed["host"]])
