"""Whether a running guest of another cluster could come in, and where: everything that is in the way, at once. Changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.migration_pb2 import MIGRATION_MODE_LIVE, GuestSurvey, MigrationObstacle, MigrationWay, MovingVolume
from gugus.agent.v1.volume_pb2 import POOL_ABILITY_BLOCK
from gugus.cluster.v1.guest_pb2 import CreateGuestRequest, Guest
from gugus.cluster.v1.migration_pb2 import ReceiveGuestRequest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool

from common.abilities import why_not
from common.errors import GugusError, already_exists, invalid, precondition
from manager.controllers.compile import agent_spec
from manager.controllers.context import Context
from manager.controllers.placing import decide
from manager.guests.complete import complete, without_output
from manager.guests.known import Known
from manager.guests.quota import refuse_beyond_quota
from manager.ha import account
from manager.ha.migration import words_of
from manager.operations.migrate_check import CHECK_TIMEOUT_S
from planner.types import Verdict


@dataclass(frozen=True)
class Plan:
    """Where a guest would come in; `obstacles` when it cannot, then `node` is the one that is nearest to it."""

    node: str = ""
    way: MigrationWay | None = None
    obstacles: Sequence[MigrationObstacle] = ()


def guest_of(context: Context, request: ReceiveGuestRequest) -> Guest:
    """Return the guest as it will be here, complete, without a node, and not stored yet.

    Raises every field at fault, GUEST_ALREADY_EXISTS, QUOTA_EXCEEDED.
    """
    store = context.store
    known = Known.of(store)
    if other := next((guest for guest in known.guests if guest.meta.uid == request.uid), None):
        what = f"guest {other.meta.name} has its UUID {request.uid}: it is the same guest, from an earlier move."
        raise precondition("GUEST_KNOWN", what, remedy=f"Delete {other.meta.name}, or move that one.")
    wanted = CreateGuestRequest(name=request.name, spec=without_output(request.spec), labels=dict(request.labels))
    guest = complete(wanted, known, copied=True)
    if store.peek(Guest, request.name) is not None:
        raise already_exists("guest", request.name, remedy="Choose another name.")
    if not request.uid:
        raise invalid("uid", "is missing; a guest that runs keeps its UUID.")
    refuse_beyond_quota(
        known.projects.get(guest.spec.project) if guest.spec.project else None, known.guests, None, guest
    )
    guest.meta.uid = request.uid
    guest.meta.generation = max(request.generation, context.generation_floor() + 1)
    guest.status.cluster_cpu.CopyFrom(request.cluster_cpu)
    if not request.HasField("cluster_cpu"):
        guest.status.ClearField("cluster_cpu")
    guest.status.started_at.CopyFrom(request.started_at)
    return guest


def volumes_of(guest: Guest, told: GuestSurvey) -> list[MovingVolume]:
    """Return a guest's volumes as they will be here: of the size and format that they have there."""
    there = {volume.disk: volume for volume in told.volumes}
    found = []
    for disk in guest.spec.disks:
        if (volume := there.get(disk.name)) is None:
            raise invalid("survey.volumes", f"has nothing of disk {disk.name}.")
        moving = MovingVolume()
        moving.CopyFrom(volume)
        moving.pool, moving.volume = disk.pool, disk.volume
        found.append(moving)
    return found


async def plan(context: Context, guest: Guest, request: ReceiveGuestRequest) -> Plan:
    """Ask the nodes that could take a guest, the best first, until one has nothing against it."""
    told = GuestSurvey()
    told.CopyFrom(request.survey)
    del told.files[:], told.volumes[:]
    told.volumes.extend(volumes_of(guest, request.survey))
    refused: list[Plan] = []
    decision = decide(context, guest)
    for verdict in sorted(decision.verdicts, key=lambda v: (not v.fits, -v.score, v.node)):
        found = [*_formats(context, told, verdict.node)] if verdict.fits else list(_unfit(verdict))
        way = None
        if verdict.fits:
            answer = await _asked(context, guest, verdict.node, told, request)
            found, way = [*found, *answer.obstacles], answer.way
        if not found:
            return Plan(verdict.node, way)
        refused.append(Plan(verdict.node, way, found))
    nothing = MigrationObstacle(reason="NO_NODE_FITS", message="There is no node.")
    return refused[0] if refused else Plan(obstacles=[nothing])


def fits(context: Context, guest: Guest, node: str) -> bool:
    """Return whether a guest still fits a node that was chosen for it a while ago."""
    return any(verdict.fits for verdict in decide(context, guest).verdicts if verdict.node == node)


def impossible(name: str, found: Sequence[MigrationObstacle]) -> GugusError:
    """Return the error that names every obstacle."""
    return precondition(
        "MIGRATION_IMPOSSIBLE",
        f"guest {name} cannot come in: {words_of(found)}",
        subject=f"guest/{name}",
        metadata={"obstacles": ",".join(one.reason for one in found)},
    )


def obstacles_of(error: GugusError) -> list[MigrationObstacle]:
    """Return an error as obstacles: one for each field at fault."""
    if error.violations:
        return [
            MigrationObstacle(reason=error.reason, subject=one.field, message=one.message) for one in error.violations
        ]
    return [MigrationObstacle(reason=error.reason, message=error.message, remedy=error.remedy)]


async def _asked(
    context: Context, guest: Guest, name: str, told: GuestSurvey, request: ReceiveGuestRequest
) -> migration_pb2.CheckArrivalResponse:
    question = migration_pb2.CheckArrivalRequest(
        spec=agent_spec(guest, ha=account.held(guest)),
        survey=told,
        mode=MIGRATION_MODE_LIVE,
        copied_disks=[disk.name for disk in guest.spec.disks],
        policy=request.policy,
    )
    node = await context.store.require(Node, name)
    try:
        return await context.tell(
            node, lambda agent, _: agent.migrations.CheckArrival(question, timeout=CHECK_TIMEOUT_S)
        )
    except GugusError as error:
        return migration_pb2.CheckArrivalResponse(obstacles=obstacles_of(error))


def _formats(context: Context, told: GuestSurvey, node: str) -> list[MigrationObstacle]:
    """Return the disks whose format a node's pools cannot have."""
    found = []
    for volume in told.volumes:
        pool = context.store.peek(Pool, volume.pool)
        if pool is not None and (why := why_not(pool.status.nodes[node], volume.format, POOL_ABILITY_BLOCK)):
            found.append(MigrationObstacle(reason="POOL_UNABLE", subject=f"disks[{volume.disk}]", message=why))
    return found


def _unfit(verdict: Verdict) -> list[MigrationObstacle]:
    return [
        MigrationObstacle(reason="NO_NODE_FITS", subject=f"node/{verdict.node}", message=f"{verdict.node}: {refusal}")
        for refusal in verdict.refusals
    ]
