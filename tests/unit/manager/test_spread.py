"""Pools and networks on the nodes: none keeps what was deleted."""

import pytest
from gugus.agent.v1 import volume_pb2
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool

from client.sdk import Gugus
from manager.controllers.spread import Pools
from manager.store.kinds import new
from tests.unit.manager.cluster import POOL, Cluster


def deleted(pool: Pool) -> Pool:
    pool.meta.deleting = True
    return pool


async def test_a_node_that_got_a_pool_while_it_was_deleted_does_not_keep_it(
    cluster: Cluster, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure, got = Pools.ensure, list[bool]()

    async def slowly(self: Pools, obj: Pool, node: Node) -> volume_pb2.Pool:
        found = await ensure(self, obj, node)
        if obj.meta.name == "late":
            got.append("late" in cluster.agents["n1"].state.pools)
            await cluster.store.update(Pool, "late", deleted)
        return found

    monkeypatch.setattr(Pools, "ensure", slowly)
    pool = new(Pool, "late")
    pool.spec.CopyFrom(POOL)
    pool.spec.name = "late"
    await cluster.store.create(pool)
    await cluster.eventually(lambda: cluster.peek(Pool, "late") is None)
    assert got == [True]
    assert "late" not in cluster.agents["n1"].state.pools
