"""Recovery of many guests at once, of a cluster of hundreds of nodes: planned together, written down, and then left alone."""

import asyncio

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE
from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, GUEST_PHASE_RUNNING, POWER_ON, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE, Node

from manager.controllers import placing
from manager.controllers.context import Context
from manager.controllers.placing import Placing
from manager.store import Store, StoreState
from manager.store.kinds import new
from tests.unit.store.local import LocalConsensus

GIB = 1 << 30
NODES = 400
LOST = 20


def node(number: int, *, lost: bool, memory_bytes: int = 64 * GIB) -> Node:
    made = new(Node, f"node-{number:04}")
    made.status.state = NODE_STATE_FENCED if lost else NODE_STATE_ONLINE
    facts = made.status.facts
    facts.cpus, facts.memory_allocatable_bytes = 64, memory_bytes
    facts.hypervisors.add(driver="kvm", ready=True, kinds=[GUEST_KIND_VIRTUAL_MACHINE])
    return made


def guest(number: int, on: int, memory_bytes: int = 4 * GIB) -> Guest:
    made = new(Guest, f"guest-{number:04}")
    made.spec.kind, made.spec.memory_bytes, made.spec.power = GUEST_KIND_VIRTUAL_MACHINE, memory_bytes, POWER_ON
    made.spec.ha.enabled = made.status.ha_armed = True
    made.status.node, made.status.phase, made.meta.generation = f"node-{on:04}", GUEST_PHASE_RUNNING, 7
    return made


class Slow(LocalConsensus):
    """Takes a moment for each write, and knows how many were under way at once."""

    writing = most = 0

    async def propose(self, payload: bytes) -> bytes:
        self.writing += 1
        self.most = max(self.most, self.writing)
        await asyncio.sleep(0)
        self.writing -= 1
        return await super().propose(payload)


async def of(*objects: Node | Guest) -> tuple[Placing, Store, Slow]:
    state = StoreState()
    consensus = Slow(state)
    store = Store(consensus, state)
    await store.create(new(Cluster, "test"))
    for one in objects:
        await store.create(one)
    return Placing(Context(store, None, None, None)), store, consensus  # type: ignore[arg-type]  # not asked


async def test_the_guests_of_many_lost_nodes_are_given_to_the_others_in_one_pass() -> None:
    nodes = [node(number, lost=number < LOST) for number in range(NODES)]
    controller, store, consensus = await of(*nodes, *(guest(i, on=i % NODES) for i in range(3 * NODES)))
    await controller._recover()
    moved = [one for one in store.peek_all(Guest) if one.meta.generation == 8]
    assert len(moved) == 3 * LOST
    assert not {one.status.node for one in moved} & {one.meta.name for one in nodes[:LOST]}
    assert 1 < consensus.most <= placing.AT_ONCE
    placement = moved[0].status.placement
    assert placement.node == placement.verdicts[0].node == moved[0].status.node
    assert len(placement.verdicts) + placement.left_out == NODES


async def test_nothing_is_written_or_planned_again_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, store, consensus = await of(
        *(node(number, lost=number == 0, memory_bytes=GIB) for number in range(NODES)), guest(1, on=0)
    )
    for _ in range(3):
        await controller._recover()
    (waiting,) = store.peek_all(Guest)
    assert waiting.status.phase == GUEST_PHASE_RECOVERING
    assert "all 400 nodes refuse it: memory on 400" in waiting.status.reason
    written = consensus.index
    monkeypatch.setattr(placing, "recover", lambda *_, **__: pytest.fail("planned although nothing changed"))
    await controller._recover()
    assert consensus.index == written


async def test_a_guest_that_waits_is_given_a_node_as_soon_as_one_has_room() -> None:
    controller, store, _ = await of(node(0, lost=True), node(1, lost=False, memory_bytes=GIB), guest(1, on=0))
    await controller._recover()
    await controller._recover()
    assert store.peek_all(Guest)[0].status.phase == GUEST_PHASE_RECOVERING
    await store.create(node(2, lost=False))
    await controller._recover()
    assert store.peek_all(Guest)[0].status.node == "node-0002"
