"""What controllers share: the state, the right to act, the way to agents, and what agents last said."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import Message
from gugus.cluster.v1.cluster_pb2 import Cluster, ClusterSettings
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common.errors import precondition
from common.leases import DEFAULT_NODE_LEASE_MS, LeaseTimes
from manager.acting import Acting
from manager.agents import Agent, Agents, told
from manager.beats import Beats
from manager.outlook import Outlook
from manager.scheduler.load import Load, Loads
from manager.scheduler.settings import planner_settings
from manager.scheduler.spare_room import SpareRoom
from manager.scheduler.views import cpus_of, memory_of
from manager.store import Store
from planner.settings import Settings

T = TypeVar("T")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Context:
    """Everything a controller needs of its surroundings."""

    store: Store
    acting: Acting
    agents: Agents
    beats: Beats
    admission: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever makes a guest, or deletes what guests are made of: what was checked stays true until it is committed."""
    room: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever gives a guest a node, from its last look at where the others are until that is committed: each counts, for rules,
    too, what the one before it gave away. Taken after `admission`."""
    spare: SpareRoom = field(default_factory=SpareRoom)
    """What was found of the room that is kept to survive a loss (`manager.controllers.spare`)."""
    loads: Loads = field(default_factory=Loads)
    """What guests use, learnt from beats since this manager took over."""
    outlook: Outlook = field(default_factory=Outlook)
    """What the acting manager thinks of the nodes' evenness."""

    async def tell(self, node: Node, call: Callable[[Agent, int], Awaitable[T]]) -> T:
        """Call a node's agent with the epoch to be named.

        The node is looked at as it is now, and no await lies between that and the reading of the epoch: what was decided while the node
        was another incarnation must not reach it in the epoch of this one (`manager.ha.node_machine`).

        Raises GugusError NOT_ACTING when this manager's lease has ended, NODE_NOT_ONLINE when the node holds no lease, and what the
        agent answers.
        """
        if not self.acting.valid:
            raise precondition(
                "NOT_ACTING",
                "this manager does not act any more; the one that does will go on.",
                remedy="Try again in a few seconds.",
            )
        now = self.store.peek(Node, node.meta.name)
        if now is None or now.status.state != NODE_STATE_ONLINE:
            why = now.status.reason if now else "it was removed"
            raise precondition(
                "NODE_NOT_ONLINE",
                f"node {node.meta.name} is not online: {why}.",
                remedy="`gugus node list` shows how the nodes are; look at that host and its gugus-agent.",
            )
        agent = self.agents.of(now)
        return await told(node.meta.name, lambda: call(agent, self.acting.epoch))

    def online_nodes(self) -> list[Node]:
        """Return the nodes that hold their lease, by name."""
        return [node for node in self.store.peek_all(Node) if node.status.state == NODE_STATE_ONLINE]

    def ha_disarmed(self) -> bool:
        """Return whether HA is switched off for the whole cluster."""
        return any(cluster.ha.disarmed for cluster in self.store.peek_all(Cluster))

    def lease_times(self) -> LeaseTimes:
        """Return the length of node leases as the cluster is set."""
        return LeaseTimes(lease_ms=self.settings().node_lease_ms or DEFAULT_NODE_LEASE_MS)

    def load_of(self, guest: Guest) -> Load:
        """Return what a guest uses of what it has; all of it as long as that is not known."""
        return self.loads.of(guest, cpus_of(guest.spec), memory_of(guest.spec))

    def former_nodes(self) -> list[str]:
        """Return the nodes from before a recovery of the cluster whose guests were not taken in yet (`manager.ha.inherited`)."""
        return [node.meta.name for node in self.store.peek_all(Node) if node.status.former]

    def generation_floor(self) -> int:
        """Return the generation that all grants since the last recovery are above; 0 when there was none."""
        clusters = self.store.peek_all(Cluster)
        return clusters[0].generation_floor if clusters else 0

    def settings(self) -> ClusterSettings:
        """Return the cluster's settings; what is 0 or empty has its default."""
        clusters = self.store.peek_all(Cluster)
        return clusters[0].settings if clusters else ClusterSettings()

    def planner_settings(self) -> Settings:
        """Return the cluster's settings as the planner reads them."""
        return planner_settings(self.settings())


def with_epoch(request: M, epoch: int) -> M:
    """Return a request with the epoch that its call is to name."""
    request.epoch = epoch  # type: ignore[attr-defined]
    return request


TRANSIENT_REASONS = frozenset(
    {
        "NOT_ACTING",
        "NODE_NOT_ONLINE",
        "STALE_EPOCH",
        "LEASE_EXPIRED",
        "CONFLICT",
        "CALL_STUCK",
        "POOL_BUSY",
        "RPC_UNAVAILABLE",
        "RPC_DEADLINE_EXCEEDED",
        "RPC_CANCELLED",
    }
)
"""Errors that say nothing of the request: the turn is simply tried again, and no task fails by them."""
