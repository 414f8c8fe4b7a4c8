"""Guests of other clusters at the door: whether one can come, its place here, and what is told of its source."""

from gugus.agent.v1 import guest_pb2 as agent_guest
from gugus.agent.v1 import migration_pb2 as agent_pb2
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_MODE_LIVE,
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_RUNNING,
    MigrationPresence,
)
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_CREATING, Guest
from gugus.cluster.v1.migration_pb2 import ReceiveGuestRequest, ReceiveGuestResponse, TellMigrationRequest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from common import validate
from common.errors import GugusError, aborted, invalid, precondition
from manager.controllers import admission
from manager.controllers.compile import agent_spec
from manager.controllers.context import Context, with_epoch
from manager.events import record
from manager.ha import account
from manager.operations import arrival_check, receive
from manager.operations.migrate import PREPARE_TIMEOUT_S
from manager.services.forward import actor
from manager.services.requests import upon_latest
from manager.store import Txn
from manager.tasks import ENDED, new_task

FINAL = (MIGRATION_PRESENCE_RUNNING, MIGRATION_PRESENCE_ABSENT)
"""What can be told for good."""


async def looked(context: Context, request: ReceiveGuestRequest) -> ReceiveGuestResponse:
    """Tell whether a guest could come in: where to, or all that is in the way."""
    try:
        guest = arrival_check.guest_of(context, request)
        plan = await arrival_check.plan(context, guest, request)
    except GugusError as error:
        return ReceiveGuestResponse(obstacles=arrival_check.obstacles_of(error))
    answer = ReceiveGuestResponse(node=plan.node, obstacles=plan.obstacles)
    if plan.way is not None:
        answer.target.way.CopyFrom(plan.way)
    return answer


async def expected(context: Context, request: ReceiveGuestRequest) -> ReceiveGuestResponse:
    """Write a guest down that is to come in, unless that was done before, and have its node make ready for it.

    Raises MIGRATION_IMPOSSIBLE with every obstacle.
    """
    validate.require("migration", validate.name(request.migration))
    if not request.ca_pem or request.cluster_id in ("", actor().cluster_id):
        raise invalid("cluster_id", "and ca_pem must be those of another cluster.")
    guest = _coming(context, request) or await _written(context, request)
    task = guest.status.lock.task
    try:
        target = await _ready(context, guest, request)
    except GugusError:
        await _give_up(context, task)
        raise
    return ReceiveGuestResponse(
        task=task, node=guest.status.migration.target, generation=guest.meta.generation, target=target
    )


def told(guest: Guest, request: TellMigrationRequest) -> Guest | None:
    """Return a guest to which it was told how a migration of it ended in the other cluster; None when it knows.

    Raises MIGRATION_SETTLED, TOLD_OTHERWISE.
    """
    if request.told not in FINAL:
        raise invalid("told", "must be RUNNING or ABSENT.")
    name, migration = guest.meta.name, guest.status.migration
    if not migration.HasField("abroad") or migration.task != request.migration:
        raise precondition("MIGRATION_SETTLED", f"no migration {request.migration} of guest {name} is open.")
    known = migration.abroad.told
    if known == request.told:
        return None
    if known:
        word = MigrationPresence.Name(known).removeprefix("MIGRATION_PRESENCE_").lower()
        raise precondition("TOLD_OTHERWISE", f"it was told before that guest {name} is {word} there.")
    migration.abroad.told = request.told
    return guest


def _coming(context: Context, request: ReceiveGuestRequest) -> Guest | None:
    """Return the guest that an earlier call wrote down."""
    guest = context.store.peek(Guest, request.name)
    same = guest is not None and guest.status.migration.task == request.migration and guest.meta.uid == request.uid
    return guest if same else None


async def _written(context: Context, request: ReceiveGuestRequest) -> Guest:
    """Choose a node for a guest, and write both down."""
    while True:
        plan = await arrival_check.plan(context, arrival_check.guest_of(context, request), request)
        if plan.obstacles:
            raise arrival_check.impossible(request.name, plan.obstacles)
        async with context.admission, context.room:  # once more: its name, addresses and room may be taken by now
            guest = arrival_check.guest_of(context, request)
            if arrival_check.fits(context, guest, plan.node):
                await _write(context, request, guest, plan.node)
                return await context.store.require(Guest, request.name)


async def _write(context: Context, request: ReceiveGuestRequest, guest: Guest, node: str) -> None:
    """Write a guest down with the node that it comes to, and the task that waits for it."""
    short = admission.admit(context, None, guest, node)
    kept = ReceiveGuestRequest(migration=request.migration, name=request.name, node=request.node)
    kept.cluster_id, kept.cluster_name = request.cluster_id, request.cluster_name
    task = new_task(receive.KIND, f"guest/{request.name}", str(actor()), request.migration, kept)
    status = guest.status
    status.node, status.phase = node, GUEST_PHASE_CREATING
    status.reason = f"coming from {request.cluster_name}, where it runs"
    status.ha_armed = account.held(guest)
    status.lock.task, status.lock.reason = task.meta.name, receive.ReceiveGuest.verb
    migration = status.migration
    migration.task, migration.target, migration.generation = request.migration, node, guest.meta.generation
    migration.source = f"{request.node} of {request.cluster_name}"
    migration.abroad.cluster_id, migration.abroad.cluster_name = request.cluster_id, request.cluster_name
    migration.abroad.arriving = True
    txn = Txn(spare_reserve=True).put(guest, expect_absent=True).put(task, expect_absent=True)
    text = f"{request.name} is to come from {request.cluster_name}, asked for by {actor()}"
    admission.tell(txn, f"guest/{request.name}", short)
    await context.store.txn(record(txn, f"guest/{request.name}", "GUEST_EXPECTED", text))


async def _ready(context: Context, guest: Guest, request: ReceiveGuestRequest) -> agent_pb2.PrepareMigrationResponse:
    """Have the node make ready, and write that down, unless the guest was given up meanwhile."""
    node = await context.store.require(Node, guest.status.migration.target)
    work = agent_pb2.PrepareMigrationRequest(
        migration=request.migration,
        source=request.node,
        spec=agent_spec(guest, ha=account.held(guest)),
        grant=agent_guest.Grant(generation=guest.meta.generation),
        mode=MIGRATION_MODE_LIVE,
        volumes=arrival_check.volumes_of(guest, request.survey),
        run=True,
        files=request.survey.files,
        foreign=agent_pb2.ForeignCluster(cluster_id=request.cluster_id, ca_pem=request.ca_pem),
    )
    answer = await context.tell(
        node,
        lambda agent, epoch: agent.migrations.PrepareMigration(with_epoch(work, epoch), timeout=PREPARE_TIMEOUT_S),
    )

    def note(now: Guest) -> Guest | None:
        if now.status.migration.task != request.migration or now.meta.uid != request.uid or now.meta.deleting:
            raise aborted("MIGRATION_GIVEN_UP", f"guest {request.name} is expected no more.")
        if now.status.migration.abroad.prepared:
            return None
        now.status.migration.abroad.prepared = True
        return now

    await context.store.update(Guest, request.name, note)
    return answer


async def _give_up(context: Context, task: str) -> None:
    """Have the task end that waits for a guest which its node cannot take in."""

    async def cancel() -> None:
        found = await context.store.get(Task, task)
        if found is not None and found.state not in ENDED and not found.cancel_requested:
            found.cancel_requested = True
            await context.store.txn(Txn().put(found, expect_revision=found.meta.revision))

    await upon_latest(cancel)
