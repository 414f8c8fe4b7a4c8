"""Makes every online node have the pools and networks it is to have, and keeps their state as the nodes tell it.

One controller serves both kinds, for what differs between them is only which call ensures and which removes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from gugus.agent.v1 import network_pb2 as agent_network
from gugus.agent.v1 import volume_pb2 as agent_volume
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.pool_pb2 import Pool

from common.errors import GugusError
from manager.controllers.context import TRANSIENT_REASONS, Context
from manager.controllers.queue import WorkQueue
from manager.events import ERROR, record
from manager.store import Change, Conflict, Txn

K = TypeVar("K", Pool, Network)
Found = TypeVar("Found", agent_volume.Pool, agent_network.Network)

SLOTS = 8
"""Pools (or networks) worked on at once on one node."""

REFRESH_S = 15.0
"""Each node is asked again so often: it repairs what drifted, and tells how much room there is."""

RETRY_S = 5.0

CHANGE_TRIES = 8


class Spread(ABC, Generic[K, Found]):
    """Objects of one kind on all nodes that are to have them. Keys of the queue are "object@node"."""

    def __init__(self, context: Context, kind: type[K], word: str) -> None:
        self._context = context
        self._kind: type[K] = kind
        self._word = word
        self._queue = WorkQueue(word, self._turn, slots=SLOTS, lane=_node_of)

    def changed(self, change: Change) -> None:
        """Take in a change of an object of the kind or of a node."""
        if change.kind == "node":
            for obj in self._context.store.peek_all(self._kind):
                self._queue.wake(f"{obj.meta.name}@{change.name}")
        elif change.kind == self._word:
            for node in self._context.store.peek_all(Node):
                self._queue.wake(f"{change.name}@{node.meta.name}")

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run()

    async def _turn(self, key: str) -> float | None:
        name, _, node_name = key.partition("@")
        obj = self._context.store.peek(self._kind, name)
        node = self._context.store.peek(Node, node_name)
        if obj is None:
            return None
        if node is None:
            await self._forget_node(name, node_name)
            return None
        if node.status.state != NODE_STATE_ONLINE:
            return None
        if obj.meta.deleting:
            return await self._remove_from(obj, node)
        if node.spec.witness or (obj.nodes and node_name not in obj.nodes):
            return None
        try:
            found = await self.ensure(obj, node)
        except GugusError as error:
            if error.reason in TRANSIENT_REASONS:
                raise
            found = self.failure(obj, str(error))
        now = self._context.store.peek(self._kind, name)
        if now is None or now.meta.deleting:  # meanwhile: nobody else knows that this node has it
            await self.remove(obj, node)
            await self._forget_node(name, node_name)
            return None
        await self._note(name, node_name, found)
        return REFRESH_S if found.ready else RETRY_S

    async def _note(self, name: str, node_name: str, found: Found) -> None:
        """Store what a node told, when it matters: room changes all the time and is stored only when much of it did."""

        def noted(obj: K) -> Txn | None:
            known: Any = obj.status.nodes.get(node_name)
            if obj.meta.deleting or (known is not None and self.alike(known, found)):
                return None
            fresh = not found.ready and (known is None or known.ready or known.reason != found.reason)
            entry: Any = obj.status.nodes[node_name]
            entry.CopyFrom(found)
            txn = Txn()
            if fresh:
                message = f"on {node_name}: {found.reason}"
                record(txn, f"{self._word}/{name}", f"{self._word.upper()}_NOT_READY", message, ERROR)
            return txn.put(obj, expect_revision=obj.meta.revision)

        await self._change(name, noted)

    async def _remove_from(self, obj: K, node: Node) -> float | None:
        """Remove a deleted object from one node; the last one forgets the object itself.

        A node that is away keeps its copy of what is no more; it is told when it comes back only if the object still exists, so an
        object waits for all its nodes.
        """
        if node.meta.name in obj.status.nodes:
            await self.remove(obj, node)
        await self._forget_node(obj.meta.name, node.meta.name)
        return None

    async def _forget_node(self, name: str, node_name: str) -> None:
        """Strike a node that has it no more, or is no more, from the state of an object; a deleted one without nodes is gone."""

        def struck(obj: K) -> Txn | None:
            had = node_name in obj.status.nodes
            if had:
                del obj.status.nodes[node_name]
            if obj.meta.deleting and not obj.status.nodes:
                return Txn().delete(self._kind, name, expect_revision=obj.meta.revision)
            return Txn().put(obj, expect_revision=obj.meta.revision) if had else None

        await self._change(name, struck)

    async def _change(self, name: str, change: Callable[[K], Txn | None]) -> None:
        """Commit what `change` makes of an object; all its nodes write to it, so a lost race is run again at once."""
        for _ in range(CHANGE_TRIES):
            obj = self._context.store.peek(self._kind, name)
            txn = None if obj is None else change(obj)
            if txn is None:
                return
            try:
                await self._context.store.txn(txn)
            except Conflict:
                await self._context.store.get(self._kind, name)  # a read barrier: the next look sees what won
            else:
                return
        raise Conflict([f"{self._word}/{name}"])

    @abstractmethod
    async def ensure(self, obj: K, node: Node) -> Found:
        """Ask a node to have it, and return how it is there."""

    @abstractmethod
    async def remove(self, obj: K, node: Node) -> None:
        """Ask a node to have it no more."""

    @abstractmethod
    def failure(self, obj: K, reason: str) -> Found:
        """Return the state for a node that refuses."""

    @abstractmethod
    def alike(self, known: Found, found: Found) -> bool:
        """Return whether what a node told is not worth storing."""


def _node_of(key: str) -> str:
    return key.partition("@")[2]


class Pools(Spread[Pool, agent_volume.Pool]):
    """Pools on all nodes."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, Pool, "pool")

    async def ensure(self, obj: Pool, node: Node) -> agent_volume.Pool:
        """Ask a node to have the pool."""
        return await self._context.tell(
            node,
            lambda agent, epoch: agent.volumes.EnsurePool(agent_volume.EnsurePoolRequest(epoch=epoch, spec=obj.spec)),
        )

    async def remove(self, obj: Pool, node: Node) -> None:
        """Ask a node to forget the pool."""
        await self._context.tell(
            node,
            lambda agent, epoch: agent.volumes.ForgetPool(
                agent_volume.ForgetPoolRequest(epoch=epoch, name=obj.meta.name)
            ),
        )

    def failure(self, obj: Pool, reason: str) -> agent_volume.Pool:
        """Return the state of a pool that a node refused."""
        return agent_volume.Pool(spec=obj.spec, ready=False, reason=reason)

    def alike(self, known: agent_volume.Pool, found: agent_volume.Pool) -> bool:
        """Room is worth a write when a hundredth of the pool came or went."""
        grain = max(found.capacity_bytes // 100, 1)
        return (
            (known.ready, known.reason, known.capacity_bytes, known.spec, known.writer_proof)
            == (found.ready, found.reason, found.capacity_bytes, found.spec, found.writer_proof)
            and abs(known.available_bytes - found.available_bytes) < grain
        )  # fmt: skip


class Networks(Spread[Network, agent_network.Network]):
    """Networks on all nodes."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, Network, "network")

    async def ensure(self, obj: Network, node: Node) -> agent_network.Network:
        """Ask a node to have the network."""
        return await self._context.tell(
            node,
            lambda agent, epoch: agent.networks.EnsureNetwork(
                agent_network.EnsureNetworkRequest(epoch=epoch, spec=obj.spec)
            ),
        )

    async def remove(self, obj: Network, node: Node) -> None:
        """Ask a node to remove the network."""
        await self._context.tell(
            node,
            lambda agent, epoch: agent.networks.DeleteNetwork(
                agent_network.DeleteNetworkRequest(epoch=epoch, name=obj.meta.name)
            ),
        )

    def failure(self, obj: Network, reason: str) -> agent_network.Network:
        """Return the state of a network that a node refused."""
        return agent_network.Network(spec=obj.spec, ready=False, reason=reason)

    def alike(self, known: agent_network.Network, found: agent_network.Network) -> bool:
        """Ports come and go with guests and are not stored."""
        return (known.ready, known.reason, known.spec) == (found.ready, found.reason, found.spec)
