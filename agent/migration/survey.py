"""What a host tells of a guest before it moves, and whether another host could take it: everything at once, changing nothing."""

import asyncio
import shutil
from collections.abc import Awaitable

from gugus.agent.v1 import guest_pb2, migration_pb2, volume_pb2
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_STATE_STOPPED
from gugus.agent.v1.migration_pb2 import MIGRATION_MODE_CHECKPOINT, MIGRATION_MODE_LIVE, GuestSurvey, MigrationObstacle

from agent.migration import checkpoints
from agent.migration.departure import reach
from agent.migration.host import Here
from agent.migration.policy_faults import policy_faults
from common.errors import GugusError
from common.units import format_size

PROGRAMS = {True: "rsync", False: "qemu-nbd"}
"""What takes in a copied volume: of a folder (True), of a disk."""


async def unreachable(request: migration_pb2.SurveyGuestRequest) -> list[MigrationObstacle]:
    """Return the obstacle of a target whose migration port cannot be reached from here."""
    address, port = request.reach_address, request.reach_port
    if not address or not (why := await asyncio.to_thread(reach, address, port)):
        return []
    what = f"the target's migration port, {address} port {port}, cannot be reached from this node: {why}"
    return [_obstacle("TARGET_UNREACHABLE", "", what, "Open that TCP port between the two hosts.")]


async def survey(here: Here, name: str, *, with_files: bool) -> GuestSurvey:
    """Return the survey of a guest of this host. Raises GUEST_NOT_FOUND."""
    guest = here.guests.get(name)
    spec = guest.spec
    observation = await here.observer.look(name, here.hypervisor(spec))
    running = observation is not None and observation.running
    told = GuestSurvey(state=observation.state if observation else GUEST_STATE_STOPPED)
    if running and (driver := here.hypervisor(spec).migration) is not None:
        told = await driver.survey(name)
        told.state = observation.state if observation else GUEST_STATE_STOPPED
        if not with_files:
            del told.files[:]
    if running and (container := await checkpoints.survey(here, spec)) is not None:
        told.container.CopyFrom(container)
    for disk in spec.disks:
        _, volume = await here.pools.locate(disk)
        told.volumes.add(
            disk=disk.name,
            pool=disk.pool,
            volume=disk.volume,
            format=volume.format,
            size_bytes=volume.size_bytes,
            used_bytes=volume.used_bytes,
            privileged=spec.kind == GUEST_KIND_CONTAINER and spec.container.privileged,
        )
    return told


async def obstacles(here: Here, request: migration_pb2.CheckArrivalRequest) -> list[MigrationObstacle]:
    """Return everything that keeps a guest from coming to this host."""
    spec, found = request.spec, []
    found += [_obstacle("POLICY_INVALID", "policy", fault) for fault in policy_faults(request.policy)]
    known = here.state.guests.get(spec.name)
    if known is not None and known.uid != spec.uid:
        found.append(
            _obstacle("GUEST_NAME_TAKEN", "", f'another guest "{spec.name}" is defined there', "Delete it there.")
        )
    for nic in spec.nics:
        found += await _tried(f"nics[{nic.name}]", _bridge(here, nic))
    copied = set(request.copied_disks)
    for disk in spec.disks:
        if disk.name not in copied:
            found += await _tried(f"disks[{disk.name}]", here.pools.locate(disk))
    found += await _room(here, [v for v in request.survey.volumes if v.disk in copied], request.mode)
    try:
        hypervisor = here.hypervisor(spec)
    except GugusError as error:
        return [*found, _of(error, "")]
    facts = await hypervisor.probe()
    if not facts.ready:
        found.append(_obstacle("HYPERVISOR_DOWN", "", facts.reason))
    elif request.mode == MIGRATION_MODE_LIVE:
        if hypervisor.migration is None:
            found.append(_obstacle("NOT_LIVE", "", f"{hypervisor.name} guests cannot go over while they run"))
        else:
            found += await hypervisor.migration.check(spec, request.survey, request.policy)
    elif request.mode == MIGRATION_MODE_CHECKPOINT:
        if (able := checkpoints.ability(here, spec)) is None:
            found.append(_obstacle("NOT_LIVE", "", f"{hypervisor.name} guests cannot go over while they run"))
        else:
            found += await able.check(spec, request.survey.container)
    return found


async def _bridge(here: Here, nic: guest_pb2.GuestNic) -> None:
    here.networks.bridge_of(nic)


async def _room(
    here: Here, volumes: list[migration_pb2.MovingVolume], mode: "migration_pb2.MigrationMode.ValueType"
) -> list[MigrationObstacle]:
    """Check the pools that volumes are copied into, and the programs that do it."""
    found = []
    for name in sorted({volume.pool for volume in volumes}):
        wanted = sum(volume.used_bytes for volume in volumes if volume.pool == name)
        try:
            pool = await here.pools.get(name).status()
        except GugusError as error:
            found.append(_of(error, f"pool/{name}"))
            continue
        if not pool.ready:
            found.append(_obstacle("POOL_NOT_READY", f"pool/{name}", pool.reason))
        elif pool.available_bytes < wanted:
            what = f"{format_size(wanted)} are to be copied, and {format_size(pool.available_bytes)} are free"
            found.append(_obstacle("NO_SPACE", f"pool/{name}", what, "Make room there."))
    if mode != MIGRATION_MODE_LIVE:
        trees = {volume.format == volume_pb2.VOLUME_FORMAT_FILESYSTEM for volume in volumes}
        missing = sorted(PROGRAMS[tree] for tree in trees if shutil.which(PROGRAMS[tree]) is None)
        found += [_obstacle("PROGRAM_MISSING", "", f"{program} is not installed there") for program in missing]
    return found


async def _tried(subject: str, work: Awaitable[object]) -> list[MigrationObstacle]:
    try:
        await work
    except GugusError as error:
        return [_of(error, subject)]
    return []


def _of(error: GugusError, subject: str) -> MigrationObstacle:
    return MigrationObstacle(reason=error.reason, subject=subject, message=error.message, remedy=error.remedy)


def _obstacle(reason: str, subject: str, message: str, remedy: str = "") -> MigrationObstacle:
    return MigrationObstacle(reason=reason, subject=subject, message=f"{message.rstrip('.')}.", remedy=remedy)
