"""Rules about where guests run: saved only when they can hold, and looked at whenever a guest is given a node."""

import pytest
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.rule_pb2 import GuestAffinity, NodeAffinity, RuleSpec

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError
from tests.unit.manager.cluster import Cluster, guest_spec


@pytest.fixture
async def two(cluster: Cluster, gugus: Gugus) -> Cluster:
    """Two nodes and no guest."""
    await cluster.add_node("n2")
    await cluster.eventually(lambda: "shared" in (cluster.peek(Node, "n2") or Node()).status.facts.pools)
    return cluster


async def create(gugus: Gugus, name: str) -> None:
    check(await gugus.tasks.wait(await gugus.guests.create(name, guest_spec())))


def node_of(cluster: Cluster, name: str) -> str:
    guest = cluster.peek(Guest, name)
    assert guest is not None
    return guest.status.node


async def test_guests_together_and_apart(two: Cluster, gugus: Gugus) -> None:
    apart, together = (
        RuleSpec(guests=["a", "b"], apart=GuestAffinity()),
        RuleSpec(guests=["b", "c"], together=GuestAffinity()),
    )
    await gugus.rules.create("spread", apart, force=True)
    await gugus.rules.create("near", together, force=True)
    for name in ("a", "b", "c"):
        await create(gugus, name)
    assert node_of(two, "a") != node_of(two, "b") == node_of(two, "c")
    explained = await gugus.guests.explain("a")
    (refused,) = [v for v in explained.now.verdicts if not v.fits]
    assert "spread" in " ".join(refused.refusals)
    rule = await gugus.rules.get("spread")
    assert list(rule.covers) == ["a", "b"]
    assert not rule.problems


async def test_guests_are_selected_by_labels_and_put_on_nodes(two: Cluster, gugus: Gugus) -> None:
    spec = RuleSpec(guest_labels={"licence": "oracle"}, nodes=NodeAffinity(priorities={"n1": 1, "n2": 2}))
    await gugus.rules.create("licensed", spec)
    for name in ("a", "b", "c"):
        task = await gugus.guests.create(name, guest_spec(), labels={"licence": "oracle"})
        check(await gugus.tasks.wait(task))
    assert {node_of(two, name) for name in ("a", "b", "c")} == {"n2"}


async def test_racks_are_labels_of_nodes(two: Cluster, gugus: Gugus) -> None:
    await gugus.nodes.label("n1", {"rack": "a", "old": "yes"})
    node = await gugus.nodes.label("n2", {"rack": "a"})
    assert dict(node.meta.labels) == {"rack": "a"}
    node = await gugus.nodes.label("n1", {}, removed=["old"])
    assert dict(node.meta.labels) == {"rack": "a"}
    await create(gugus, "a")
    spec = RuleSpec(guests=["a", "b"], apart=GuestAffinity(domain="rack"))
    await create(gugus, "b")
    with pytest.raises(GugusError, match="rack") as raised:
        await gugus.rules.create("racks", spec)
    assert raised.value.reason == "RULES_CONFLICT"


async def test_a_rule_that_cannot_hold_is_refused_by_name(two: Cluster, gugus: Gugus) -> None:
    await create(gugus, "a")
    await create(gugus, "b")
    await gugus.rules.create("near", RuleSpec(guests=["a", "b"], together=GuestAffinity()))
    with pytest.raises(GugusError, match="near") as raised:
        await gugus.rules.create("far", RuleSpec(guests=["a", "b"], apart=GuestAffinity()))
    assert raised.value.reason == "RULES_CONFLICT"
    assert raised.value.metadata["reasons"] == "TOGETHER_AND_APART"
    forced = await gugus.rules.create("far", RuleSpec(guests=["a", "b"], apart=GuestAffinity()), force=True)
    assert forced.problems
    off = RuleSpec()
    off.CopyFrom(forced.spec)
    off.disabled = True
    assert not (await gugus.rules.update("far", off)).problems
    assert not (await gugus.rules.get("near")).problems


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (RuleSpec(guests=["a"]), "spec.kind"),
        (RuleSpec(together=GuestAffinity()), "spec.guests"),
        (RuleSpec(guests=["a"], nodes=NodeAffinity()), "spec.nodes.priorities"),
        (RuleSpec(guests=["a"], nodes=NodeAffinity(priorities={"n1": 1001})), "1001"),
        (RuleSpec(guests=["a"], nodes=NodeAffinity(priorities={"n1": 1}), notes="x" * 1025), "spec.notes"),
        (RuleSpec(guest_labels={"": "x"}, nodes=NodeAffinity(priorities={"n1": 1})), "labels"),
        (RuleSpec(guests=["a"], nodes=NodeAffinity(priorities={"n9": 1})), "n9"),
    ],
)
async def test_nonsense_is_refused_with_what_is_wrong(gugus: Gugus, spec: RuleSpec, says: str) -> None:
    with pytest.raises(GugusError, match=says):
        await gugus.rules.create("rule", spec)
    assert not await gugus.rules.list()


async def test_repeated_calls_make_one_rule_and_deleting_is_idempotent(two: Cluster, gugus: Gugus) -> None:
    await create(gugus, "a")
    spec = RuleSpec(guests=["a"], nodes=NodeAffinity(priorities={"n1": 0}))
    for _ in range(2):
        assert (await gugus.rules.create("here", spec, request_id="once")).meta.name == "here"
    with pytest.raises(GugusError) as raised:
        await gugus.rules.create("here", spec)
    assert raised.value.reason == "RULE_ALREADY_EXISTS"
    await gugus.rules.delete("here")
    await gugus.rules.delete("here")
    assert not await gugus.rules.list()


async def test_a_renamed_guest_keeps_its_rules(two: Cluster, gugus: Gugus) -> None:
    await create(gugus, "a")
    await gugus.rules.create("here", RuleSpec(guests=["a"], nodes=NodeAffinity(priorities={"n1": 0, "n2": 0})))
    check(await gugus.tasks.wait(await gugus.guests.stop("a", force=True)))
    check(await gugus.tasks.wait(await gugus.guests.rename("a", "z")))
    assert list((await gugus.rules.get("here")).spec.guests) == ["z"]
