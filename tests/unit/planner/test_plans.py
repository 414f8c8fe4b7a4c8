"""What plans say and do in the cases an operator knows."""

from dataclasses import replace

import pytest

from planner.balance import plan_balance
from planner.place import place
from planner.placement import plan_drain, plan_failure, plan_placement
from planner.plans import Cluster
from planner.settings import Balance, Policy, Preemption, Settings, Spare, SparePolicy
from planner.spare import spare_shortfall
from planner.waves import start_waves
from tests.unit.planner.clusters import GIB, apart, guest, node, settled, together

THREE = [node("n1"), node("n2"), node("n3")]


def test_guests_of_a_lost_node_go_to_the_others_in_the_order_in_which_they_start() -> None:
    guests = [
        guest("app", node="n1", after=("db",)),
        guest("db", node="n1", after=("dns",)),
        guest("dns", node="n1"),
        guest("other", node="n2"),
    ]
    plan = plan_failure(Cluster(THREE, guests), ["n1"])
    assert [(move.guest, move.wave) for move in plan.moves] == [("dns", 1), ("db", 2), ("app", 3)]
    assert {move.to_node for move in plan.moves} <= {"n2", "n3"}
    assert all("restarted on" in move.reason for move in plan.moves)
    assert plan.assignments["other"] == "n2"


def test_a_witness_gets_nobody_is_not_counted_and_helps_nobody() -> None:
    witness = node("w", witness=True)
    guests = [guest("a", 8, node="n1"), guest("b", 8, node="n2")]
    with_it, without = [Cluster([*THREE[:2], *more], guests) for more in ([witness], [])]
    assert {move.to_node for move in plan_failure(with_it, ["n1"]).moves} == {"n2"}
    assert plan_balance(with_it) == plan_balance(without)
    assert plan_failure(with_it, ["n1"]).before == plan_failure(without, ["n1"]).before
    for hosts in (1, 2):
        found = [spare_shortfall(one.fleet(), Spare(hosts=hosts)) for one in (with_it, without)]
        assert found[0] == found[1]
    refused = next(v for v in place(guest("new"), with_it.nodes).verdicts if v.node == "w")
    assert refused.refusals == ("witness: it is a witness, which votes and runs no guests",)


def test_a_circle_of_starts_is_no_endless_wait() -> None:
    waves = start_waves([guest("a", after=("b",)), guest("b", after=("a",)), guest("c", after=("b",))])
    assert waves["c"] > min(waves["a"], waves["b"])


def test_what_finds_no_place_is_told_host_by_host() -> None:
    guests = [guest("big", 12, node="n1"), guest("x", 8, node="n2"), guest("y", 8, node="n3")]
    plan = plan_failure(Cluster(THREE, guests), ["n1"])
    (one,) = plan.unplaced
    assert one.guest == "big"
    assert one.reason == "It fits nowhere: all 3 hosts refuse it (memory on 2, online on 1)."
    assert {refusal.node: refusal.reasons for refusal in one.refusals} == {
        "n1": ("online: the node is lost",),
        "n2": ("memory: 12GiB asked, 8GiB left to promise",),
        "n3": ("memory: 12GiB asked, 8GiB left to promise",),
    }


def test_the_important_are_served_first_when_room_is_short() -> None:
    guests = [guest("least", 10), guest("most", 10, priority=9), guest("middle", 10, priority=5)]
    plan = plan_placement(Cluster(THREE[:2], guests))
    assert [one.guest for one in plan.unplaced] == ["least"]


def test_guests_are_stopped_for_others_only_where_the_policy_says_so() -> None:
    guests = [
        guest("vip", 10, node="n1", priority=9),
        guest("a", 6, node="n2", priority=1),
        guest("b", 8, node="n2", priority=3),
        guest("c", 12, node="n3", priority=2),
    ]
    never = plan_failure(Cluster(THREE, guests), ["n1"])
    assert [one.guest for one in never.unplaced] == ["vip"]
    allowed = Settings(preemption=Preemption.LOWER_PRIORITY)
    plan = plan_failure(Cluster(THREE, guests, settings=allowed), ["n1"])
    assert [(one.guest, one.for_guest, one.node) for one in plan.evictions] == [("c", "vip", "n3")]
    assert plan.evictions[0].reason == "vip (priority 9) needs its room on n3; c has priority 2."
    assert plan.assignments["c"] == ""


def test_a_drained_node_is_empty_and_gets_none_back() -> None:
    guests = [guest(f"g{i}", 2, node="n1") for i in range(4)]
    plan = plan_drain(Cluster(THREE, guests), ["n1"])
    assert "n1" not in plan.assignments.values()
    assert [move.wave for move in plan.moves] == [1, 2, 3, 4]
    at_once = Settings(balance=Balance(moves_at_once_per_node=4))
    assert {m.wave for m in plan_drain(Cluster(THREE, guests, settings=at_once), ["n1"]).moves} == {1}


def test_a_guest_that_cannot_leave_a_drained_node_stays_and_says_why() -> None:
    plan = plan_drain(Cluster(THREE, [guest("g", 2, node="n1", pinned="n1")]), ["n1"])
    assert plan.assignments == {"g": "n1"}
    assert plan.unplaced[0].refusals[1].reasons == ("pinned: the guest runs only on n1",)


def test_guests_kept_together_leave_a_drained_node_together() -> None:
    guests = [guest("a", 2, node="n1"), guest("b", 2, node="n1")]
    plan = plan_drain(Cluster(THREE, guests, [together("r", "a", "b")]), ["n1"])
    assert len(set(plan.assignments.values())) == 1
    assert "n1" not in plan.assignments.values()


def test_spare_room_is_judged_for_each_host_for_two_and_for_a_rack() -> None:
    nodes = [node(f"n{i}", labels={"rack": "a" if i < 3 else "b"}) for i in range(1, 5)]
    fleet = Cluster(nodes, [guest(f"g{i}", 7, node=f"n{i}") for i in range(1, 5)]).fleet()
    assert spare_shortfall(fleet, Spare(1)) == []
    assert spare_shortfall(fleet, Spare(2)) == []
    heavy = Cluster(nodes, [guest(f"g{i}", 9, node=f"n{i}") for i in range(1, 5)]).fleet()
    (first, *_) = spare_shortfall(heavy, Spare(1))
    assert (first.lost, first.guest) == (("n1",), "g1")
    assert first.reason == "If n1 were lost, no other host would have room for g1."
    racks = spare_shortfall(
        Cluster(nodes[:3], [guest(f"g{i}", 9, node=f"n{i}") for i in (1, 2)]).fleet(), Spare(0, "rack")
    )
    assert [(one.lost, one.guest) for one in racks] == [(("n1", "n2"), "g2")]


def test_what_would_break_the_spare_room_is_refused_or_told() -> None:
    guests = [guest("a", 9, node="n1"), guest("new", 9), guest("small", 4)]
    warned = plan_placement(Cluster(THREE[:2], guests, settings=Settings(spare=Spare(1))))
    assert not warned.unplaced
    assert {one.guest for one in warned.shortfalls} == {"a", "new"}
    strict = Settings(spare=Spare(1, policy=SparePolicy.REFUSE))
    refused = plan_placement(Cluster(THREE[:2], [*guests[:2], guest("small", 2)], settings=strict))
    assert {one.guest for one in refused.unplaced} >= {"new"}
    assert "the loss of any host could not be survived" in refused.unplaced[0].reason
    assert not refused.shortfalls


def test_few_moves_make_a_cluster_even() -> None:
    cluster = Cluster(THREE, [guest(f"g{i}", 2, node="n1") for i in range(6)])
    plan = plan_balance(cluster)
    assert sorted(settled(cluster, plan).fleet().counts.tolist()) == [2, 2, 2]
    assert len(plan.moves) == 4
    assert plan.after.total < plan.before.total
    assert all(f"{move.gain:.5f}" in move.reason for move in plan.moves)
    assert plan_balance(settled(cluster, plan)).moves == ()


def test_real_load_is_evened_out_not_only_what_is_promised() -> None:
    guests = [guest(f"busy{i}", 2, node="n1", cpu_load=1.0) for i in range(2)]
    guests += [guest(f"idle{i}", 2, node="n2") for i in range(2)]
    cluster = Cluster(THREE[:2], guests)
    after = settled(cluster, plan_balance(cluster))
    assert len({one.node for one in after.guests if one.name.startswith("busy")}) == 2


def test_a_plan_that_wins_less_than_its_margin_moves_nothing_unless_it_goes_on() -> None:
    cluster = Cluster(THREE, [guest(f"g{i}", 2, node="n1") for i in range(6)])
    picky = replace(cluster, settings=Settings(balance=Balance(max_moves=1, gain_margin=0.9)))
    assert plan_balance(picky).moves == ()
    assert "less than the margin of 90.0%" in plan_balance(picky).notes[0]
    assert plan_balance(picky, resuming=True).moves


def test_a_budget_bounds_the_moves_and_a_cost_can_forbid_them() -> None:
    cluster = Cluster(THREE, [guest(f"g{i}", 2, node="n1") for i in range(6)])
    assert len(plan_balance(replace(cluster, settings=Settings(balance=Balance(max_moves=2)))).moves) == 2
    assert not plan_balance(replace(cluster, settings=Settings(balance=Balance(move_cost=100.0)))).moves


def test_packing_uses_as_few_hosts_as_it_can() -> None:
    nodes = [node(f"n{i}") for i in range(5)]
    guests = [guest(f"g{i}", size) for i, size in enumerate((10, 9, 7, 6))]
    plan = plan_placement(Cluster(nodes, guests, settings=Settings(policy=Policy.PACK)))
    assert len(set(plan.assignments.values())) == 2


@pytest.mark.parametrize("percent", [100, 150])
def test_memory_is_overcommitted_and_reserved_as_the_settings_say(percent: int) -> None:
    settings = Settings(memory_overcommit_percent=percent, reserved_memory_bytes=4 * GIB)
    guests = [guest(f"g{i}", 3, cpus=1) for i in range(8)]
    plan = plan_placement(Cluster([node("n1", cpus=64)], guests, settings=settings))
    assert len(plan.moves) == 12 * percent // 100 // 3


def test_a_guest_that_stands_in_the_way_finds_another_place() -> None:
    nodes = [node("n1", memory_bytes=8 * GIB), node("n2", memory_bytes=8 * GIB, labels={"rack": "x"})]
    guests = [guest("a", 5), guest("b", 4), guest("c", 4), guest("d", 3)]
    assert not plan_placement(Cluster(nodes, guests, [apart("r", "b", "d")])).unplaced
