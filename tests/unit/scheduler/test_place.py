import itertools
from dataclasses import replace
from typing import Any

import pytest
from gugus.agent.v1 import guest_pb2 as agent_guest_pb2
from gugus.cluster.v1 import guest_pb2, node_pb2, rule_pb2
from hypothesis import given
from hypothesis import strategies as st

from manager.ha.stored import terms
from manager.scheduler import Decision, GuestRequest, NodeView, Settings, batch, place
from manager.scheduler.views import guest_request, node_views, to_proto
from manager.store import kinds
from planner.filters import FILTERS

VM = agent_guest_pb2.GUEST_KIND_VIRTUAL_MACHINE
CONTAINER = agent_guest_pb2.GUEST_KIND_CONTAINER
GIB = 1 << 30
BOTH = frozenset({int(VM), int(CONTAINER)})


def node(name: str, **changes: object) -> NodeView:
    made = NodeView(name, online=True, cpus=4, memory_bytes=8 * GIB, kinds=BOTH, pools=frozenset({"p"}))
    return replace(made, **changes)  # type: ignore[arg-type]


def request(name: str = "web", **changes: object) -> GuestRequest:
    return replace(GuestRequest(name, VM, 1, GIB, frozenset({"p"})), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("refusing", "changes", "wanted"),
    [
        ("online", {"online": False, "offline_reason": "the node is fenced"}, {}),
        ("witness", {"witness": True}, {}),
        ("cordoned", {"cordoned": True}, {}),
        ("pinned", {}, {"pinned": "n2"}),
        ("excluded", {}, {"excluded": frozenset({"n1"})}),
        ("hypervisor", {"kinds": frozenset(), "kind_reasons": {VM: "libvirtd is down"}}, {}),
        ("cpu-size", {"cpus": 1}, {"cpus": 5}),
        ("cpu", {"promised_cpus": 16}, {}),
        ("memory-size", {"memory_bytes": GIB // 2}, {}),
        ("memory", {"promised_memory_bytes": 8 * GIB}, {}),
        ("disk-size", {"disk_bytes": GIB}, {"disk_bytes": 2 * GIB}),
        ("disk", {"disk_bytes": 4 * GIB, "promised_disk_bytes": 3 * GIB}, {"disk_bytes": 2 * GIB}),
        ("machine", {"machines": frozenset({"pc-q35-7.2"})}, {"machine": "pc-q35-8.0"}),
        ("cpu-model", {"cpu_models": frozenset({"Nehalem"})}, {"cpu_model": "EPYC"}),
        ("abilities", {"machines": frozenset({"pc-q35-7.2"})}, {"abilities": frozenset({"tpm"})}),
        ("huge-pages-size", {}, {"huge_pages_2m_bytes": GIB}),
        (
            "huge-pages",
            {"huge_pages_1g_bytes": 2 * GIB, "promised_huge_pages_1g_bytes": 2 * GIB},
            {"huge_pages_1g_bytes": GIB},
        ),
        ("pools", {"pools": frozenset()}, {}),
        ("networks", {}, {"networks": frozenset({"lan"})}),
        ("company", {}, {"company": (GuestRequest("mate", VM, 1, 8 * GIB),)}),
        ("company", {}, {"company": (GuestRequest("mate", VM, 1, GIB, frozenset({"other"})),)}),
    ],
)
def test_each_filter_refuses_by_its_name(refusing: str, changes: dict[str, object], wanted: dict[str, Any]) -> None:
    decision = place(request(**wanted), [node("n1", **changes)])
    assert not decision.node
    assert refusing in {text.partition(":")[0] for text in decision.verdicts[0].refusals}
    assert refusing in decision.reason


BY_RULES = {"node-affinity", "together", "apart"}
"""Filters that refuse by rules: tests/unit/planner/test_rules.py."""


def test_every_filter_has_a_case_above() -> None:
    (mark,) = [m for m in test_each_filter_refuses_by_its_name.pytestmark if m.name == "parametrize"]
    assert {case[0] for case in mark.args[1]} == {f.name for f in FILTERS} - BY_RULES


def test_guests_are_spread() -> None:
    nodes = [node("n1"), node("n2"), node("n3")]
    assert [d.node for d in batch([request(f"g{i}") for i in range(3)], nodes)] == ["n1", "n2", "n3"]


def test_the_preferred_node_wins_while_it_fits() -> None:
    nodes = [node("n1"), node("n2", guests=9, promised_memory_bytes=6 * GIB)]
    assert place(request(preferred="n2"), nodes).node == "n2"
    assert place(request(preferred="n2", memory_bytes=3 * GIB), nodes).node == "n1"


def test_more_than_any_host_has_is_hopeless_and_a_full_cluster_is_not() -> None:
    huge = place(request(memory_bytes=9 * GIB), [node("n1"), node("n2")])
    assert huge.hopeless
    assert "8GiB" in huge.reason
    full = place(request(), [node("n1", promised_memory_bytes=8 * GIB), node("n2", memory_bytes=GIB // 2)])
    assert not full.node
    assert not full.hopeless
    assert not place(request(), []).hopeless


def test_the_reason_says_what_decided() -> None:
    decision = place(request(), [node("n1", guests=3), node("n2"), node("n3", online=False)])
    assert decision.reason.startswith("n2 scores best of 2 nodes that fit")
    assert "next n1" in decision.reason
    assert [v.node for v in decision.verdicts] == ["n2", "n1", "n3"]


def test_stored_objects_become_views_with_their_promises() -> None:
    stored = kinds.new(node_pb2.Node, "n1")
    stored.status.state = node_pb2.NODE_STATE_ONLINE
    stored.status.facts.cpus = 4
    stored.status.facts.memory_allocatable_bytes = 4 * GIB
    stored.status.facts.hypervisors.add(driver="kvm", kinds=[VM], ready=True)
    stored.status.facts.hypervisors.add(driver="lxc", kinds=[CONTAINER], ready=False, reason="no cgroups")
    guests = []
    for name, kind in (("vm", VM), ("ct", CONTAINER)):
        guest = kinds.new(guest_pb2.Guest, name)
        guest.spec.kind = kind
        guest.status.node = "n1"
        guests.append(guest)
    (view,) = node_views([stored], guests)
    assert (view.promised_cpus, view.promised_memory_bytes, view.guests) == (2, 768 << 20, 2)
    (view,) = node_views([stored], guests, ignoring="vm")
    assert view.guests == 1
    assert "no cgroups" in place(guest_request(guests[1]), [view]).reason
    placement = to_proto(place(guest_request(guests[0]), [view]))
    assert placement.node == "n1"
    assert placement.verdicts[0].scores["spread"] == 0.5


def test_a_guest_that_moves_has_its_room_and_its_rules_at_both_ends() -> None:
    nodes = []
    for name in ("n1", "n2"):
        made = kinds.new(node_pb2.Node, name)
        made.status.state = node_pb2.NODE_STATE_ONLINE
        made.status.facts.cpus, made.status.facts.memory_allocatable_bytes = 4, 4 * GIB
        made.status.facts.hypervisors.add(driver="kvm", kinds=[VM], ready=True)
        nodes.append(made)
    moves, other = kinds.new(guest_pb2.Guest, "moves"), kinds.new(guest_pb2.Guest, "other")
    moves.spec.kind = other.spec.kind = VM
    moves.status.node, moves.status.migration.target = "n1", "n2"
    assert [view.guests for view in node_views(nodes, [moves])] == [1, 1]
    rule = kinds.new(rule_pb2.Rule, "apart")
    rule.spec.guests.extend(["moves", "other"])
    rule.spec.apart.SetInParent()
    decision = place(guest_request(other), node_views(nodes, [moves]), terms(nodes, [moves, other], [rule], Settings()))
    assert decision.node == ""
    assert [any("apart" in why for why in v.refusals) for v in decision.verdicts] == [True, True]
    moves.status.phase = guest_pb2.GUEST_PHASE_RECOVERING  # its source is lost, and it may have arrived
    decision = place(guest_request(other), node_views(nodes, [moves]), terms(nodes, [moves, other], [rule], Settings()))
    assert decision.node == "n1"


nodes_of = st.lists(
    st.builds(
        node,
        st.sampled_from(["n1", "n2", "n3", "n4", "n5"]),
        online=st.booleans(),
        cordoned=st.booleans(),
        memory_bytes=st.integers(0, 8).map(lambda g: g * GIB),
        promised_memory_bytes=st.integers(0, 8).map(lambda g: g * GIB),
        promised_cpus=st.integers(0, 20),
        guests=st.integers(0, 4),
    ),
    max_size=5,
    unique_by=lambda n: n.name,
)
requests_of = st.builds(
    request,
    cpus=st.integers(1, 8),
    memory_bytes=st.integers(1, 8).map(lambda g: g * GIB),
    pinned=st.sampled_from(["", "", "n1"]),
    preferred=st.sampled_from(["", "n2"]),
)


@given(st.lists(requests_of, max_size=8), nodes_of)
def test_nodes_are_never_promised_more_than_they_have(requests: list[GuestRequest], nodes: list[NodeView]) -> None:
    for one in nodes:
        given_here = [r for r, d in zip(requests, batch(requests, nodes), strict=True) if d.node == one.name]
        if given_here:
            assert one.promised_memory_bytes + sum(r.memory_bytes for r in given_here) <= one.memory_bytes
            assert one.promised_cpus + sum(r.cpus for r in given_here) <= one.cpus * 4


@given(requests_of, nodes_of)
def test_the_order_of_nodes_does_not_matter(asked: GuestRequest, nodes: list[NodeView]) -> None:
    decisions = {place(asked, list(order)) for order in itertools.islice(itertools.permutations(nodes), 6)}
    assert len(decisions) == 1


@given(requests_of, nodes_of)
def test_another_node_never_turns_success_into_failure(asked: GuestRequest, nodes: list[NodeView]) -> None:
    def others_order(decision: Decision) -> list[str]:
        return [v.node for v in decision.verdicts if v.node != "n9"]

    before, after = place(asked, nodes), place(asked, [*nodes, node("n9")])
    assert not (before.node and not after.node)
    assert others_order(before) == others_order(after)


def test_a_node_that_has_not_told_what_it_has_gets_nothing_and_no_guest_is_given_up_for_it() -> None:
    stored = kinds.new(node_pb2.Node, "n1")
    stored.status.state = node_pb2.NODE_STATE_ONLINE
    decision = place(request(), node_views([stored], []))
    assert not decision.node
    assert not decision.hopeless
    assert "has not told yet" in decision.verdicts[0].refusals[0]
