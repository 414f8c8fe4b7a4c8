"""What a manager remembers of nodes that were off before it acted."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCING, NODE_STATE_ONLINE, NODE_STATE_SUSPECT, Node, NodeState

from manager.off_nodes import OffNodes
from manager.store import Store, StoreState
from manager.store.kinds import new
from tests.unit.store.local import LocalConsensus


class World:
    """A store, a clock that is set by hand, and the memory that follows both."""

    def __init__(self) -> None:
        self.now_ns = 0
        state = StoreState(history_changes=4)
        self.store = Store(LocalConsensus(state), state)
        self.off = OffNodes(self.store, lambda: self.now_ns)

    async def become(self, *states: NodeState.ValueType, at_ns: int) -> None:
        """Change the node, at one moment that is over before anybody else looks."""
        self.now_ns = at_ns
        for state in states:
            await self._put(state)
        await self.off.caught_up(self.store.revision)

    async def _put(self, state: NodeState.ValueType) -> None:
        node = self.store.peek(Node, "n1") or new(Node, "n1")
        node.status.state = state
        await self.store.create(node) if not node.meta.revision else await self.store.update(Node, "n1", lambda _: node)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    following = asyncio.create_task(world.off.run())
    yield world
    following.cancel()


async def test_the_wait_counts_from_when_a_node_was_first_seen_off(world: World) -> None:
    await world.become(NODE_STATE_ONLINE, at_ns=1)
    assert world.off.since_ns("n1") is None
    await world.become(NODE_STATE_SUSPECT, at_ns=5)
    await world.become(NODE_STATE_FENCING, at_ns=9)
    assert world.off.since_ns("n1") == 5


async def test_a_node_that_was_online_again_is_counted_anew(world: World) -> None:
    await world.become(NODE_STATE_SUSPECT, at_ns=5)
    await world.become(NODE_STATE_ONLINE, at_ns=6)
    await world.become(NODE_STATE_SUSPECT, at_ns=7)
    assert world.off.since_ns("n1") == 7


async def test_changes_that_were_missed_count_as_if_the_node_had_been_online(world: World) -> None:
    await world.become(NODE_STATE_SUSPECT, at_ns=5)
    await world.become(*[NODE_STATE_ONLINE, NODE_STATE_SUSPECT] * 5, at_ns=30)
    assert world.off.since_ns("n1") == 30
