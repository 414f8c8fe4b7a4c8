"""A witness joins, votes, has no guests, pools or networks, and can be removed; nothing about guests counts it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from gugus.agent.v1.network_pb2 import BridgeNetwork, NetworkSpec
from gugus.agent.v1.volume_pb2 import PoolSpec
from gugus.cluster.v1.cluster_pb2 import Cluster as ClusterState
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.plan_pb2 import AddNodes, WhatIfRequest
from gugus.cluster.v1.pool_pb2 import Pool

from agent.join import JoinOptions, join
from client.sdk import Gugus
from client.tasks import check
from common.config import AgentConfig, load_agent
from common.errors import GugusError
from common.identity.tokens import JoinToken
from manager.controllers import voters as voters_controller
from tests.unit.manager.cluster import POOL, guest_spec
from tests.unit.manager.conftest import haste, storage
from tests.unit.manager.hosts import Hosts, running
from tests.unit.manager.storage import Storage

__all__ = ["haste", "storage"]

LAN = NetworkSpec(name="lan", bridge=BridgeNetwork(bridge="gg-lan"))


class WithWitness(Hosts):
    """n1 and n2 run guests; n3 is configured by its own `agent.yaml`, as a real host is."""

    def agent_config(self, name: str) -> AgentConfig:
        file = self.folder / name / "agent.yaml"
        return load_agent(file) if file.exists() else super().agent_config(name)

    async def join_witness(self, gugus: Gugus, name: str = "n3") -> None:
        """Do on a host what its operator would."""
        token = JoinToken.parse((await gugus.cluster.create_token(node=name)).token)
        base = replace(super().agent_config(name), hypervisors=("kvm", "lxc"), watchdog_device="/dev/watchdog")
        for file in base.pki_dir.iterdir():  # the helper made some
            file.unlink()
        path = self.folder / name / "agent.yaml"
        await join(token, JoinOptions(path, name=name, address=self.address(name), witness=True, base=base))
        self.start_agent(name)
        await self.online(name)


@pytest.fixture
async def cluster(tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WithWitness]:
    monkeypatch.setattr(voters_controller, "PERIOD_S", 0.2)
    async with running(WithWitness(tmp_path), 2) as cluster:
        yield cluster


@pytest.fixture
async def gugus(cluster: WithWitness) -> AsyncIterator[Gugus]:
    async with cluster.client("n1", "n2", "n3") as gugus:
        await cluster.make_image(gugus)
        await cluster.join_witness(gugus)
        yield gugus


async def test_it_votes_and_has_no_guests_pools_or_networks(cluster: WithWitness, gugus: Gugus) -> None:
    for name in ("n2", "n3"):
        await gugus.cluster.promote(name)
    assert cluster.in_force() == ["n1", "n2", "n3"]
    assert [node.meta.name for node in await gugus.nodes.list() if node.spec.witness] == ["n3"]
    await gugus.networks.create(LAN)  # answered without the witness
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec())))
    verdicts = {v.node: list(v.refusals) for v in (await gugus.guests.explain("web")).now.verdicts}
    assert "witness: it is a witness, which votes and runs no guests" in verdicts["n3"]
    pool, network = cluster.peek(Pool, POOL.name), cluster.peek(Network, "lan")
    assert pool is not None
    assert network is not None
    assert set(pool.status.nodes) == set(network.status.nodes) == {"n1", "n2"}
    assert not await cluster.agents["n3"].pools.statuses()


async def test_nothing_is_asked_of_it_that_needs_guests(cluster: WithWitness, gugus: Gugus) -> None:
    for call in (
        gugus.pools.create(PoolSpec(name="other", dir=POOL.dir), nodes=["n3"]),
        gugus.networks.create(LAN, nodes=["n1", "n3"]),
        gugus.plans.what_if(WhatIfRequest(add=AddNodes(like="n3"))),
    ):
        with pytest.raises(GugusError) as caught:
            await call
        assert caught.value.reason == "NODE_IS_WITNESS"
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec())))
    with pytest.raises(GugusError, match="votes and runs no guests"):
        check(await gugus.tasks.wait(await gugus.migrations.migrate("web", "n3")))


async def test_one_that_does_not_vote_is_told_of(cluster: WithWitness, gugus: Gugus) -> None:
    found = {problem.reason: problem for problem in (await gugus.cluster.status()).findings}
    assert found["WITNESS_IDLE"].about == "node/n3"
    assert found["WITNESS_IDLE"].remedy == "`gugus cluster promote n3`."
    await gugus.cluster.promote("n2")
    await gugus.cluster.promote("n3")
    assert "WITNESS_IDLE" not in {problem.reason for problem in (await gugus.cluster.status()).findings}


async def test_its_loss_moves_nothing_and_it_can_be_removed(cluster: WithWitness, gugus: Gugus) -> None:
    def hurry(stored: ClusterState) -> ClusterState:
        stored.settings.node_lease_ms = 3_000
        return stored

    await cluster.store.update(ClusterState, "test", hurry)
    await gugus.cluster.promote("n2")
    await gugus.cluster.promote("n3")
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec())))
    before = cluster.peek(Guest, "web")
    await cluster.stop_agent("n3")
    await cluster.stop_manager("n3")
    expected: set[str] = {"MEMBER_AWAY", "QUORUM_AT_RISK"}
    async with asyncio.timeout(10):  # that its connection has ended is noticed a moment later
        while not expected <= {problem.reason for problem in (await gugus.cluster.status()).findings}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    with pytest.raises(GugusError) as caught:
        await gugus.nodes.remove("n3")
    assert caught.value.reason in ("NODE_ONLINE", "NODE_IS_VOTER")
    await gugus.cluster.demote("n3")
    await cluster.ended(await gugus.nodes.fence("n3"))
    await gugus.nodes.remove("n3")
    assert cluster.peek(Node, "n3") is None
    assert cluster.peek(Guest, "web") == before
