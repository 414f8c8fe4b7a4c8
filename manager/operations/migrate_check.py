"""Whether a guest can move to a node: the state's answer, its node's and the target's, all obstacles at once. Changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.guest_pb2 import GuestState
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_MODE_CHECKPOINT,
    MIGRATION_MODE_RESTART,
    GuestSurvey,
    MigrationObstacle,
    MigrationPolicy,
    MovingVolume,
)
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.migration_pb2 import MigrationCheck
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.pool_pb2 import Pool

from common.errors import GugusError, aborted, precondition, resource_exhausted
from manager.controllers.compile import agent_spec
from manager.controllers.context import Context
from manager.controllers.placing import decide, terms
from manager.controllers.together import leaving_with, with_company
from manager.guests import snapshots
from manager.ha import account, migration
from manager.scheduler import NodeView
from manager.scheduler.views import node_views

SURVEY_TIMEOUT_S = 15.0
"""libvirt is asked for the running domain, which may wait for its monitor."""

CHECK_TIMEOUT_S = 20.0
"""The first question after an update has libvirt probe its QEMU."""


@dataclass(frozen=True)
class Plan:
    """A migration as it would be: the target, how, what is copied, and what is in the way."""

    target: str
    mode: "migration_pb2.MigrationMode.ValueType"
    volumes: Sequence[MovingVolume] = ()
    obstacles: Sequence[MigrationObstacle] = field(default_factory=tuple)
    state: GuestState.ValueType = GuestState.GUEST_STATE_UNSPECIFIED

    def to_proto(self) -> MigrationCheck:
        """Return it as a client is told."""
        return MigrationCheck(
            target=self.target,
            mode=self.mode,
            obstacles=self.obstacles,
            copied_disks=[volume.disk for volume in self.volumes],
            copied_bytes=sum(volume.used_bytes for volume in self.volumes),
        )


async def survey(context: Context, guest: Guest, *, with_files: bool = False) -> GuestSurvey:
    """Ask a guest's node about it. Raises NODE_NOT_ONLINE, and what the agent says."""
    return await asked(context, guest, migration_pb2.SurveyGuestRequest(name=guest.meta.name, with_files=with_files))


async def asked(context: Context, guest: Guest, request: migration_pb2.SurveyGuestRequest) -> GuestSurvey:
    """Ask a guest's node about it by this request. Raises as `survey`, and GUEST_NOT_PLACED."""
    node = context.store.peek(Node, guest.status.node) if guest.status.node else None
    if node is None:
        raise precondition("GUEST_NOT_PLACED", f"guest {guest.meta.name} has no node yet: {guest.status.reason}.")
    try:
        return await context.tell(
            node, lambda agent, _: agent.migrations.SurveyGuest(request, timeout=SURVEY_TIMEOUT_S)
        )
    except GugusError as error:
        if error.reason != "GUEST_NOT_FOUND":
            raise
        what = (
            f"guest {guest.meta.name} was given to {node.meta.name}, which does not have it yet: {guest.status.reason}."
        )
        raise precondition("GUEST_ON_ITS_WAY", what, remedy="Ask again in a moment.") from error


def refuse_moving(guest: Guest) -> None:
    """Refuse a guest that is about to be somewhere else. Raises GUEST_MIGRATING."""
    if guest.status.HasField("migration"):
        way = guest.status.migration
        raise precondition(
            "GUEST_MIGRATING",
            f"guest {guest.meta.name} is on its way from {way.source} to {way.target}.",
            remedy=f"`gugus task follow {way.task}` waits for its end; ask again then.",
            subject=f"guest/{guest.meta.name}",
        )


async def plan(context: Context, guest: Guest, told: GuestSurvey, target: str, policy: MigrationPolicy) -> Plan:
    """Return the migration of a guest to a node, with everything that is in the way."""
    pools = {pool.meta.name: pool for pool in context.store.peek_all(Pool)}
    mode = migration.mode_of(guest, told.state, checkpoint=policy.checkpoint)
    copied = {disk.name for disk in migration.copied_disks(guest, pools)}
    volumes = [volume for volume in told.volumes if volume.disk in copied]
    held = [snapshot.name for snapshot in snapshots.of(context.store, guest.meta.uid)]
    view = _view(context, guest, target)
    found = list(told.obstacles) if mode != MIGRATION_MODE_RESTART else []
    found += told.container.obstacles if mode == MIGRATION_MODE_CHECKPOINT else []
    company = leaving_with(context.store, guest)
    wanted = with_company(guest, company, context.load_of)
    found += migration.obstacles(guest, told.state, view, wanted, pools, held, terms(context, company))
    node = context.store.peek(Node, target)
    if node is not None and node.status.state == NODE_STATE_ONLINE and target != guest.status.node:
        request = migration_pb2.CheckArrivalRequest(
            spec=agent_spec(guest, ha=account.held(guest)),
            survey=_without_files(told),
            mode=mode,
            copied_disks=sorted(copied),
            policy=policy,
        )
        answer = await context.tell(
            node, lambda agent, _: agent.migrations.CheckArrival(request, timeout=CHECK_TIMEOUT_S)
        )
        found += answer.obstacles
    return Plan(target, mode, volumes, _distinct(found), told.state)


async def choose(context: Context, guest: Guest, told: GuestSurvey, target: str, policy: MigrationPolicy) -> Plan:
    """Return the plan for the node asked for, or for the best of the others that can take the guest.

    Raises MIGRATION_IMPOSSIBLE with every obstacle, NO_NODE_FITS.
    """
    if target:
        chosen = await plan(context, guest, told, target, policy)
        if chosen.obstacles:
            raise impossible(guest.meta.name, chosen)
        return chosen
    refused: list[Plan] = []
    decision = decide(context, guest)
    for verdict in sorted(decision.verdicts, key=lambda v: (not v.fits, -v.score, v.node)):
        if verdict.node == guest.status.node or not verdict.fits:
            continue
        chosen = await plan(context, guest, told, verdict.node, policy)
        if not chosen.obstacles:
            return chosen
        refused.append(chosen)
    if refused:
        raise impossible(guest.meta.name, refused[0])
    others = [v for v in decision.verdicts if v.node != guest.status.node]
    why = "; ".join(f"{v.node}: {', '.join(v.refusals)}" for v in others) or "there is no other node"
    remedy = "`gugus guest migrate --check` tells what is in the way of each."
    raise resource_exhausted("NO_NODE_FITS", f"no other node can take guest {guest.meta.name}: {why}.", remedy=remedy)


def refuse_unless_it_still_fits(context: Context, guest: Guest, chosen: Plan) -> None:
    """Raise CONFLICT, which has the operation look anew, when the state says no more that a guest can move as planned."""
    pools = {pool.meta.name: pool for pool in context.store.peek_all(Pool)}
    view = _view(context, guest, chosen.target)
    company = leaving_with(context.store, guest)
    wanted, counts = with_company(guest, company), terms(context, company)
    if found := migration.obstacles(guest, chosen.state, view, wanted, pools, (), counts):
        raise aborted(
            "CONFLICT", f"{guest.meta.name} cannot move to {chosen.target} any more: {migration.words_of(found)}"
        )


def impossible(name: str, plan_: Plan) -> GugusError:
    """Return the error that names every obstacle."""
    return precondition(
        "MIGRATION_IMPOSSIBLE",
        f"guest {name} cannot move to {plan_.target}: {migration.words_of(plan_.obstacles)}",
        subject=f"guest/{name}",
        metadata={"obstacles": ",".join(one.reason for one in plan_.obstacles)},
    )


def _without_files(told: GuestSurvey) -> GuestSurvey:
    """Return a survey for a node that is only asked: files may hold secrets."""
    bare = GuestSurvey()
    bare.CopyFrom(told)
    del bare.files[:]
    return bare


def _view(context: Context, guest: Guest, target: str) -> NodeView:
    views = node_views(context.store.peek_all(Node), context.store.peek_all(Guest), ignoring=guest.meta.name)
    found = next((view for view in views if view.name == target), None)
    return replace(found) if found else NodeView(target, False, offline_reason="there is no such node")


def _distinct(found: Sequence[MigrationObstacle]) -> list[MigrationObstacle]:
    """Return obstacles once each: the state and an agent may know the same."""
    return list({(one.reason, one.subject, one.message): one for one in found}.values())
