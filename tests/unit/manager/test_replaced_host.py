"""A host that was replaced by another one of its name is switched on again."""

import grpc
import pytest
from gugus.cluster.v1 import heartbeat_pb2, heartbeat_pb2_grpc
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common.errors import from_rpc_error
from common.identity.names import Identity, Role, any_of
from common.rpc.channel import open_channel
from tests.unit.manager.cluster import Cluster


async def test_a_host_with_an_older_certificate_of_a_nodes_name_does_not_speak_for_the_node(cluster: Cluster) -> None:
    """Its other boot would be proof that the node was off, and the node's guests would be started elsewhere."""
    node = cluster.peek(Node, "n1")
    assert node is not None
    assert node.status.key_sha256
    old = cluster.authority.issue(Identity(cluster.cluster_id, Role.NODE, "n1"), addresses=[cluster.address("n1")])
    channel = open_channel(cluster.endpoint(), old, verify=any_of(Role.MANAGER, cluster.cluster_id))
    beats = [heartbeat_pb2.HeartbeatRequest(node="n1", sequence=1, boot_id="another", epoch=99)]
    call = heartbeat_pb2_grpc.HeartbeatServiceStub(channel).Heartbeat(iter(beats))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(call))
    await channel.close()
    assert from_rpc_error(caught.value).reason == "KEY_REPLACED"
    await cluster.beats(2)
    now = cluster.peek(Node, "n1")
    assert now is not None
    assert (now.status.state, now.status.boot_id) == (NODE_STATE_ONLINE, node.status.boot_id)
