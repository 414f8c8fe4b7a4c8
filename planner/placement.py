"""The plans that give places: to new guests, to those of lost hosts, and to those of hosts that are to be emptied.

Invariant: a plan never goes against a filter or a strict rule, and promises no more than there is; the same cluster
gives the same plan in whatever order it is told.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from planner.fill import Effort, fill, in_order
from planner.fleet import Fleet
from planner.objective import score
from planner.plans import Cluster, Eviction, Move, Plan, Score, Shortfall, Unplaced
from planner.preempt import preempt
from planner.settings import Preemption, SparePolicy
from planner.spare import Watch, spare_shortfall
from planner.tighten import tighten
from planner.types import GuestRequest, NodeView
from planner.waves import Waves, start_waves
from planner.words import unplaced


def plan_placement(cluster: Cluster) -> Plan:
    """Give places to all guests that have none, those already placed staying where they are."""
    fleet = cluster.fleet()
    before = score(fleet)
    waiting = [guest for guest in fleet.guests.values() if guest.name not in fleet.where]
    accepted, refused = _admitted(fleet, waiting)
    effort = Effort()
    left = fill(fleet, accepted, effort=effort)
    if not _keeps_spare(fleet):  # fewer hosts would leave less room to restart on
        tighten(fleet, accepted, effort)
    left, evictions = _preempted(fleet, left)
    told = [*unplaced(fleet, _by_importance(fleet, left)), *refused]
    return _plan(fleet, waiting, before, tuple(told), evictions, "placed on")


def plan_failure(cluster: Cluster, lost: Collection[str]) -> Plan:
    """Give the guests of lost nodes places among the rest: who goes where, in which waves they start, and who is left."""
    nodes = [_lost(node) if node.name in lost else node for node in cluster.nodes]
    fleet = Fleet(nodes, cluster.guests, cluster.rules, cluster.settings)
    before = score(cluster.fleet())
    homeless = [g for i, name in enumerate(fleet.names) if name in lost for g in fleet.guests_on(i)]
    for guest in homeless:
        fleet.take(guest)
    left, evictions = _preempted(fleet, fill(fleet, homeless))
    told = unplaced(fleet, _by_importance(fleet, left))
    return _plan(fleet, homeless, before, told, evictions, "restarted on")


def plan_drain(cluster: Cluster, drained: Collection[str]) -> Plan:
    """Empty nodes that are up: where each of their guests migrates, in which waves, and who cannot leave."""
    nodes = [replace(node, cordoned=True) if node.name in drained else node for node in cluster.nodes]
    fleet = Fleet(nodes, cluster.guests, cluster.rules, cluster.settings)
    waves = Waves(cluster.fleet(), cluster.settings.balance.moves_at_once_per_node)
    before = score(cluster.fleet())
    leaving = [guest for i, name in enumerate(fleet.names) if name in drained for guest in fleet.guests_on(i)]
    for guest in leaving:
        fleet.take(guest)
    left = fill(fleet, leaving)
    told = unplaced(fleet, _by_importance(fleet, left))
    moves = []
    for guest in in_order(fleet, leaving):
        if (target := fleet.where.get(guest.name)) is not None:
            origin = fleet.index[guest.node]
            reason = f"{guest.node} is to be emptied."
            moves.append(Move(guest.name, guest.node, fleet.names[target], waves.of(guest, origin, target), reason))
    for guest in left:
        fleet.put(guest, fleet.index[guest.node])
    return Plan(
        _assignments(fleet), tuple(sorted(moves, key=lambda m: m.wave)), told, before, score(fleet), (), _short(fleet)
    )


def _plan(
    fleet: Fleet,
    guests: Sequence[GuestRequest],
    before: Score,
    told: tuple[Unplaced, ...],
    evictions: tuple[Eviction, ...],
    word: str,
) -> Plan:
    """Return the plan that starts guests where the fleet has them now."""
    starting = [guest for guest in guests if guest.name in fleet.where]
    waves = start_waves(starting)
    moves = [
        Move(g.name, g.node, node, waves[g.name], f"{g.name} is {word} {node}.")
        for g in in_order(fleet, starting)
        for node in [fleet.names[fleet.where[g.name]]]
    ]
    moves.sort(key=lambda move: move.wave)
    return Plan(_assignments(fleet), tuple(moves), told, before, score(fleet), evictions, _short(fleet))


def _admitted(fleet: Fleet, waiting: list[GuestRequest]) -> tuple[list[GuestRequest], list[Unplaced]]:
    """Return the guests that may be placed, and those that are refused because the spare room would not be kept.

    The most important ones are let in as long as nothing is unsafe that was safe before.
    """
    spare = fleet.settings.spare
    if not _keeps_spare(fleet) or not waiting:
        return waiting, []
    ordered = in_order(fleet, waiting)
    unsafe = Watch(fleet, spare).short()

    def keeps(count: int) -> bool:
        fill(fleet, ordered[:count])
        kept = Watch(fleet, spare).short() <= unsafe
        for guest in ordered[:count]:
            if guest.name in fleet.where:
                fleet.take(guest)
        return kept

    low, high = 0, len(ordered)
    if keeps(high):
        return waiting, []
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    what = f"any {spare.hosts} hosts" if spare.hosts > 1 else "any host" if spare.hosts else f"any {spare.domain}"
    reason = f"It is refused: with it, the loss of {what} could not be survived by every guest (spare)."
    return ordered[:low], [Unplaced(guest.name, reason, ()) for guest in ordered[low:]]


def _keeps_spare(fleet: Fleet) -> bool:
    """Whether guests are refused that would leave too little room to survive a loss."""
    return fleet.settings.spare.asked and fleet.settings.spare.policy is SparePolicy.REFUSE


def _preempted(fleet: Fleet, left: list[GuestRequest]) -> tuple[list[GuestRequest], tuple[Eviction, ...]]:
    """Give room to those left where the policy allows; return who is without a place then, and who was stopped."""
    if fleet.settings.preemption is Preemption.NEVER:
        return left, ()
    still, evictions = [], list[Eviction]()
    for guest in _by_importance(fleet, left):
        stopped = preempt(fleet, guest)
        evictions += stopped
        if not stopped:
            still.append(guest)
    return still, tuple(evictions)


def _by_importance(fleet: Fleet, guests: Sequence[GuestRequest]) -> list[GuestRequest]:
    return sorted(guests, key=lambda guest: (-guest.priority, -fleet.size(guest), guest.name))


def _lost(node: NodeView) -> NodeView:
    return replace(node, online=False, offline_reason="the node is lost")


def _assignments(fleet: Fleet) -> dict[str, str]:
    return {name: fleet.names[fleet.where[name]] if name in fleet.where else "" for name in fleet.guests}


def _short(fleet: Fleet) -> tuple[Shortfall, ...]:
    return tuple(spare_shortfall(fleet))
