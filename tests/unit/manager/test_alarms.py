"""Alarms of the managers are events: one when something begins, one when it is over, whoever acts meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from gugus.cluster.v1.cluster_pb2 import Cluster as ClusterObject
from gugus.cluster.v1.event_pb2 import SEVERITY_ERROR, SEVERITY_INFO, SEVERITY_WARNING
from gugus.cluster.v1.node_pb2 import Node

from manager import damping
from manager.consensus import Consensus, Leadership, StorageStatus
from manager.controllers import alarms
from tests.unit.manager.cluster import Cluster


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "PERIOD_S", 0.05)
    monkeypatch.setattr(damping, "HOLD_S", 0.3)
    monkeypatch.setattr(damping, "RETURN_S", 0.3)
    monkeypatch.setattr(damping, "QUIET_S", 0.6)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, voters=3) as cluster:
        for name in cluster.voters:
            cluster.start_manager(name)
        await cluster.eventually(lambda: cluster.acting and cluster.store.peek_all(Node))
        yield cluster


def told(cluster: Cluster, *reasons: str) -> list[tuple[str, str]]:
    """Return reason and object of the events with these reasons and their ends, oldest first."""
    if not cluster.acting:
        return []
    wanted = {*reasons, *(f"{reason}_ENDED" for reason in reasons)}
    return [(event.reason, event.about) for event in cluster.events() if event.reason in wanted]


def opened(cluster: Cluster) -> list[str]:
    stored = cluster.peek(ClusterObject, "test")
    return [alarm.reason for alarm in stored.alarms] if stored else []


async def test_a_lost_voter_is_told_once_and_its_return_once(cluster: Cluster) -> None:
    down = next(name for name in cluster.voters if name != cluster.acting)
    await cluster.stop_manager(down)
    await cluster.eventually(lambda: set(opened(cluster)) == {"QUORUM_AT_RISK", "MEMBER_AWAY"})
    event = next(event for event in cluster.events() if event.reason == "QUORUM_AT_RISK")
    assert (event.severity, event.about) == (SEVERITY_WARNING, "cluster/test")
    assert event.message.startswith("2 of 3 voters are there: one more loss stops all changes. Bring ")
    async with cluster.client(cluster.acting) as gugus:
        status = await gugus.cluster.status()
    assert all(finding.since.seconds for finding in status.findings)
    cluster.start_manager(down)
    await cluster.eventually(lambda: cluster.acting and not opened(cluster))
    about = [("QUORUM_AT_RISK", "cluster/test"), ("QUORUM_AT_RISK_ENDED", "cluster/test")]
    assert told(cluster, "QUORUM_AT_RISK") == about
    assert told(cluster, "MEMBER_AWAY") == [("MEMBER_AWAY", f"node/{down}"), ("MEMBER_AWAY_ENDED", f"node/{down}")]
    ended = next(event for event in cluster.events() if event.reason == "QUORUM_AT_RISK_ENDED")
    assert ended.severity == SEVERITY_INFO
    assert ended.message.startswith("Over after ")


async def test_an_alarm_outlives_the_manager_that_told_of_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = next(name for name in cluster.voters if name != cluster.acting)
    p99_s = [0.2]
    leadership = Consensus.leadership

    def slowed(self: Consensus) -> Leadership:
        view = leadership(self)
        mine = StorageStatus(syncs=1_000, sync_p99_s=p99_s[0]) if self._config.me == slow else view.storage
        return replace(view, storage=replace(mine, total_bytes=0))

    monkeypatch.setattr(Consensus, "leadership", slowed)
    await cluster.eventually(lambda: opened(cluster) == ["DISK_SLOW"])
    first = cluster.acting
    async with cluster.client(*cluster.voters) as gugus:
        await gugus.cluster.transfer()
    assert cluster.acting != first
    await asyncio.sleep(1.0)  # many looks of the next one
    assert told(cluster, "DISK_SLOW") == [("DISK_SLOW", f"node/{slow}")]
    p99_s[0] = 0.7
    await cluster.eventually(lambda: len(told(cluster, "DISK_SLOW")) == 2)
    assert cluster.events()[-1].severity == SEVERITY_ERROR
    p99_s[0] = 0.001
    await cluster.eventually(lambda: not opened(cluster))
    assert [reason for reason, _ in told(cluster, "DISK_SLOW")] == ["DISK_SLOW", "DISK_SLOW", "DISK_SLOW_ENDED"]


async def test_what_flaps_floods_nobody(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    leadership = Consensus.leadership

    def flapping(self: Consensus) -> Leadership:
        p99_s = 0.2 if time.monotonic() % 0.4 < 0.2 else 0.0
        return replace(leadership(self), storage=StorageStatus(syncs=1_000, sync_p99_s=p99_s))

    monkeypatch.setattr(Consensus, "leadership", flapping)
    await cluster.eventually(lambda: len(opened(cluster)) == len(cluster.voters))
    await asyncio.sleep(5 * damping.QUIET_S)
    assert [reason for reason, _ in told(cluster, "DISK_SLOW")] == ["DISK_SLOW"] * len(cluster.voters)
