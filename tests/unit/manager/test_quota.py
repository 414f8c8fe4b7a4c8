"""A state that has reached its quota: what users create is refused with a reason, all else goes on."""

import pytest
from gugus.agent.v1.network_pb2 import BridgeNetwork, NetworkSpec
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import POWER_OFF
from gugus.cluster.v1.network_pb2 import Network

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError
from manager.store import rules
from tests.unit.manager.cluster import IMAGE, POOL, Cluster, guest_spec

BRIDGE = NetworkSpec(name="late", bridge=BridgeNetwork(bridge="br-late"))


@pytest.fixture
async def full(cluster: Cluster, gugus: Gugus, monkeypatch: pytest.MonkeyPatch) -> Gugus:
    """An operator of a cluster without room for another object, in which the stopped guest "early" is."""
    await gugus.guests.create("early", guest_spec(power=POWER_OFF))
    monkeypatch.setattr(rules, "QUOTA_BYTES", 1)
    return gugus


async def test_what_users_create_is_refused(cluster: Cluster, full: Gugus) -> None:
    calls = (
        full.guests.create("late", guest_spec()),
        full.pools.create(PoolSpec(name="late", dir=DirPool(path="/srv/late"))),
        full.pools.import_image(POOL.name, "late", "/late.qcow2"),
        full.networks.create(BRIDGE),
        full.cluster.create_token(),
    )
    for call in calls:
        with pytest.raises(GugusError) as caught:
            await call
        assert caught.value.reason == "STORE_FULL", call
        assert caught.value.remedy


async def test_what_is_there_can_be_used_and_deleted(cluster: Cluster, full: Gugus) -> None:
    check(await full.tasks.wait(await full.guests.start("early")))
    check(await full.tasks.wait(await full.guests.delete("early", force=True)))
    check(await full.tasks.wait(await full.pools.delete_image(POOL.name, IMAGE)))
    assert cluster.peek(Network, BRIDGE.name) is None
