"""The node service."""

from gugus.cluster.v1 import node_pb2, node_pb2_grpc
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, NODE_STATE_SUSPECT, Node

from common.errors import precondition
from manager.consensus import Consensus
from manager.controllers.context import Context
from manager.events import WARNING, record
from manager.guests.cpu_baseline import cluster_cpu, hosts_of, limits
from manager.services.forward import actor
from manager.store import Txn


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """Serves `gugus node`."""

    def __init__(self, context: Context, consensus: Consensus) -> None:
        self._store = context.store
        self._consensus = consensus

    async def GetNode(self, request: node_pb2.GetNodeRequest, context: object) -> Node:
        """Return one node."""
        return await self._store.require(Node, request.name)

    async def ListNodes(self, request: node_pb2.ListNodesRequest, context: object) -> node_pb2.ListNodesResponse:
        """Return all nodes."""
        return node_pb2.ListNodesResponse(nodes=await self._store.list(Node))

    async def GetClusterCpu(
        self, request: node_pb2.GetClusterCpuRequest, context: object
    ) -> node_pb2.GetClusterCpuResponse:
        """Return the CPU that all hosts have, and who keeps it from being better."""
        nodes = await self._store.list(Node)
        answer = node_pb2.GetClusterCpuResponse(cpu=cluster_cpu(hosts_of(nodes)))
        for name, without in sorted(limits(nodes).items()):
            answer.limits.add(node=name, without=without)
        return answer

    async def CordonNode(self, request: node_pb2.CordonNodeRequest, context: object) -> Node:
        """Stop or allow new guests on a node."""

        def change(node: Node) -> Node:
            node.spec.cordoned = request.cordoned
            return node

        return await self._store.update(Node, request.name, change)

    async def RemoveNode(self, request: node_pb2.RemoveNodeRequest, context: object) -> node_pb2.RemoveNodeResponse:
        """Forget a node that is off for ever. Its certificate is of no use any more: beats of unknown nodes are refused.

        Of a node from before a recovery, that it is off is the caller's word, and all there is: its guests are given to others upon it.
        """
        node = await self._store.get(Node, request.name)
        if node is None:
            return node_pb2.RemoveNodeResponse()
        if node.status.state in (NODE_STATE_ONLINE, NODE_STATE_SUSPECT):
            raise precondition(
                "NODE_ONLINE",
                f"node {request.name} is alive.",
                remedy="Switch it off first; only a dead node is removed.",
            )
        if any(voter.name == request.name for voter in self._consensus.leadership().voters):
            raise precondition(
                "NODE_IS_VOTER", f"node {request.name} votes.", remedy=f"`gugus cluster demote {request.name}` first."
            )
        if node.status.former and not request.off:
            raise precondition(
                "NODE_MAY_BE_ON",
                f"node {request.name} is from before the recovery of the cluster: it may be on, and guests of this cluster may run there.",
                remedy=f"Join it anew (`gugus-agent join --rejoin`), or make sure that it is off for good and "
                f"`gugus node remove {request.name} --off`.",
            )
        guests = sorted(g.meta.name for g in await self._store.list(Guest) if g.status.node == request.name)
        if guests and not node.status.former:
            raise precondition(
                "NODE_HAS_GUESTS",
                f"node {request.name} still has {', '.join(guests)}.",
                remedy="Delete them, or wait until HA has recovered them.",
            )
        text = f"removed by {actor()}{', who said that the host is off for good' if node.status.former else ''}"
        txn = Txn().delete(Node, request.name, expect_revision=node.meta.revision)
        await self._store.txn(record(txn, f"node/{request.name}", "NODE_REMOVED", text, WARNING))
        return node_pb2.RemoveNodeResponse()
