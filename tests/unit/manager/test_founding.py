"""The first moments of a cluster: its manager acts already, and its first node is not written down yet."""

import asyncio
from pathlib import Path

import grpc
import pytest
from gugus.cluster.v1 import heartbeat_pb2, heartbeat_pb2_grpc

from common.errors import GugusError, from_rpc_error
from common.identity.names import Role, any_of
from common.rpc.channel import open_channel
from manager.daemon import Manager
from tests.unit.manager.cluster import Cluster


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The founding waits for this."""
    event, found = asyncio.Event(), Manager._bootstrap

    async def found_later(self: Manager) -> None:
        await event.wait()
        await found(self)

    monkeypatch.setattr(Manager, "_bootstrap", found_later)
    return event


async def answer_to_a_beat(cluster: Cluster) -> GugusError:
    verify = any_of(Role.MANAGER, cluster.cluster_id)
    credentials = cluster.pki("n1", Role.NODE).credentials(Role.NODE)
    beat = heartbeat_pb2.HeartbeatRequest(node="n1", sequence=1)
    async with open_channel(cluster.endpoint(), credentials, verify=verify) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(heartbeat_pb2_grpc.HeartbeatServiceStub(channel).Heartbeat(iter([beat]))))
    return from_rpc_error(caught.value)


async def test_node_that_beats_during_the_founding_is_asked_to_wait_and_not_sent_away(
    tmp_path: Path, written: asyncio.Event
) -> None:
    async with Cluster(tmp_path) as cluster:
        cluster.start_manager()
        await cluster.eventually(lambda: cluster.acting)
        error = await answer_to_a_beat(cluster)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_FOUNDED")
        written.set()
        cluster.start_agent()
        await cluster.online()
