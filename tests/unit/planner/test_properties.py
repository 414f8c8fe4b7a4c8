"""What holds of every plan, whatever the cluster."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.balance import plan_balance
from planner.filters import FILTERS, Reads, fits
from planner.fleet import Fleet
from planner.objective import score
from planner.place import decide, refusals_of
from planner.placement import plan_drain, plan_failure, plan_placement
from planner.plans import Cluster, Plan
from planner.scores import weights_of
from planner.settings import Preemption, Spare, SparePolicy
from planner.spare import Watch, spare_shortfall
from tests.unit.planner.clusters import clusters, settled

EXAMPLES = settings(max_examples=60, deadline=None)


def first_node(cluster: Cluster) -> list[str]:
    return [min(node.name for node in cluster.nodes)]


PLANS: dict[str, Callable[[Cluster], Plan]] = {
    "place": plan_placement,
    "fail": lambda cluster: plan_failure(cluster, first_node(cluster)),
    "drain": lambda cluster: plan_drain(cluster, first_node(cluster)),
    "balance": plan_balance,
}


def is_right(fleet: Fleet, names: set[str]) -> None:
    """Every filter allows each of the guests the node that it has."""
    for name in sorted(names):
        if name in fleet.where:
            guest = fleet.guests[name]
            node = fleet.take(guest)
            assert fits(fleet, guest)[node], (name, fleet.names[node], refusals_of(fleet, guest)[node])
            fleet.put(guest, node)


@pytest.mark.parametrize("kind", PLANS)
@EXAMPLES
@given(cluster=clusters(placed=True))
def test_no_plan_goes_against_a_filter_a_rule_or_the_room_there_is(kind: str, cluster: Cluster) -> None:
    plan = PLANS[kind](cluster)
    moved = {move.guest for move in plan.moves}
    evicted = {eviction.guest for eviction in plan.evictions}
    fleet = cluster.fleet()
    for name in sorted(moved | evicted):
        if name in fleet.where:
            fleet.take(fleet.guests[name])
    for move in plan.moves:
        fleet.put(fleet.guests[move.guest], fleet.index[move.to_node])
    is_right(fleet, moved)
    untouched = {g.name: g.node for g in cluster.guests if g.name not in moved | evicted}
    lost = first_node(cluster) if kind == "fail" else []
    assert all(plan.assignments[name] == node for name, node in untouched.items() if node not in lost)


@pytest.mark.parametrize("kind", ["drain", "balance"])
@EXAMPLES
@given(cluster=clusters(placed=True), dice=st.randoms(use_true_random=False))
def test_nothing_is_too_full_however_a_waves_migrations_end(kind: str, cluster: Cluster, dice: random.Random) -> None:
    plan = PLANS[kind](cluster)
    fleet = cluster.fleet()
    for wave in sorted({move.wave for move in plan.moves}):
        running = [move for move in plan.moves if move.wave == wave]
        for move in running:  # all have begun: each guest counts on both of its nodes
            fleet.free[:, fleet.index[move.to_node]] -= fleet.needs(fleet.guests[move.guest])
        targets = sorted({fleet.index[move.to_node] for move in running})
        needed = [fleet.needs(fleet.guests[move.guest]) for move in running]
        rows = np.flatnonzero(np.sum(needed, axis=0) > 0)
        assert (fleet.free[rows][:, targets] >= 0).all()
        dice.shuffle(running)
        for move in running:
            guest = fleet.guests[move.guest]
            fleet.free[:, fleet.index[move.to_node]] += fleet.needs(guest)
            fleet.move(guest, fleet.index[move.to_node])
        ends = [node for move in running for node in (move.from_node, move.to_node)]
        most = cluster.settings.balance.moves_at_once_per_node
        assert all(ends.count(node) <= most for node in ends)


@pytest.mark.parametrize("kind", PLANS)
@EXAMPLES
@given(cluster=clusters(placed=True), dice=st.randoms(use_true_random=False))
def test_the_order_of_what_is_told_does_not_matter(kind: str, cluster: Cluster, dice: random.Random) -> None:
    shuffled = [list(part) for part in (cluster.nodes, cluster.guests, cluster.rules)]
    for part in shuffled:
        dice.shuffle(part)
    again = Cluster(shuffled[0], shuffled[1], shuffled[2], cluster.settings)  # type: ignore[arg-type]
    assert PLANS[kind](cluster) == PLANS[kind](again)


@EXAMPLES
@given(cluster=clusters(placed=True))
def test_each_balancing_move_makes_the_score_strictly_better(cluster: Cluster) -> None:
    plan = plan_balance(cluster)
    fleet = cluster.fleet()
    before = score(fleet).total
    assert before == plan.before.total
    for guest, node in in_turn(cluster):
        fleet.move(fleet.guests[guest], fleet.index[node])
        after = score(fleet).total
        assert after < before
        before = after
    assert plan.after.total == pytest.approx(before)


def in_turn(cluster: Cluster) -> list[tuple[str, str]]:
    """The moves in the order in which they were chosen: a plan of one move, again and again."""
    found = []
    for _ in range(cluster.settings.balance.max_moves):
        one = replace(cluster.settings, balance=replace(cluster.settings.balance, max_moves=1))
        plan = plan_balance(replace(cluster, settings=one))
        if not plan.moves:
            break
        found.append((plan.moves[0].guest, plan.moves[0].to_node))
        cluster = settled(cluster, plan)
    return found


@EXAMPLES
@given(cluster=clusters(placed=True))
def test_a_balance_broken_off_and_computed_again_comes_to_the_same_end(cluster: Cluster) -> None:
    whole = plan_balance(cluster)
    for guest, node in in_turn(cluster):
        cluster = replace(cluster, guests=[replace(g, node=node) if g.name == guest else g for g in cluster.guests])
    assert {g.name: g.node for g in cluster.guests} == dict(whole.assignments)


@EXAMPLES
@given(cluster=clusters(placed=True))
def test_balancing_makes_nothing_unsafe(cluster: Cluster) -> None:
    spare = cluster.settings.spare
    before = Watch(cluster.fleet(), spare).short()
    assert Watch(settled(cluster, plan_balance(cluster)).fleet(), spare).short() <= before


@EXAMPLES
@given(cluster=clusters(placed=True))
def test_where_the_policy_refuses_no_new_guest_makes_anything_unsafe(cluster: Cluster) -> None:
    spare = replace(cluster.settings.spare, policy=SparePolicy.REFUSE)
    cluster = replace(cluster, settings=replace(cluster.settings, spare=spare, preemption=Preemption.NEVER))
    before = Watch(cluster.fleet(), spare).short()
    assert Watch(settled(cluster, plan_placement(cluster)).fleet(), spare).short() <= before


@EXAMPLES
@given(cluster=clusters(placed=True))
def test_what_decides_also_explains_for_every_node(cluster: Cluster) -> None:
    fleet = cluster.fleet()
    for guest in list(fleet.guests.values()):
        home = fleet.take(guest) if guest.name in fleet.where else None
        told, good = refusals_of(fleet, guest), fits(fleet, guest)
        assert [not reasons for reasons in told] == good.tolist()
        for one in FILTERS:
            mask = one.refused(fleet, guest)
            for i in range(len(fleet.nodes)):
                assert bool(one.why(fleet, guest, i)) == (mask is not None and bool(mask[i])), one.name
                if one.reads is Reads.SIZE and mask is not None and mask[i]:
                    assert not good[i]
        decision = decide(fleet, guest, weights_of(cluster.settings))
        assert bool(decision.node) == bool(good.any())
        if home is not None:
            fleet.put(guest, home)


@EXAMPLES
@given(cluster=clusters(placed=True))
def test_looking_for_spare_room_changes_nothing(cluster: Cluster) -> None:
    fleet = cluster.fleet()
    free, where = fleet.free.copy(), dict(fleet.where)
    spare_shortfall(fleet)
    assert (fleet.free == free).all()
    assert fleet.where == where


@EXAMPLES
@given(cluster=clusters())
def test_every_guest_has_a_place_or_a_reason(cluster: Cluster) -> None:
    plan = plan_placement(cluster)
    without = {name for name, node in plan.assignments.items() if not node}
    evicted = {eviction.guest for eviction in plan.evictions}
    assert {one.guest for one in plan.unplaced} == without - evicted
    for one in plan.unplaced:
        assert one.reason


@EXAMPLES
@given(cluster=clusters(placed=True))
def test_only_the_less_important_are_stopped_and_only_where_that_is_allowed(cluster: Cluster) -> None:
    priority = {guest.name: guest.priority for guest in cluster.guests}
    for make in (plan_placement, PLANS["fail"]):
        plan = make(cluster)
        assert not plan.evictions or cluster.settings.preemption == "lower-priority"
        assert all(priority[one.guest] < priority[one.for_guest] for one in plan.evictions)


def most_placed(cluster: Cluster) -> int:
    """How many guests can have a place at most, by trying all ways to place them one after another."""
    fleet = cluster.fleet()

    def most(waiting: list[str]) -> int:
        best = 0
        for i, name in enumerate(waiting):
            guest = fleet.guests[name]
            for node in np.flatnonzero(fits(fleet, guest)).tolist():
                fleet.put(guest, node)
                best = max(best, 1 + most(waiting[:i] + waiting[i + 1 :]))
                fleet.take(guest)
                if best == len(waiting):
                    return best
        return best

    return most(list(fleet.guests))


@settings(max_examples=100, deadline=None)
@given(cluster=clusters())
def test_no_few_guests_could_be_placed_better(cluster: Cluster) -> None:
    guests = [replace(guest, priority=0) for guest in cluster.guests[:4]]
    plain = replace(cluster.settings, spare=Spare(), preemption=Preemption.NEVER)
    few = replace(cluster, guests=guests, nodes=cluster.nodes[:3], settings=plain)
    placed = sum(1 for node in plan_placement(few).assignments.values() if node)
    assert placed == most_placed(few)
