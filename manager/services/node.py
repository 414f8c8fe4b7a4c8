"""The node service."""

from collections.abc import Callable

from gugus.cluster.v1 import node_pb2, node_pb2_grpc
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, NODE_STATE_SUSPECT, FenceSecrets, Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import invalid, precondition, several
from manager.consensus import Consensus
from manager.controllers import admission
from manager.controllers.context import Context
from manager.events import WARNING, record
from manager.fencing import FenceAgents
from manager.guests.cpu_baseline import cluster_cpu, hosts_of, limits
from manager.guests.rules.words import label_faults
from manager.ha.drain import DRAIN, MAX_PARALLEL, RESTORE
from manager.services import rolling_reboot
from manager.services.fence import Fence
from manager.services.forward import actor
from manager.services.requests import begin, begun, upon_latest
from manager.store import Txn
from manager.tasks import new_task


def _examine(parallel: int) -> None:
    if parallel > MAX_PARALLEL:
        raise invalid("parallel", f"{parallel} is out of range: 1 to {MAX_PARALLEL} guests at a time.")


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """Serves `gugus node`."""

    def __init__(self, context: Context, consensus: Consensus, agents: FenceAgents, host: str) -> None:
        self._context = context
        self._store = context.store
        self._consensus = consensus
        self._fence = Fence(context, agents, host)

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

    async def LabelNode(self, request: node_pb2.LabelNodeRequest, context: object) -> Node:
        """Set and take away labels of a node."""

        def change(node: Node) -> Node:
            labels = {k: v for k, v in node.meta.labels.items() if k not in request.removed} | dict(request.labels)
            if faults := list(label_faults(labels)):
                raise several(faults)
            node.meta.labels.clear()
            node.meta.labels.update(labels)
            return node

        return await self._store.update(Node, request.name, change)

    async def DrainNode(self, request: node_pb2.DrainNodeRequest, context: object) -> Task:
        """Ask for a node to be emptied; it gets no new guests from now on."""
        _examine(request.parallel)

        def change(node: Node) -> None:
            node.spec.cordoned = node.spec.cordoned or not request.maintenance
            node.spec.maintenance = node.spec.maintenance or request.maintenance

        async with self._context.admission:
            short = await self._spared(request)
            return await self._ask(request, DRAIN, change, short)

    async def RestoreNode(self, request: node_pb2.RestoreNodeRequest, context: object) -> Task:
        """Let a node take guests again, and ask for those that left it for maintenance to come back."""
        _examine(request.parallel)

        def change(node: Node) -> None:
            node.spec.maintenance = node.spec.cordoned = False

        return await self._ask(request, RESTORE, change)

    async def RebootNodes(self, request: node_pb2.RebootNodesRequest, context: object) -> Task:
        """Ask for hosts to be rebooted one after another."""
        return await rolling_reboot.begin_rolling(self._context, request)

    async def _ask(
        self,
        request: node_pb2.DrainNodeRequest | node_pb2.RestoreNodeRequest,
        kind: str,
        change: Callable[[Node], None],
        short: str = "",
    ) -> Task:
        """Write a task about a node down together with what it changes in the node."""
        target = f"node/{request.name}"

        async def ask() -> Task:
            if done := await begun(self._store, kind, target, request.request_id):
                return done
            node = await self._store.require(Node, request.name)
            change(node)
            task = new_task(kind, target, str(actor()), request.request_id, request)
            txn = Txn().put(node, expect_revision=node.meta.revision)
            admission.tell(txn, target, short, task)
            return await begin(self._store, task, txn)

        return await upon_latest(ask)

    async def _spared(self, request: node_pb2.DrainNodeRequest) -> str:
        """Return what the node's leaving leaves too little room for; maintenance, after which it comes back, is what room is kept for."""
        if await begun(self._store, DRAIN, f"node/{request.name}", request.request_id):
            return ""  # what it has brought about by now is no reason to refuse its repetition
        await self._store.require(Node, request.name)
        return admission.leave(self._context, request.name, force=request.force or request.maintenance)

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
        txn.delete(FenceSecrets, request.name)
        await self._store.txn(record(txn, f"node/{request.name}", "NODE_REMOVED", text, WARNING))
        return node_pb2.RemoveNodeResponse()

    async def FenceNode(self, request: node_pb2.FenceNodeRequest, context: object) -> Task:
        """Fence a node."""
        return await self._fence.fence(request)

    async def ConfirmNodeOff(self, request: node_pb2.ConfirmNodeOffRequest, context: object) -> Node:
        """Take a person's word that a host is off."""
        return await self._fence.confirm_off(request)

    async def SetFenceDevice(self, request: node_pb2.SetFenceDeviceRequest, context: object) -> Node:
        """Add or replace a fence device."""
        return await self._fence.set_device(request)

    async def RemoveFenceDevice(self, request: node_pb2.RemoveFenceDeviceRequest, context: object) -> Node:
        """Remove a fence device."""
        return await self._fence.remove_device(request)

    async def SetFenceAfter(self, request: node_pb2.SetFenceAfterRequest, context: object) -> Node:
        """Say what becomes of the power after fencing."""
        return await self._fence.set_after(request)

    async def TestFence(self, request: node_pb2.TestFenceRequest, context: object) -> node_pb2.TestFenceResponse:
        """Test fence devices without harm."""
        return await self._fence.test(request)
