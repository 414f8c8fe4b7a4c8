"""Snapshots of the guests of this host: by the hypervisor while a guest runs, by its pools while it does not.

Invariant: everything happens in the guest's turn, so it neither starts nor stops meanwhile by an order of ours; a snapshot
that does not become whole is taken away again; and whatever was held for it (file systems, processes) is let go.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from gugus.agent.v1 import guest_pb2, snapshot_pb2
from gugus.agent.v1.snapshot_pb2 import SnapshotObstacle

from agent.compute.hypervisor import Hypervisor, Observation
from agent.compute.snapshots import GuestSnapshots, Taken
from agent.guests import Guests
from agent.holding import held
from agent.observer import Observer
from agent.pools import Pools
from agent.state import AgentState
from agent.turns import Turns
from common import validate
from common.errors import GugusError, not_found, precondition, resource_exhausted
from common.logs import get_logger
from common.units import format_size

MS_PER_S = 1000
_LOST_REASON = "Input/output error"
"""What QEMU says of a write that failed for any reason, a full file system's as well."""

_GONE = frozenset({"VOLUME_MISSING", "VOLUME_NOT_FOUND", "POOL_NOT_FOUND"})

T = TypeVar("T")
_log = get_logger("snapshots")


@dataclass(frozen=True, slots=True)
class _Guest:
    """A guest as it is at the beginning of its turn. `live` is set when its hypervisor takes the snapshots."""

    name: str
    hypervisor: Hypervisor
    observation: Observation | None
    live: GuestSnapshots | None

    @property
    def running(self) -> bool:
        return self.observation is not None and self.observation.running

    @property
    def pid(self) -> int:
        return self.observation.pid if self.observation is not None and self.running else 0


class Snapshots:
    """All of gugus.agent.v1.SnapshotService. Methods raise GugusError."""

    def __init__(self, state: AgentState, observer: Observer, pools: Pools, guests: Guests, turns: Turns) -> None:
        self._state, self._observer, self._pools, self._guests, self._turns = state, observer, pools, guests, turns

    async def prepare(self, request: snapshot_pb2.PrepareSnapshotRequest) -> snapshot_pb2.PrepareSnapshotResponse:
        """Tell everything that stands in the way."""
        guest = await self._look(request.name, request.kind)
        answer = snapshot_pb2.PrepareSnapshotResponse(running=guest.running, pid=guest.pid)
        answer.obstacles.extend(await self._obstacles(guest, request.disks, memory=request.memory))
        if request.memory and guest.live is not None and not answer.obstacles:
            answer.machine = await guest.live.machine(request.name)
        return answer

    async def take(self, request: snapshot_pb2.TakeSnapshotRequest) -> snapshot_pb2.TakeSnapshotResponse:
        """Take a snapshot."""
        validate.require("tag", validate.name(request.tag))
        return await self._turn(request.name, request.epoch, partial(self._take, request))

    async def delete(self, request: snapshot_pb2.DeleteSnapshotRequest) -> None:
        """Delete a snapshot from all disks that have it."""
        await self._turn(request.name, request.epoch, partial(self._delete, request))

    async def revert(self, request: snapshot_pb2.RevertSnapshotRequest) -> None:
        """Make all disks of a stopped guest what they were."""
        await self._turn(request.name, request.epoch, partial(self._revert, request))

    async def start_from(self, request: snapshot_pb2.StartFromSnapshotRequest) -> guest_pb2.Guest:
        """Start a guest with the memory of a snapshot, under the same rules as any start."""
        spec = self._state.guests.get(request.name)
        if spec is None:
            raise not_found("guest", request.name, remedy="Create the guest on this node first.")
        hypervisor = self._observer.hypervisor_for(spec.kind)
        live = snapshots_of(hypervisor)
        if live is None:
            raise _unsupported(request.name, f"hypervisor {hypervisor.name} holds no memory in snapshots.")
        files = [(await self._pools.locate(disk))[0] for disk in request.disks]

        async def boot(name: str, generation: int) -> None:
            revert = partial(self._revert_disks, request.disks, request.tag)
            await live.start_from(name, generation, request.tag, files, request.machine, revert)

        return await self._guests.start(request.epoch, request.name, request.grant.generation, boot)

    # In the guest's turn

    async def _take(self, request: snapshot_pb2.TakeSnapshotRequest) -> snapshot_pb2.TakeSnapshotResponse:
        guest = await self._look(request.name, request.kind)
        if request.pid and guest.pid != request.pid:
            raise precondition(
                "GUEST_CHANGED",
                f'guest "{request.name}" ended, or was started anew, since its snapshot was prepared.',
                remedy="Take the snapshot again.",
                subject=f"guest/{request.name}",
            )
        if obstacles := await self._obstacles(guest, request.disks, memory=request.memory):
            raise unsupported(request.name, obstacles)
        if request.memory and (full := await self._full(guest, request.disks[0])):
            raise full
        running = guest.observation if guest.running else None
        live = guest.live is not None
        async with held(guest.hypervisor, running, live=live, request=request) as hold:
            taken = await self._take_disks(guest, request)
        _log.info("snapshot taken", guest=request.name, tag=request.tag, paused_ms=taken.paused_ms, note=hold.note)
        return snapshot_pb2.TakeSnapshotResponse(
            consistency=hold.consistency,
            note=hold.note,
            paused_ms=taken.paused_ms,
            memory_bytes=taken.memory_bytes,
        )

    async def _take_disks(self, guest: _Guest, request: snapshot_pb2.TakeSnapshotRequest) -> Taken:
        try:
            if guest.live is not None:
                files = await self._files(request.disks)
                for disk in request.disks:
                    await self._pools.get(disk.pool).snapshot_companion(disk.volume, request.tag)
                return await guest.live.take(request.name, request.tag, files, memory=request.memory)
            began_s = asyncio.get_running_loop().time()
            for disk in request.disks:
                pool = self._pools.get(disk.pool)
                if request.tag in {known.name for known in await pool.snapshots_of(disk.volume)}:
                    await pool.delete_snapshot(disk.volume, request.tag)  # of another moment than the others will be
            for disk in request.disks:
                await self._pools.get(disk.pool).snapshot_volume(disk.volume, request.tag)
            took_s = asyncio.get_running_loop().time() - began_s
            return Taken(paused_ms=round(took_s * MS_PER_S) if guest.running else 0)
        except BaseException as error:
            full = await self._full(guest, request.disks[0]) if _LOST_REASON in str(error) else None
            with suppress(GugusError):  # the caller deletes it once more when it cannot be deleted now
                await asyncio.shield(self._remove(guest, request.disks, request.tag))
            if full is not None:
                raise full from error
            raise

    async def _delete(self, request: snapshot_pb2.DeleteSnapshotRequest) -> None:
        guest = await self._look(request.name, request.kind)
        await self._remove(guest, request.disks, request.tag)

    async def _remove(self, guest: _Guest, disks: Sequence[guest_pb2.GuestDisk], tag: str) -> None:
        """Delete a snapshot: by the hypervisor from the disks that it uses, by their pools from others."""
        spec = self._state.guests.get(guest.name)
        used = {(disk.pool, disk.volume) for disk in spec.disks} if spec and guest.live is not None else set()
        present = [disk for disk in disks if await self._is_there(disk)]
        mine = [disk for disk in present if (disk.pool, disk.volume) in used]
        if guest.live is not None and mine:
            await guest.live.delete(guest.name, tag, await self._files(mine))
        for disk in present:
            pool = self._pools.get(disk.pool)
            if disk in mine:
                await pool.delete_companion_snapshot(disk.volume, tag)
            else:
                await pool.delete_snapshot(disk.volume, tag)

    async def _revert(self, request: snapshot_pb2.RevertSnapshotRequest) -> None:
        guest = await self._look(request.name, request.kind)
        if guest.running:
            what = f'guest "{request.name}" is running.'
            raise precondition("GUEST_RUNNING", what, remedy="Stop it first.", subject=f"guest/{request.name}")
        await self._revert_disks(request.disks, request.tag)
        _log.info("reverted to a snapshot", guest=request.name, tag=request.tag)

    async def _revert_disks(self, disks: Sequence[guest_pb2.GuestDisk], tag: str) -> None:
        for disk in disks:
            if tag not in {known.name for known in await self._pools.get(disk.pool).snapshots_of(disk.volume)}:
                remedy = f'Disk "{disk.name}" (volume {disk.volume}) does not have it.'
                raise not_found("snapshot", tag, remedy=remedy)
        for disk in disks:
            await self._pools.get(disk.pool).revert_volume(disk.volume, tag)

    # How things are

    async def _look(self, name: str, kind: guest_pb2.GuestKind.ValueType) -> _Guest:
        hypervisor = self._observer.hypervisor_for(kind)
        observation = await self._observer.look(name, hypervisor)
        running = observation is not None and observation.running
        return _Guest(name, hypervisor, observation, snapshots_of(hypervisor) if running else None)

    async def _obstacles(
        self, guest: _Guest, disks: Sequence[guest_pb2.GuestDisk], *, memory: bool
    ) -> list[SnapshotObstacle]:
        found = []
        for disk in disks:
            try:
                reason = await self._pools.get(disk.pool).snapshot_obstacle(disk.volume)
            except GugusError as error:
                reason = error.message
            if reason:
                found.append(SnapshotObstacle(what=disk.name, pool=disk.pool, reason=reason.rstrip(".")))
        if memory:
            reasons = await self._memory_obstacles(guest)
            found += [SnapshotObstacle(what="memory", reason=reason) for reason in reasons]
        return found

    async def _memory_obstacles(self, guest: _Guest) -> list[str]:
        if not guest.running:
            return ["the guest is not running"]
        if guest.live is None:
            return [f"the hypervisor {guest.hypervisor.name} cannot hold it"]
        return await guest.live.memory_obstacles(guest.name)

    async def _full(self, guest: _Guest, disk: guest_pb2.GuestDisk) -> GugusError | None:
        """Return the error for a pool without room for a guest's memory, which is written into a disk; None when there is.

        A pool that is filled to the brim costs all guests on it, so it is looked at before, and for the most that it may take.
        """
        spec, observation = self._state.guests.get(guest.name), guest.observation
        if spec is None or observation is None:
            return None
        need = min(observation.memory_used_bytes, spec.memory_bytes)
        free = (await self._pools.get(disk.pool).status()).available_bytes
        if free >= need:
            return None
        return resource_exhausted(
            "NO_SPACE",
            f'pool "{disk.pool}" has not enough room for the memory of "{guest.name}": {format_size(free)} of up to '
            f"{format_size(need)} are free.",
            remedy="Make room in the pool, or take the snapshot without memory.",
        )

    async def _files(self, disks: Sequence[guest_pb2.GuestDisk]) -> list[Path]:
        return [(await self._pools.locate(disk))[0] for disk in disks]

    async def _is_there(self, disk: guest_pb2.GuestDisk) -> bool:
        try:
            await self._pools.get(disk.pool).get_volume(disk.volume)
        except GugusError as error:
            if error.reason not in _GONE:
                raise
            return False
        return True

    async def _turn(self, name: str, epoch: int, change: Callable[[], Awaitable[T]]) -> T:
        return await self._turns.run(f"guest/{name}", epoch, change)


def snapshots_of(hypervisor: Hypervisor) -> GuestSnapshots | None:
    """Return a driver's ability to take snapshots of running guests, None when it has none."""
    found: GuestSnapshots | None = getattr(hypervisor, "snapshots", None)
    return found


def unsupported(name: str, obstacles: Sequence[SnapshotObstacle]) -> GugusError:
    """Return the error that names all obstacles of a snapshot."""
    words = [f"{o.what}{f' (pool {o.pool})' if o.pool else ''}: {o.reason}" for o in obstacles]
    return _unsupported(name, f"{'; '.join(words)}.")


def _unsupported(name: str, why: str) -> GugusError:
    return precondition(
        "SNAPSHOT_UNSUPPORTED",
        f'guest "{name}" can have no such snapshot: {why}',
        remedy="Move the disk to a pool that has snapshots, or leave it out (no_snapshot).",
        subject=f"guest/{name}",
    )
