"""Settings of the cluster: changed all or none, told in an event, and in force where they are read."""

import pytest
from gugus.cluster.v1.cluster_pb2 import PLACEMENT_POLICY_PACK, ClusterSettings
from gugus.cluster.v1.node_pb2 import Node

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError
from manager.controllers.fencing import limits_of
from manager.ha.fence_plan import Limits
from tests.unit.manager.cluster import Cluster, guest_spec


async def test_a_change_is_told_with_old_and_new_and_repeated_once(cluster: Cluster, gugus: Gugus) -> None:
    wished = ClusterSettings(cpu_overcommit_percent=200)
    wished.spare.nodes = 1
    for _ in range(2):
        after = await gugus.cluster.update_settings(wished, ["cpu_overcommit_percent", "spare.nodes"], request_id="one")
    assert (after.settings.cpu_overcommit_percent, after.settings.spare.nodes) == (200, 1)
    again = await gugus.cluster.update_settings(wished, ["spare.nodes"])
    assert again.settings == after.settings
    (told,) = [event for event in cluster.events() if event.reason == "SETTINGS_CHANGED"]
    assert told.about == "cluster/test"
    assert "operator" in told.message
    assert "cpu_overcommit_percent: 400% (default) -> 200%; spare.nodes: 0 (default) -> 1" in told.message
    reset = await gugus.cluster.update_settings(ClusterSettings(), ["spare.nodes"])
    assert reset.settings.spare.nodes == 0
    assert reset.settings.cpu_overcommit_percent == 200


async def test_nothing_is_changed_when_anything_is_wrong(cluster: Cluster, gugus: Gugus) -> None:
    wished = ClusterSettings(node_lease_ms=60_000, memory_overcommit_percent=50)
    wished.spare.nodes = 1
    with pytest.raises(GugusError) as raised:
        await gugus.cluster.update_settings(
            wished, ["node_lease_ms", "memory_overcommit_percent", "spare.nodes", "spare.what"]
        )
    assert [one.field for one in raised.value.violations] == [
        "spare.what",
        "node_lease_ms",
        "memory_overcommit_percent",
    ]
    with pytest.raises(GugusError, match="names 0 settings"):
        await gugus.cluster.update_settings(wished, [])
    assert (await gugus.cluster.get()).settings == ClusterSettings()


async def test_a_domain_that_no_node_is_in_is_a_slip(cluster: Cluster, gugus: Gugus) -> None:
    wished = ClusterSettings()
    wished.spare.domain = "rak"
    with pytest.raises(GugusError, match="no node has any") as raised:
        await gugus.cluster.update_settings(wished, ["spare.domain"])
    assert "gugus node label NODE rak=VALUE" in raised.value.remedy
    await gugus.nodes.label("n1", {"rack": "a"})
    with pytest.raises(GugusError, match="there are rack"):
        await gugus.cluster.update_settings(wished, ["spare.domain"])
    wished.spare.domain = "rack"
    assert (await gugus.cluster.update_settings(wished, ["spare.domain"])).settings.spare.domain == "rack"
    await gugus.nodes.label(
        "n1", {}, removed=["rack"]
    )  # later than that, the status of the cluster tells what is short
    wished.spare.nodes = 1
    await gugus.cluster.update_settings(wished, ["spare.domain", "spare.nodes"])


async def test_placement_goes_by_the_settings(cluster: Cluster, gugus: Gugus) -> None:
    await cluster.add_node("n2")
    await cluster.eventually(lambda: "shared" in (cluster.peek(Node, "n2") or Node()).status.facts.pools)
    await gugus.cluster.update_settings(ClusterSettings(placement=PLACEMENT_POLICY_PACK), ["placement"])
    for name in ("a", "b"):
        check(await gugus.tasks.wait(await gugus.guests.create(name, guest_spec())))
    where = {(await gugus.guests.get(name)).status.node for name in ("a", "b")}
    assert len(where) == 1
    explained = await gugus.guests.explain("a")
    (best, other) = explained.now.verdicts
    assert {"filled-memory", "in-use"} <= set(best.scores)
    assert "spread" not in best.scores
    weights = ClusterSettings(placement_weights={"spread": 50.0, "in-use": 0.0})
    await gugus.cluster.update_settings(weights, ["placement_weights.spread", "placement_weights.in-use"])
    explained = await gugus.guests.explain("a")
    assert explained.now.node not in where
    assert explained.now.verdicts[0].scores["spread"] == 50.0
    assert (explained.now.weights["spread"], explained.now.weights["in-use"], explained.now.weights["filled-cpu"]) == (
        50,
        0,
        1,
    )
    assert other.fits


async def test_overcommit_and_the_limits_of_fencing_are_in_force_at_once(cluster: Cluster, gugus: Gugus) -> None:
    node = cluster.peek(Node, "n1")
    assert node is not None
    spec = guest_spec()
    spec.memory_bytes = node.status.facts.memory_allocatable_bytes + (1 << 20)
    with pytest.raises(GugusError, match="no node could ever run it"):
        await gugus.guests.create("big", spec)
    await gugus.cluster.update_settings(ClusterSettings(memory_overcommit_percent=150), ["memory_overcommit_percent"])
    wished = ClusterSettings()
    wished.fencing.cap_percent, wished.fencing.max_cuts = 50, 1
    await gugus.cluster.update_settings(wished, ["fencing.cap_percent", "fencing.max_cuts"])
    await gugus.guests.create("big", spec)
    limits = limits_of(cluster._context.settings())
    assert (limits.cap_percent, limits.max_cuts) == (50, 1)
    assert limits_of(ClusterSettings()) == Limits()
