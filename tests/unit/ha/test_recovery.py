from collections.abc import Sequence
from dataclasses import replace

import pytest
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, GUEST_PHASE_RUNNING
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_JOINING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
)

from manager.ha.recovery import CopyReport, GuestView, Move, Recovery, Unknown, Wait, recover, stale_copies
from manager.scheduler import GuestRequest, NodeView, Terms
from planner.rules import GuestAffinity, Guests, Mode

GIB = 1 << 30


def guest(name: str, node: str = "n1", memory_gib: int = 1, **changes: object) -> GuestView:
    made = GuestView(name, node, 3, GUEST_PHASE_RUNNING, True, True, GuestRequest(name, 1, 1, memory_gib * GIB))
    return replace(made, **changes)  # type: ignore[arg-type]


def node(name: str, *, online: bool = True, promised_gib: int = 0, memory_gib: int = 2) -> NodeView:
    return NodeView(
        name,
        online,
        cpus=4,
        memory_bytes=memory_gib * GIB,
        kinds=frozenset({1}),
        promised_memory_bytes=promised_gib * GIB,
    )


def given(outcomes: Sequence[Recovery]) -> dict[str, str]:
    return {outcome.guest: outcome.to_node for outcome in outcomes if isinstance(outcome, Move)}


DOWN = {"n1": NODE_STATE_FENCED, "n2": NODE_STATE_ONLINE, "n3": NODE_STATE_ONLINE}
NODES = [node("n1", online=False, promised_gib=2), node("n2"), node("n3")]


def test_guests_of_a_fenced_node_move_with_the_next_generation() -> None:
    outcomes = recover([guest("web"), guest("db")], DOWN, NODES)
    assert [(o.guest, o.to_node, o.generation) for o in outcomes if isinstance(o, Move)] == [
        ("db", "n2", 4),
        ("web", "n3", 4),
    ]


@pytest.mark.parametrize("state", [NODE_STATE_JOINING, NODE_STATE_ONLINE, NODE_STATE_SUSPECT])
def test_nothing_is_touched_before_fencing_begins(state: int) -> None:
    assert recover([guest("web")], {**DOWN, "n1": state}, NODES) == []  # type: ignore[dict-item]


def test_without_the_proof_a_guest_waits() -> None:
    (outcome,) = recover([guest("web")], {**DOWN, "n1": NODE_STATE_FENCING}, NODES)
    assert isinstance(outcome, Wait)
    assert "proof" in outcome.reason


@pytest.mark.parametrize("state", [NODE_STATE_FENCING, NODE_STATE_FENCED])
def test_a_guest_outside_ha_is_unknown_and_never_moved(state: int) -> None:
    (outcome,) = recover([guest("web", ha=False)], {**DOWN, "n1": state}, NODES)  # type: ignore[dict-item]
    assert isinstance(outcome, Unknown)


def test_running_guests_get_the_room_first_and_the_rest_wait_with_the_reason() -> None:
    full = [node("n1", online=False, promised_gib=2), node("n2", promised_gib=1), node("n3", promised_gib=2)]
    first, second = recover([guest("a", power_on=False), guest("b")], DOWN, full)
    assert isinstance(first, Move)
    assert first.guest == "b"
    assert isinstance(second, Wait)
    assert "memory" in second.reason


def test_guests_are_placed_together_so_that_none_is_left_out_for_another() -> None:
    free = [node("n1", online=False), node("n2", memory_gib=3), node("n3", memory_gib=2)]
    guests = [guest("a", memory_gib=2), guest("b", memory_gib=3)]  # one by one, a would take the roomier n2
    assert given(recover(guests, DOWN, free)) == {"a": "n3", "b": "n2"}


def test_rules_hold_among_those_that_are_placed_together() -> None:
    nodes = [node("n1", online=False), *(node(name, memory_gib=4) for name in ("n2", "n3"))]
    apart = GuestAffinity("apart", Guests(frozenset({"a", "b", "c"})), Mode.APART)
    outcomes = recover([guest(name) for name in "abc"], DOWN, nodes, terms=Terms([apart]))
    assert given(outcomes) == {"a": "n2", "b": "n3"}
    assert "apart" in outcomes[2].reason
    together = GuestAffinity("together", Guests(frozenset({"a", "b"})), Mode.TOGETHER)
    roomy = [node("n1", online=False), node("n2", memory_gib=3), node("n3", memory_gib=4)]
    both = recover([guest("a", memory_gib=2), guest("b", memory_gib=2)], DOWN, roomy, terms=Terms([together]))
    assert given(both) == {"a": "n3", "b": "n3"}


def test_who_waits_holds_no_place_on_the_node_that_came_back() -> None:
    back = [node("n1", promised_gib=2), node("n2", promised_gib=2)]
    states = {"n1": NODE_STATE_ONLINE, "n2": NODE_STATE_ONLINE}
    waiting = [guest(name, phase=GUEST_PHASE_RECOVERING) for name in ("a", "b")]
    first = guest("z", phase=GUEST_PHASE_RECOVERING, priority=5, memory_gib=2)
    assert given(recover([*waiting, first], states, back)) == {"z": "n1"}


def test_a_waiting_guest_is_restarted_in_place_when_its_node_comes_back() -> None:
    states = {"n1": NODE_STATE_ONLINE}
    (outcome,) = recover([guest("web", phase=GUEST_PHASE_RECOVERING)], states, [node("n1", promised_gib=2)])
    assert isinstance(outcome, Move)
    assert (outcome.to_node, outcome.generation) == ("n1", 4)


def test_a_guest_being_deleted_is_left_to_its_deletion() -> None:
    assert recover([guest("web", deleting=True)], DOWN, NODES) == []


def test_a_copy_given_elsewhere_must_go_and_a_newer_one_may_stay() -> None:
    guests = {"web": guest("web", "n2"), "db": guest("db", "n1")}
    reports = [CopyReport("web", 2, True), CopyReport("db", 3, True), CopyReport("old", 1, False)]
    stale = stale_copies("n1", reports, guests)
    assert [(s.name, s.kill) for s in stale] == [("web", True), ("old", False)]
    assert stale_copies("n1", [CopyReport("web", 9, True)], guests) == [], "our view is the older one"


def test_a_guest_out_of_use_is_given_to_no_other_node() -> None:
    (outcome,) = recover(
        [replace(guest("web"), disabled=True)], {"n1": NODE_STATE_FENCED, "n2": NODE_STATE_ONLINE}, [node("n2")]
    )
    assert isinstance(outcome, Unknown)
    assert "out of use" in outcome.reason


def test_the_important_ones_are_given_a_node_first() -> None:
    one_room = [node("n1", online=False), node("n2", promised_gib=1)]
    guests = [guest("a"), replace(guest("z"), priority=5), replace(guest("off"), priority=9, power_on=False)]
    outcomes = recover(guests, {"n1": NODE_STATE_FENCED, "n2": NODE_STATE_ONLINE}, one_room)
    assert [outcome.guest for outcome in outcomes if isinstance(outcome, Move)] == ["z"]
