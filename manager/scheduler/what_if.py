"""What would happen, as a pure function of what is stored and a question: the planner's plan, told in the API's words."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE
from gugus.cluster.v1.guest_pb2 import POWER_ON, Guest, NodeVerdict
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.plan_pb2 import AddNodes, GivesWay, LeftGuest, PlannedMove, Unplaced, WhatIf
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.rule_pb2 import Rule

from common.leases import LeaseTimes, safe_after_ns
from manager.guests.rules.placement import bound_by
from manager.scheduler.load import LoadOf, no_load
from manager.scheduler.spare_room import in_words
from manager.scheduler.stored_rules import planned_rules
from manager.scheduler.views import guest_request, memory_of, node_views
from planner.balance import plan_balance
from planner.placement import plan_drain, plan_failure, plan_placement
from planner.plans import Cluster, Plan, Shortfall
from planner.settings import Settings, SparePolicy
from planner.spare import spare_shortfall
from planner.types import GuestRequest

NS_PER_MS = 1_000_000

START_MS = 1_000
"""What the start of a guest takes, about: of virtual machines until QEMU runs (bench.start_overhead), not until their users are served."""

WIRE_BYTES_PER_S = 110_000_000
"""What a network of 1 Gbit/s carries."""

NEW = "new-"
"""Names of nodes and guests that are not there yet."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is looked at."""

    nodes: Sequence[Node]
    guests: Sequence[Guest]
    rules: Sequence[Rule]
    settings: Settings
    lease: LeaseTimes
    disarmed: bool = False
    pools: Sequence[Pool] = ()
    load_of: LoadOf = no_load
    """What guests use really."""

    def cluster(self, leaving_out: Iterable[str] = ()) -> Cluster:
        """Return the planner's view of it, without some guests."""
        out = set(leaving_out)
        wanted = [g for g in self.guests if g.meta.name not in out and not g.meta.deleting]
        requests = [guest_request(guest, load_of=self.load_of) for guest in wanted]
        return Cluster(node_views(self.nodes, ()), requests, planned_rules(self.rules), self.settings)

    def on(self, nodes: Iterable[str]) -> list[Guest]:
        """Return the guests of nodes by name."""
        wanted = set(nodes)
        return sorted((g for g in self.guests if g.status.node in wanted), key=lambda guest: guest.meta.name)


def lose(stored: Stored, nodes: Sequence[str]) -> WhatIf:
    """Nodes are lost together."""
    left = [LeftGuest(guest=g.meta.name, reason=why) for g in stored.on(nodes) if (why := _not_recovered(stored, g))]
    plan = plan_failure(stored.cluster(one.guest for one in left), nodes)
    told = told_of(plan, left)
    if told.moves:
        proof_ms = safe_after_ns(0, stored.lease) // NS_PER_MS
        told.takes_ms = proof_ms + START_MS
        told.takes_why = (
            f"the lease of {stored.lease.lease_ms / 1000:g} s and what is added to it end after {proof_ms / 1000:.1f} s at the most, "
            f"then guests start, about {START_MS / 1000:g} s each; a fence device or an orderly shutdown proves it sooner."
        )
    return told


def empty(stored: Stored, nodes: Sequence[str]) -> WhatIf:
    """Nodes are emptied."""
    left = [LeftGuest(guest=g.meta.name, reason=why) for g in stored.on(nodes) if (why := bound(g))]
    plan = plan_drain(stored.cluster(one.guest for one in left), nodes)
    return timed(stored, told_of(plan, left))


def refused_without(stored: Stored, nodes: Collection[str]) -> str:
    """Return what the spare room that must be kept (the policy "refuse") would lack while nodes are emptied, in words; "" when nothing."""
    if stored.settings.spare.policy is not SparePolicy.REFUSE or not stored.settings.spare.asked:
        return ""
    return in_words(short_without(stored, nodes, spare_shortfall(stored.cluster().fleet())))


def short_without(stored: Stored, nodes: Collection[str], before: Collection[Shortfall]) -> list[Shortfall]:
    """Return who would find no place after which loss while nodes are emptied, and does now; guests that cannot leave go down with them.

    before: who would find none as things are.
    """
    cluster = stored.cluster(guest.meta.name for guest in stored.on(nodes) if bound(guest))
    emptied = _after(cluster, plan_drain(cluster, nodes))
    rest = replace(emptied, nodes=[replace(n, online=False) if n.name in nodes else n for n in emptied.nodes])
    known = {(one.lost, one.guest) for one in before}
    return [one for one in spare_shortfall(rest.fleet()) if (one.lost, one.guest) not in known]


def add(stored: Stored, asked: AddNodes) -> WhatIf:
    """Nodes come in addition: places for those that wait, then few moves to even the cluster out."""
    cluster = stored.cluster()
    like = next(view for view in cluster.nodes if view.name == asked.like)
    sized = replace(
        like,
        online=True,
        cordoned=False,
        offline_reason="",
        cpus=asked.cpus or like.cpus,
        memory_bytes=asked.memory_bytes or like.memory_bytes,
    )
    new = [replace(sized, name=f"{NEW}{number}") for number in range(1, (asked.count or 1) + 1)]
    cluster = replace(cluster, nodes=(*cluster.nodes, *new))
    placed = plan_placement(cluster)
    evened = plan_balance(_after(cluster, placed))
    told = told_of(placed, ())
    waves = max((move.wave for move in placed.moves), default=0)
    told.moves.extend(moves_of(evened, waves))
    told.score_after = evened.after.total
    return timed(stored, told)


def make(stored: Stored, guest: Guest, count: int) -> WhatIf:
    """Guests are made, all alike."""
    names = [f"{NEW}{number}" for number in range(1, count + 1)]
    cluster = stored.cluster()
    wanted = [replace(guest_request(guest, load_of=stored.load_of), name=name, node="") for name in names]
    there = [one for one in cluster.guests if one.node]  # who waits already is in nobody's way: it does not fit
    told = told_of(plan_placement(replace(cluster, guests=(*there, *wanted))), ())
    told.takes_ms, told.takes_why = (
        (START_MS, "about what a start takes, without what its image does.") if told.moves else (0, "")
    )
    return told


def _not_recovered(stored: Stored, guest: Guest) -> str:
    """Return why a guest is not given to another node when its own is lost; "" when it is."""
    if guest.spec.template:
        return "it is a template and does not run"
    if not guest.spec.ha.enabled:
        return "it is not under HA: nobody would know whether it runs"
    if guest.spec.ha.disabled:
        return "it is out of use (HA)"
    return "HA is switched off for the whole cluster" if stored.disarmed else ""


def bound(guest: Guest) -> str:
    """Return why a guest cannot leave its node; "" when it can, as far as the state knows."""
    if guest.spec.template:
        return "it is a template and does not run"
    if guest.spec.pinned_node:
        return f"it is pinned to {guest.spec.pinned_node}"
    if guest.spec.power == POWER_ON and (bound := bound_by(guest.spec)):
        return f"it uses its host's {', '.join(bound)}"
    return ""


def _after(cluster: Cluster, plan: Plan) -> Cluster:
    guests: list[GuestRequest] = [replace(g, node=plan.assignments.get(g.name, g.node)) for g in cluster.guests]
    return replace(cluster, guests=guests)


def timed(stored: Stored, told: WhatIf) -> WhatIf:
    """Say how long moves take: the memory of what runs goes over the network, one after another on each host."""
    known = {guest.meta.name: guest for guest in stored.guests}
    moving = [known[move.guest] for move in told.moves if move.guest in known]
    running = [g for g in moving if g.spec.power == POWER_ON and g.spec.kind == GUEST_KIND_VIRTUAL_MACHINE]
    if moving:
        size = sum(memory_of(guest.spec) for guest in running)
        told.takes_ms = size * 1000 // WIRE_BYTES_PER_S + START_MS * len(moving)
        told.takes_why = "the memory of all that runs, one after another over 1 Gbit/s, and a second for each; local disks come on top."
    return told


def told_of(plan: Plan, left: Iterable[LeftGuest]) -> WhatIf:
    """Return a plan as the API has it."""
    told = WhatIf(
        moves=moves_of(plan),
        left=left,
        score_before=plan.before.total,
        score_after=plan.after.total,
        notes=plan.notes,
    )
    told.gives_way.extend(
        GivesWay(guest=one.guest, node=one.node, to=one.for_guest, reason=one.reason) for one in plan.evictions
    )
    told.short = in_words(plan.shortfalls)
    for one in plan.unplaced:
        verdicts = [NodeVerdict(node=refusal.node, refusals=refusal.reasons) for refusal in one.refusals]
        told.unplaced.append(Unplaced(guest=one.guest, reason=one.reason, verdicts=verdicts))
    return told


def moves_of(plan: Plan, after: int = 0) -> list[PlannedMove]:
    """Return a plan's moves as the API has them. after: waves that come before."""
    return [
        PlannedMove(guest=m.guest, **{"from": m.from_node}, to=m.to_node, wave=m.wave + after, reason=m.reason)
        for m in plan.moves
    ]
