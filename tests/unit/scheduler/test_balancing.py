"""When the cluster evens itself out: hold, margin, budget, rest, who stays; a day of noise; never against a rule or N+1."""

import random
from typing import Any

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1.cluster_pb2 import BALANCE_MODE_ADVISE, ClusterSettings, SpareSettings
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_PAUSED, GUEST_PHASE_STOPPED, POWER_OFF, DiskSpec, Guest
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_FENCING, NODE_STATE_SUSPECT, Node, NodeState
from gugus.cluster.v1.rule_pb2 import Rule
from gugus.cluster.v1.task_pb2 import Task
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.operations.registry import MIGRATE
from manager.scheduler import balancing
from manager.scheduler.balancing import ACTOR, WINDOW_S
from planner.filters import fits
from planner.spare import spare_shortfall
from tests.unit.scheduler.evening import NS, Evening, crowded, guest, node

HOLD_S = 300
KNOWN_S = 240


def skewed(**settings: int) -> Evening:
    """Eight alike on n1, none on the others; all of them busy."""
    made = crowded(0, 3, 0, **settings)
    made.guests = [guest(f"g{number}", "n0") for number in range(8)]
    return Evening(made.nodes, made.guests, lambda name, at_s: 0.5, made.settings)


def where(evening: Evening) -> list[int]:
    homes = [guest.status.node for guest in evening.guests]
    return sorted(homes.count(node.meta.name) for node in evening.nodes)


def test_what_is_skewed_is_evened_out_after_the_hold() -> None:
    evening = skewed()
    evening.run(KNOWN_S + HOLD_S - 30, look_s=30)
    assert not evening.moves
    assert evening.conclusions[-1].plan.moves
    assert "must be for 5m" in evening.conclusions[-1].why
    evening.run(60, look_s=30)
    assert where(evening) == [2, 3, 3]
    assert not evening.look().plan.moves


@pytest.mark.parametrize("trouble", ["hindrance", "even for a moment"])
def test_the_hold_begins_anew_when_it_is_broken(trouble: str) -> None:
    evening = skewed()
    evening.run(KNOWN_S + HOLD_S - 60, look_s=30)
    homes = [guest.status.node for guest in evening.guests]
    if trouble == "hindrance":
        evening.hindrance = "node n1 is suspect"
    else:
        for number, one in enumerate(evening.guests):
            one.status.node = f"n{number % 3}"
    assert not evening.look().begins
    evening.hindrance = ""
    for one, home in zip(evening.guests, homes, strict=True):
        one.status.node = home
    evening.run(HOLD_S, look_s=30)
    assert not evening.moves
    evening.run(90, look_s=30)
    assert evening.moves


def test_another_node_that_has_too_much_is_another_conclusion() -> None:
    evening = skewed()
    evening.run(KNOWN_S + HOLD_S - 60, look_s=30)
    for one in evening.guests:
        one.status.node = "n1"
    evening.run(120, look_s=30)
    assert not evening.moves


def test_a_plan_that_wins_too_little_is_none() -> None:
    evening = skewed(gain_percent=90, max_moves=1)
    evening.run(2 * KNOWN_S)
    assert not evening.moves
    assert "less than the margin of 90" in evening.conclusions[-1].why


def test_advice_is_only_given() -> None:
    evening = skewed(mode=BALANCE_MODE_ADVISE)
    evening.run(4 * KNOWN_S)
    assert not evening.moves
    last = evening.conclusions[-1]
    assert last.plan.after.total < last.plan.before.total
    assert last.held is not None
    assert "a person decides" in last.why


def test_no_more_moves_within_an_hour_than_the_budget_even_for_another_manager() -> None:
    evening = skewed(max_moves_per_hour=2, gain_percent=1)
    evening.run(KNOWN_S + HOLD_S + 120)
    assert len(evening.moves) == 2
    evening.run(1800)
    assert "2 of 2 migrations of an hour were begun" in evening.conclusions[-1].why
    evening.held = None  # another manager: what it has is the tasks
    evening.run(1200)
    assert len(evening.moves) == 2
    evening.run(1200)
    assert len(evening.moves) == 4


def test_a_guest_that_was_moved_rests_and_one_that_was_driven_away_does_not() -> None:
    def move(name: str, actor: str, target: str, at_s: float) -> Task:
        task = Task(kind=MIGRATE, target=f"guest/{name}", actor=actor)
        task.request = MigrateGuestRequest(name=name, target=target).SerializeToString()
        task.meta.created_at.FromNanoseconds(round(at_s * NS))
        return task

    moves = [
        move("own", ACTOR, "n1", 5_000),
        move("chosen", "operator/ann", "n1", 5_000),
        move("drained", "operator/ann", "", 5_000),
        move("long-ago", ACTOR, "n1", 5_000 - WINDOW_S),
    ]
    found = balancing.recent(moves, 5_000)
    assert found.begun == 1
    assert found.rested == {"own", "chosen"}


def test_only_guests_that_notice_nothing_are_moved() -> None:
    evening = skewed()
    names = ["runs", "container", "paused", "locked", "pinned", "stopped", "stopped-local", "rested"]
    by_name: dict[str, Guest] = {name: guest(name, "n0") for name in names}
    by_name["container"].spec.kind = GUEST_KIND_CONTAINER
    by_name["paused"].status.phase = GUEST_PHASE_PAUSED
    by_name["locked"].status.lock.task = "t1"
    by_name["pinned"].spec.pinned_node = "n0"
    for name, pool in (("stopped", "shared"), ("stopped-local", "local")):
        by_name[name].spec.power, by_name[name].status.phase = POWER_OFF, GUEST_PHASE_STOPPED
        by_name[name].spec.disks.append(DiskSpec(name="root", pool=pool, size_bytes=1 << 30))
    evening.guests = list(by_name.values())
    stored = evening.stored()
    assert by_name.keys() - balancing.staying(stored, {"rested"}).keys() == {"runs", "stopped"}
    assert balancing.held_up(stored).keys() == {"locked", "pinned"}, "who is asked for it moves the others, too"


@pytest.mark.parametrize(
    ("state", "calm"), [(NODE_STATE_SUSPECT, False), (NODE_STATE_FENCING, False), (NODE_STATE_FENCED, True)]
)
def test_nothing_is_begun_while_a_node_is_in_doubt(state: NodeState.ValueType, calm: bool) -> None:
    nodes = [node("n1"), node("n2")]
    nodes[1].status.state = state
    why = balancing.unsettled(nodes, disarmed=False, draining=())
    assert (not why) == calm
    assert calm or "n2" in why


def test_nothing_is_begun_in_maintenance_while_draining_or_without_ha() -> None:
    nodes: list[Node] = [node("n1"), node("n2")]
    assert not balancing.unsettled(nodes, disarmed=False, draining=())
    assert "HA is switched off" in balancing.unsettled(nodes, disarmed=True, draining=())
    assert "n1" in balancing.unsettled(nodes, disarmed=False, draining={"n1"})
    nodes[0].status.departure.boot_id = nodes[0].status.boot_id = "b1"
    assert "n1 is going down" in balancing.unsettled(nodes, disarmed=False, draining=())
    nodes[0].status.ClearField("departure")
    nodes[1].spec.maintenance = True
    assert "n2 is in maintenance" in balancing.unsettled(nodes, disarmed=False, draining=())


def test_a_day_of_noisy_load_takes_few_moves_and_ends_even() -> None:
    evening = crowded(1)
    evening.sample_s = 60
    evening.run(24 * 3600, look_s=300)
    uneven = evening.conclusions[0].plan.before.parts["cpu-load"], evening.conclusions[0].plan.before.parts["memory"]
    busy = evening.busy().values()
    assert max(uneven) > 0.1
    assert max(busy) - min(busy) < 0.1
    assert evening.conclusions[-1].plan.before.total < 0.1 < evening.conclusions[0].plan.before.total
    moved = [(task.target, task.meta.created_at.seconds) for task in evening.moves]
    assert len(moved) <= 40
    assert sum(at_s > 3 * 3600 for _, at_s in moved) <= 10, "once it is even, noise moves next to nobody"
    for target, at_s in moved:
        assert sum(at_s <= other < at_s + WINDOW_S for _, other in moved) <= 20
        assert not [1 for name, other in moved if name == target and at_s < other < at_s + WINDOW_S]


def bursting(**settings: int) -> Evening:
    """Four guests a node, evenly, each of which keeps all of its CPUs busy for a minute, now and then, by chance."""
    guests = [guest(f"g{number}", f"n{number % 10}", cpus=4) for number in range(40)]

    def use(name: str, at_s: float) -> float:
        return float(random.Random(f"{name} {at_s // 60}").random() < 0.3)

    wanted = crowded(0, 0, 0, **settings).settings
    return Evening([node(f"n{number}") for number in range(10)], guests, use, wanted)


def test_bursts_move_nobody_and_would_without_smoothing_and_hold() -> None:
    evening = bursting()
    evening.run(3 * 3600, look_s=120)
    assert not evening.moves
    hasty = bursting(smoothing_ms=60_000, hold_ms=10_000)
    hasty.run(3 * 3600, look_s=120)
    assert len(hasty.moves) > 20


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), spare=st.integers(0, 1))
def test_no_plan_breaks_a_rule_or_takes_the_room_that_is_kept(seed: int, spare: int) -> None:
    evening = crowded(seed, 4, 16)
    apart = Rule()
    apart.meta.name = "apart"
    apart.spec.guests.extend(["g0", "g1", "g2"])
    apart.spec.apart.SetInParent()
    evening.rules = [apart]
    evening.cluster = ClusterSettings(spare=SpareSettings(nodes=spare), balance=evening.settings)
    stored = evening.stored()
    plan = balancing.planned(stored, balancing.staying(stored, ()), 10)
    fleet = stored.cluster().fleet()
    unsafe = {(one.lost, one.guest) for one in spare_shortfall(fleet)}
    for move in plan.moves:
        fleet.move(fleet.guests[move.guest], fleet.index[move.to_node])
    for move in plan.moves:
        moved = fleet.guests[move.guest]
        home = fleet.take(moved)
        assert fits(fleet, moved)[home]
        fleet.put(moved, home)
    assert {(one.lost, one.guest) for one in spare_shortfall(fleet)} <= unsafe
    shuffled: Any = evening.stored()
    random.Random(seed).shuffle(shuffled.guests)
    assert balancing.planned(shuffled, balancing.staying(shuffled, ()), 10) == plan, "the same input, the same plan"


def test_copying_disks_costs_so_much_that_another_guest_goes() -> None:
    evening = skewed()
    evening.run(KNOWN_S + 60)
    for one in evening.guests[:4]:
        one.spec.disks.append(DiskSpec(name="root", pool="local", size_bytes=1 << 40))
    for host in evening.nodes:
        host.status.facts.pools.append("local")
    moved = {move.guest for move in balancing.planned(evening.stored(), (), 4).moves}
    assert moved <= {f"g{number}" for number in range(4, 8)}
