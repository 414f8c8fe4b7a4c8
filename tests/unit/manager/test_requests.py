"""Making a pool on nodes: what one of them refuses is taken back from all."""

from typing import cast

import pytest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool

from common.errors import GugusError, resource_exhausted
from manager.acting import Acting
from manager.agents import Agents
from manager.beats import Beats
from manager.controllers.context import Context
from manager.services.requests import known_nodes, made_on_nodes
from manager.store import Store, StoreState, Txn, TxnResult
from manager.store.kinds import new
from tests.unit.manager.cluster import POOL, Cluster
from tests.unit.manager.storage import Storage
from tests.unit.store.local import LocalConsensus


async def test_pool_that_a_node_refuses_is_taken_back_and_can_be_made_when_the_cause_is_gone(
    cluster: Cluster, storage: Storage
) -> None:
    storage.faults[POOL.name] = resource_exhausted("NO_SPACE", "the disk is full.")
    async with cluster.client() as gugus:
        with pytest.raises(GugusError) as caught:
            await gugus.pools.create(POOL)
        assert caught.value.reason == "POOL_NOT_READY"
        assert "the disk is full." in caught.value.message
        await cluster.eventually(lambda: cluster.peek(Pool, POOL.name) is None)
        storage.faults.clear()
        await gugus.pools.create(POOL)


async def test_pool_is_taken_back_from_a_node_that_had_made_it_just_then(monkeypatch: pytest.MonkeyPatch) -> None:
    state = StoreState()
    store = Store(LocalConsensus(state), state)
    context = Context(store, cast(Acting, None), cast(Agents, None), Beats())
    pool = new(Pool, POOL.name)
    pool.status.nodes["n1"].reason = "the disk is full."
    pool = await store.create(pool)
    txn = store.txn

    def made_on_n2(pool: Pool) -> Pool:
        pool.status.nodes["n2"].ready = True
        return pool

    async def n2_first(wanted: Txn) -> TxnResult:
        monkeypatch.undo()
        await store.update(Pool, POOL.name, made_on_n2)
        return await txn(wanted)

    monkeypatch.setattr(store, "txn", n2_first)
    with pytest.raises(GugusError):
        await made_on_nodes(context, pool)
    taken_back = store.peek(Pool, POOL.name)
    assert taken_back is not None
    assert taken_back.meta.deleting
    assert set(taken_back.status.nodes) == {"n1", "n2"}


async def test_a_node_that_is_none_is_told_with_those_that_are() -> None:
    state = StoreState()
    store = Store(LocalConsensus(state), state)
    for name in ("n1", "n2"):
        await store.create(new(Node, name))
    known_nodes(store, ["n1", "n2"])
    with pytest.raises(GugusError) as caught:
        known_nodes(store, ["n1", "nope"])
    assert caught.value.reason == "NODE_NOT_FOUND"
    assert caught.value.remedy == "There are: n1, n2."
