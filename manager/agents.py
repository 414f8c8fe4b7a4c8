"""The acting manager's way to agents: one verified channel a node, and errors that name the node."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from gugus.agent.v1 import (
    disk_pb2_grpc,
    guest_pb2_grpc,
    migration_pb2_grpc,
    network_pb2_grpc,
    node_pb2_grpc,
    snapshot_pb2_grpc,
    task_pb2_grpc,
    volume_pb2_grpc,
)
from gugus.cluster.v1.node_pb2 import Node

from common.config import join_endpoint
from common.errors import GugusError, from_rpc_error
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.metrics import RpcMetrics
from common.rpc.channel import open_channel

T = TypeVar("T")


class Agent:
    """Stubs of one agent's services."""

    def __init__(self, node: str, channel: grpc.aio.Channel) -> None:
        self.node = node
        self.channel = channel
        self.host = node_pb2_grpc.NodeServiceStub(channel)
        self.guests = guest_pb2_grpc.GuestServiceStub(channel)
        self.volumes = volume_pb2_grpc.VolumeServiceStub(channel)
        self.networks = network_pb2_grpc.NetworkServiceStub(channel)
        self.tasks = task_pb2_grpc.TaskServiceStub(channel)
        self.snapshots = snapshot_pb2_grpc.SnapshotServiceStub(channel)
        self.disks = disk_pb2_grpc.DiskServiceStub(channel)
        self.migrations = migration_pb2_grpc.MigrationServiceStub(channel)


class Agents:
    """Channels to agents, opened at first use. A node that moved to another address gets a new one."""

    def __init__(self, credentials: Credentials, metrics: RpcMetrics | None = None) -> None:
        self._credentials = credentials
        self._metrics = metrics
        self._open: dict[str, tuple[str, Agent]] = {}

    def of(self, node: Node) -> Agent:
        """Return the agent of a node; the connection is made at the first call, and its certificate must name the node."""
        endpoint = join_endpoint(node.spec.address, node.spec.agent_port)
        known = self._open.get(node.meta.name)
        if known and known[0] == endpoint:
            return known[1]
        identity = Identity(self._credentials.identity.cluster_id, Role.NODE, node.meta.name)
        channel = open_channel(endpoint, self._credentials, verify=identity.dns_name, metrics=self._metrics)
        agent = Agent(node.meta.name, channel)
        self._open[node.meta.name] = (endpoint, agent)
        return agent

    async def close(self) -> None:
        """Close every channel."""
        for _, agent in self._open.values():
            await agent.channel.close()
        self._open.clear()


async def told(node: str, call: Callable[[], Awaitable[T]]) -> T:
    """Await a call to an agent; its error becomes a GugusError whose message says which node it came from."""
    try:
        return await call()
    except grpc.aio.AioRpcError as error:
        known = from_rpc_error(error)
        raise GugusError(
            known.code,
            known.reason,
            f"node {node}: {known.message}",
            field=known.field,
            remedy=known.remedy,
            metadata={**known.metadata, "node": node},
        ) from error
