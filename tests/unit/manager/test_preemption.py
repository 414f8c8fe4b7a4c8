"""Preemption in a whole cluster: a recovered guest gets the room of a lesser one, which waits for room of its own."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from gugus.cluster.v1.cluster_pb2 import PREEMPTION_POLICY_LOWER_PRIORITY
from gugus.cluster.v1.cluster_pb2 import Cluster as ClusterObject
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    POWER_ON,
    Guest,
)
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.plan_pb2 import LoseNodes, WhatIfRequest

from client.sdk import Gugus
from client.tasks import check
from tests.unit.manager.cluster import Cluster, guest_spec
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage

LEASE_MS = 3000


class Slow(Hypervisor):
    """A hypervisor whose guests shut down when they are let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_stop = asyncio.Event()
        self.may_stop.set()

    async def shutdown(self, name: str) -> None:
        await self.may_stop.wait()
        await super().shutdown(name)


@dataclass
class Crowded:
    """Two nodes: dev fills most of n1, and db, which matters more, most of n2."""

    cluster: Cluster
    gugus: Gugus
    first: Slow

    def guest(self, name: str) -> Guest:
        return self.cluster.peek(Guest, name) or Guest()

    def told(self, reason: str) -> list[str]:
        return (
            [event.message for event in self.cluster.events() if event.reason == reason] if self.cluster.acting else []
        )

    def runs(self, name: str, node: str) -> bool:
        status = self.guest(name).status
        runs = status.phase == GUEST_PHASE_RUNNING and status.node == node and self.cluster.record(node, name).exists()
        return runs and not status.HasField("preempted")

    def gave_way(self) -> bool:
        status = self.guest("dev").status
        return status.phase == GUEST_PHASE_STOPPED and status.preempted.by == "db"


def _set(found: ClusterObject) -> ClusterObject:
    found.settings.node_lease_ms = LEASE_MS
    found.settings.preemption = PREEMPTION_POLICY_LOWER_PRIORITY
    return found


@pytest.fixture
async def crowded(tmp_path: Path, storage: Storage) -> AsyncIterator[Crowded]:
    async with Cluster(tmp_path) as cluster:
        cluster.start_manager()
        await cluster.eventually(lambda: cluster.peek(Node, "n1"))
        first = Slow(tmp_path / "n1")
        cluster.start_agent("n1", first)
        await cluster.online()
        await cluster.add_node("n2")
        await cluster.store.update(ClusterObject, "test", _set)
        async with cluster.client() as gugus:
            await cluster.make_image(gugus)
            nodes = cluster.store.peek_all(Node)
            await cluster.eventually(
                lambda: all("shared" in n.status.facts.pools for n in cluster.store.peek_all(Node))
            )
            room = min(node.status.facts.memory_allocatable_bytes for node in nodes)
            for name, home, share, priority in (("dev", "n1", 0.7, 0), ("db", "n2", 0.6, 10)):
                spec = guest_spec()
                spec.preferred_node, spec.memory_bytes = home, int(room * share) >> 20 << 20
                spec.ha.enabled, spec.ha.priority = bool(priority), priority
                check(await gugus.tasks.wait(await gugus.guests.create(name, spec)))
            made = Crowded(cluster, gugus, first)
            assert made.runs("dev", "n1")
            assert made.runs("db", "n2")
            yield made
            first.may_stop.set()


async def test_the_lesser_gives_way_and_comes_back_once_there_is_room(crowded: Crowded) -> None:
    cluster, gugus = crowded.cluster, crowded.gugus
    told = await gugus.plans.what_if(WhatIfRequest(lose=LoseNodes(nodes=["n2"])))
    assert [(one.guest, one.node, one.to) for one in told.gives_way] == [("dev", "n1", "db")]
    await cluster.stop_agent("n2")
    await cluster.eventually(lambda: crowded.runs("db", "n1") and crowded.gave_way())
    dev = crowded.guest("dev")
    assert dev.spec.power == POWER_ON
    assert "gave way to db (priority 10, its own is 0)" in dev.status.reason
    assert "gave way to db" in crowded.told("GUEST_PREEMPTED")[0]
    assert "dev gave way on n1" in crowded.told("GUEST_RECOVERING")[-1]
    waits = await gugus.guests.start("dev")  # a tired operator's; it waits, and takes no room
    await cluster.beats(3)
    assert crowded.gave_way()
    assert crowded.runs("db", "n1")
    assert not cluster.record("n1", "dev").exists()
    cluster.start_agent("n2")
    await cluster.online("n2")
    await cluster.eventually(lambda: crowded.runs("dev", "n2"))
    check(await gugus.tasks.wait(waits))
    assert crowded.runs("db", "n1")
    assert len(crowded.told("GUEST_PREEMPTED")) == 1
    assert "room on n2" in crowded.told("GUEST_ROOM_AGAIN")[0]


async def test_it_stays_where_it_was_when_the_room_comes_back_there(crowded: Crowded) -> None:
    cluster, gugus = crowded.cluster, crowded.gugus
    await cluster.stop_agent("n2")
    await cluster.eventually(lambda: crowded.runs("db", "n1") and crowded.gave_way())
    generation = crowded.guest("dev").meta.generation
    check(await gugus.tasks.wait(await gugus.guests.delete("db", force=True)))
    await cluster.eventually(lambda: crowded.runs("dev", "n1"))
    assert crowded.guest("dev").meta.generation == generation


async def test_nobody_starts_into_room_that_is_not_free_yet_whoever_acts(crowded: Crowded) -> None:
    cluster = crowded.cluster
    crowded.first.may_stop.clear()
    await cluster.stop_agent("n2")
    await cluster.eventually(lambda: "waits until dev on n1 is stopped" in crowded.guest("db").status.reason)
    await cluster.stop_manager("n1")
    cluster.start_manager("n1")
    await cluster.online("n1")
    await cluster.beats(2)
    assert crowded.guest("db").status.phase in (
        GUEST_PHASE_CREATING,
        GUEST_PHASE_RECOVERING,
    )  # n1's lease may have ended
    assert not cluster.record("n1", "db").exists()
    assert cluster.record("n1", "dev").exists()
    crowded.first.may_stop.set()
    await cluster.eventually(lambda: crowded.runs("db", "n1") and crowded.gave_way())
    assert len(crowded.told("GUEST_PREEMPTED")) == 1
