"""Rules: what they do to placement, and which cannot hold."""

import inspect
import re

import pytest

from planner.balance import plan_balance
from planner.conflicts import CHECKS, conflicts
from planner.place import refusals_of
from planner.placement import plan_placement
from planner.plans import Cluster
from planner.rules import Guests, Mode, Rule
from planner.settings import Settings
from planner.types import GuestRequest, NodeView
from tests.unit.planner.clusters import apart, guest, node, only_on, settled, together

RACKS = [node("n1", labels={"rack": "a"}), node("n2", labels={"rack": "a"}), node("n3", labels={"rack": "b"})]


def why(rule: Rule, on: dict[str, str], asked: str, nodes: list[NodeView] | None = None) -> dict[str, list[str]]:
    """What each node says to one more guest of a rule."""
    guests = [guest(name, node=at) for name, at in on.items()]
    fleet = Cluster(nodes or RACKS, guests, [rule]).fleet()
    told = refusals_of(fleet, guest(asked))
    return {name: reasons for name, reasons in zip(fleet.names, told, strict=True) if reasons}


def test_guests_kept_apart_say_from_whom_and_where() -> None:
    assert why(apart("r", "a", "b"), {"a": "n1"}, "b") == {"n1": ["apart: rule r keeps it apart from a in this node"]}
    by_rack = why(apart("r", "a", "b", domain="rack"), {"a": "n1"}, "b")
    assert by_rack == {name: ["apart: rule r keeps it apart from a in rack a"] for name in ("n1", "n2")}


def test_guests_kept_together_say_with_whom() -> None:
    refused = why(together("r", "a", "b"), {"a": "n2"}, "b")
    assert refused == {name: ["together: rule r keeps it with guests on n2"] for name in ("n1", "n3")}
    assert set(why(together("r", "a", "b", domain="rack"), {"a": "n2"}, "b")) == {"n3"}
    assert why(together("r", "a", "b"), {}, "b") == {}


def test_a_node_without_the_label_is_in_no_domain() -> None:
    refused = why(apart("r", "a", "b", domain="site"), {}, "a", [node("n1")])
    assert refused == {"n1": ["apart: rule r goes by the label site, which this node has not"]}


def test_a_strict_rule_about_nodes_refuses_all_others() -> None:
    refused = why(only_on("r", "a", {"n2": 0}), {}, "a")
    assert refused == {name: ["node-affinity: rule r does not name this node"] for name in ("n1", "n3")}
    assert why(only_on("r", "a", {"n2": 0}, strict=False), {}, "a") == {}


def test_rules_select_guests_by_labels_too() -> None:
    rule = apart("r")
    labelled = [guest(f"g{i}", labels={"app": "db", "tier": str(i)}) for i in range(3)]
    by_label = type(rule)("r", Guests(labels={"app": "db"}), Mode.APART)
    plan = plan_placement(Cluster(RACKS, labelled, [by_label]))
    assert sorted(plan.assignments.values()) == ["n1", "n2", "n3"]


def test_the_node_with_the_highest_priority_is_taken_until_it_is_full() -> None:
    rule = only_on("r", "a b c d e", {"n1": 1, "n3": 5})
    plan = plan_placement(Cluster(RACKS, [guest(name) for name in "abcde"], [rule]))
    assert sorted(plan.assignments.values()) == ["n1", "n3", "n3", "n3", "n3"]


def test_a_preference_gives_way_where_there_is_no_room() -> None:
    rule = apart("r", "a", "b", strict=False)
    assert len(set(plan_placement(Cluster(RACKS, [guest("a"), guest("b")], [rule])).assignments.values())) == 2
    alone = plan_placement(Cluster(RACKS[:1], [guest("a"), guest("b")], [rule]))
    assert set(alone.assignments.values()) == {"n1"}
    assert alone.after.parts["rules"] == 1.0


def test_a_group_goes_where_all_of_it_has_room() -> None:
    nodes = [node("n1", memory_bytes=14 << 30, cpus=64), node("n2")]
    cluster = Cluster(nodes, [guest("a", 8), guest("b", 8)], [together("r", "a", "b")])
    assert set(plan_placement(cluster).assignments.values()) == {"n2"}


def test_guests_return_to_a_better_node_only_with_failback() -> None:
    for failback, expected in ((True, "n1"), (False, "n2")):
        rule = only_on("r", "a", {"n1": 2, "n2": 1}, failback=failback)
        cluster = Cluster(RACKS, [guest("a", node="n2")], [rule])
        assert settled(cluster, plan_balance(cluster)).guests[0].node == expected


def test_a_broken_strict_rule_is_mended_first() -> None:
    cluster = Cluster(RACKS, [guest("a", node="n1"), guest("b", node="n1")], [apart("r", "a", "b")])
    plan = plan_balance(cluster)
    assert len(set(settled(cluster, plan).fleet().where.values())) == 2
    assert plan.after.parts["rules"] == 0


CONFLICTS: list[tuple[str, list[Rule]]] = [
    ("RULE_NAME_TAKEN", [apart("r", "a", "b"), apart("r", "a", "b")]),
    ("UNKNOWN_GUEST", [apart("r", "a", "stranger")]),
    ("UNKNOWN_NODE", [only_on("r", "a", {"n1": 0, "n9": 0})]),
    ("NO_NODES", [only_on("r", "a", {})]),
    ("NO_GUESTS", [apart("r")]),
    ("ONE_GUEST", [apart("r", "a")]),
    ("UNKNOWN_DOMAIN", [apart("r", "a", "b", domain="site")]),
    ("PRIORITIES_OVERLAP", [only_on("r", "a", {"n1": 1}), only_on("s", "a", {"n1": 2})]),
    ("NO_NODE_LEFT", [only_on("r", "a", {"n1": 0}), only_on("s", "a", {"n2": 0})]),
    ("NO_NODE_LEFT", [only_on("r", "p", {"n1": 0})]),
    ("TOGETHER_AND_APART", [together("r", "a", "b"), apart("s", "a", "b", "c")]),
    ("TOGETHER_AND_APART", [together("r", "a", "b"), apart("s", "a", "b", domain="rack")]),
    ("TOGETHER_AND_APART", [together("r", "a", "b"), together("s", "b", "c"), apart("t", "a", "c")]),
    ("NO_COMMON_NODE", [together("r", "a", "b"), only_on("s", "a", {"n1": 0}), only_on("t", "b", {"n2": 0})]),
    ("TOO_BIG_TOGETHER", [together("r", "a", "huge")]),
    ("TOO_MANY_APART", [apart("r", "a", "b", "c", "d")]),
    ("TOO_MANY_APART", [apart("r", "a", "b", "c", domain="rack")]),
    ("TOO_MANY_APART", [apart("r", "a", "b", "c"), only_on("s", "a b", {"n1": 0})]),
]

GUESTS: list[GuestRequest] = [*(guest(name) for name in "abcd"), guest("huge", 13), guest("p", pinned="n2")]


@pytest.mark.parametrize(("reason", "rules"), CONFLICTS)
def test_rules_that_cannot_hold_are_named(reason: str, rules: list[Rule]) -> None:
    found = [one for one in conflicts(rules, RACKS, GUESTS) if one.reason == reason]
    assert found
    assert all(any(rule.name in one.message for rule in rules) and one.remedy for one in found)


def test_every_check_has_a_case_above() -> None:
    shown = {case[0] for case in CONFLICTS}
    sources = "".join(inspect.getsource(check) for check in CHECKS)
    assert set(re.findall(r'"([A-Z]+_[A-Z_]+)"', sources)) == shown


def test_rules_that_can_hold_are_left_alone() -> None:
    rules: list[Rule] = [
        together("t", "a", "b", domain="rack"),
        apart("u", "a", "b"),
        only_on("v", "c", {"n3": 1, "n1": 0}),
        apart("w", "a", "c", "d"),
    ]
    assert conflicts(rules, RACKS, GUESTS[:4]) == []
    plan = plan_placement(Cluster(RACKS, GUESTS[:4], rules, Settings()))
    assert not plan.unplaced
