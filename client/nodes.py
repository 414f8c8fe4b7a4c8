"""The hosts of a cluster."""

from collections.abc import Sequence

from gugus.cluster.v1 import node_pb2, node_pb2_grpc

from client.caller import Caller


class Nodes:
    """The hosts of the cluster."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = node_pb2_grpc.NodeServiceStub

    async def get(self, name: str) -> node_pb2.Node:
        """Return a node. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "GetNode", node_pb2.GetNodeRequest(name=name), node_pb2.Node)

    async def list(self) -> Sequence[node_pb2.Node]:
        """Return all nodes by name."""
        request = node_pb2.ListNodesRequest()
        return (await self._caller.call(self._stub, "ListNodes", request, node_pb2.ListNodesResponse)).nodes

    async def cluster_cpu(self) -> node_pb2.GetClusterCpuResponse:
        """Return the CPU that all hosts have in common, and which of them keep it from being better."""
        request = node_pb2.GetClusterCpuRequest()
        return await self._caller.call(self._stub, "GetClusterCpu", request, node_pb2.GetClusterCpuResponse)

    async def cordon(self, name: str, cordoned: bool = True) -> node_pb2.Node:
        """Stop (or allow) new guests on a node. Idempotent. Raises NOT_FOUND."""
        request = node_pb2.CordonNodeRequest(name=name, cordoned=cordoned)
        return await self._caller.call(self._stub, "CordonNode", request, node_pb2.Node)

    async def remove(self, name: str, *, off: bool = False) -> None:
        """Remove a node that is off for ever. Idempotent. Raises FAILED_PRECONDITION.

        off: of a node from before a recovery, that somebody has seen to it that the host is off for good: its guests start elsewhere.
        """
        request = node_pb2.RemoveNodeRequest(name=name, off=off)
        await self._caller.call(self._stub, "RemoveNode", request, node_pb2.RemoveNodeResponse)
