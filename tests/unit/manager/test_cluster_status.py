"""Any manager tells how all are, with and without a leader; and each tells its figures to Prometheus."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from gugus.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import ClusterStatus, MemberStatus
from gugus.cluster.v1.node_pb2 import Node
from prometheus_client import CollectorRegistry

from common.errors import from_rpc_error, unimplemented
from common.identity.names import Role, any_of
from common.rpc.channel import open_channel
from manager.consensus import Consensus, Leadership, Member, PeerStatus, StorageStatus
from manager.consensus import Role as RaftRole
from manager.members import Members, figures
from manager.metrics import ManagerCollector
from tests.unit.manager.cluster import LOOK_S, PATIENCE_S, Cluster

STORAGE = StorageStatus(
    journal_bytes=4096,
    journal_segments=2,
    snapshot_bytes=700,
    snapshot_at_s=1_700_000_000.25,
    syncs=50,
    sync_seconds=0.125,
    sync_p99_s=0.0051,
    free_bytes=1 << 40,
    total_bytes=2 << 40,
    cut_bytes=9,
)
VIEW = Leadership(
    role=RaftRole.LEADER,
    term=3,
    leader="n1",
    commit_index=90,
    applied_index=89,
    last_log_index=100,
    snapshot_index=40,
    voters=(Member("n1", "h1"), Member("n2", "h2"), Member("n3", "h3")),
    peers=(PeerStatus("n2", True, 95), PeerStatus("n3", False, 0)),
    storage=STORAGE,
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, voters=3) as cluster:
        for name in cluster.voters:
            cluster.start_manager(name)
        await cluster.eventually(lambda: cluster.acting and cluster.store.peek_all(Node))
        yield cluster


async def status(cluster: Cluster, at: str) -> ClusterStatus:
    async with cluster.client(at) as gugus:
        return await gugus.cluster.status()


async def eventually(cluster: Cluster, at: str, holds: Callable[[ClusterStatus], object]) -> ClusterStatus:
    """Return the first status of which something holds."""
    async with cluster.client(at) as gugus, asyncio.timeout(PATIENCE_S):
        while not holds(seen := await gugus.cluster.status()):  # noqa: ASYNC110 (asked anew each time)
            await asyncio.sleep(LOOK_S)
        return seen


async def test_every_manager_tells_the_figures_of_all(cluster: Cluster) -> None:
    for name in cluster.voters:
        seen = await eventually(cluster, name, lambda seen: seen.healthy and all(v.match_index for v in seen.voters))
        assert (seen.answered_by, seen.leader, seen.acting) == (name, cluster.acting, cluster.acting)
        assert not seen.problems
        for voter in seen.voters:
            assert voter.connected
            assert voter.status.name == voter.name
            assert voter.status.version
            assert voter.status.applied_index > 0
            assert voter.status.term == seen.term
            assert 0 < voter.status.state_bytes < voter.status.state_quota_bytes
            assert voter.HasField("lag_entries")


async def test_whoever_is_down_does_not_answer_and_the_risk_is_told(cluster: Cluster) -> None:
    down, other = [name for name in cluster.voters if name != cluster.acting]
    await cluster.stop_manager(down)
    for at in (other, cluster.acting):
        seen = await eventually(cluster, at, lambda seen: len(seen.findings) == 2)
        assert [finding.reason for finding in seen.findings] == ["QUORUM_AT_RISK", "MEMBER_AWAY"]
        assert "2 of 3 voters are there: one more loss stops all changes." in seen.problems[0]
        silent = next(voter for voter in seen.voters if voter.name == down)
        assert not silent.HasField("status")
        assert silent.silence
        assert silent.silence in seen.findings[1].sentence
        assert not seen.healthy


async def test_the_last_one_answers_without_a_leader(cluster: Cluster) -> None:
    last = next(name for name in cluster.voters if name != cluster.acting)
    for name in cluster.voters:
        if name != last:
            await cluster.stop_manager(name)
    seen = await eventually(cluster, last, lambda seen: not seen.leader)
    assert seen.findings[0].reason == "MAJORITY_LOST"
    assert [voter.name for voter in seen.voters if voter.HasField("status")] == [last]
    assert not any(voter.HasField("lag_entries") for voter in seen.voters)


async def test_a_figure_that_is_bad_at_another_manager_is_told_by_any(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, bad = [name for name in cluster.voters if name != cluster.acting]
    leadership = Consensus.leadership

    def full(self: Consensus) -> Leadership:
        view = leadership(self)
        return replace(view, storage=replace(STORAGE, full=True)) if self._config.me == bad else view

    monkeypatch.setattr(Consensus, "leadership", full)
    seen = await status(cluster, at)
    assert ("DISK_FULL", f"node/{bad}") in [(finding.reason, finding.about) for finding in seen.findings]
    assert next(voter for voter in seen.voters if voter.name == bad).status.disk.full


async def test_a_manager_of_an_older_release_is_a_note(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Members.own

    def unknown(self: Members) -> MemberStatus:
        if self._config.name != cluster.voters[0]:
            raise unimplemented("UNKNOWN", "what is that?")
        return own(self)

    await eventually(cluster, cluster.voters[0], lambda seen: seen.healthy)
    monkeypatch.setattr(Members, "own", unknown)
    seen = await status(cluster, cluster.voters[0])
    assert [finding.reason for finding in seen.findings] == ["VERSIONS_DIFFER"]
    assert "older on n2, n3" in seen.findings[0].sentence


async def test_a_node_may_not_ask_for_figures(cluster: Cluster) -> None:
    spy = cluster.pki("spy", Role.NODE).credentials(Role.NODE)
    async with open_channel(cluster.endpoint(), spy, verify=any_of(Role.MANAGER, cluster.cluster_id)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster_pb2_grpc.ClusterServiceStub(channel).GetMember(cluster_pb2.GetMemberRequest())
    assert from_rpc_error(caught.value).reason == "ROLE_NOT_ALLOWED"


def test_consensus_figures_become_the_apis() -> None:
    told = figures(VIEW)
    assert (told.term, told.last_log_index, told.snapshot_index, told.leader) == (3, 100, 40, "n1")
    assert (told.disk.sync_us, told.disk.sync_p99_us, told.disk.cut_bytes) == (125_000, 5_100, 9)
    assert told.disk.snapshot_at.ToMilliseconds() == 1_700_000_000_250
    assert [(peer.name, peer.connected, peer.match_index) for peer in told.peers] == [
        ("n2", True, 95),
        ("n3", False, 0),
    ]
    assert not figures(Leadership()).disk.HasField("snapshot_at")


class _Told:
    """Stands for whoever is asked by a collector: consensus, the store, the lease."""

    revision, epoch, valid, size_bytes = 12, 4, False, 5_000

    def leadership(self) -> Leadership:
        return VIEW


def test_each_figure_is_a_metric_in_base_units() -> None:
    told: Any = _Told()
    registry = CollectorRegistry()
    registry.register(ManagerCollector(told, told, told, told, told))
    expected = {
        "gugus_raft_term": 3,
        "gugus_raft_commit_index": 90,
        "gugus_raft_applied_index": 89,
        "gugus_raft_last_log_index": 100,
        "gugus_raft_snapshot_index": 40,
        "gugus_raft_is_leader": 1,
        "gugus_raft_has_leader": 1,
        "gugus_raft_stopped": 0,
        "gugus_raft_voters": 3,
        "gugus_raft_journal_bytes": 4096,
        "gugus_raft_journal_segments": 2,
        "gugus_raft_journal_cut_bytes": 9,
        "gugus_raft_snapshot_bytes": 700,
        "gugus_raft_snapshot_timestamp_seconds": 1_700_000_000.25,
        "gugus_raft_sync_p99_seconds": 0.0051,
        "gugus_raft_sync_seconds_count": 50,
        "gugus_raft_sync_seconds_sum": 0.125,
        "gugus_raft_disk_free_bytes": 1 << 40,
        "gugus_raft_disk_size_bytes": 2 << 40,
        "gugus_raft_disk_full": 0,
        "gugus_manager_acting": 0,
        "gugus_manager_epoch": 4,
        "gugus_store_revision": 12,
        "gugus_store_bytes": 5_000,
        "gugus_raft_level": 1,
    }
    assert {name: registry.get_sample_value(name) for name in expected} == expected
    lag = {peer: registry.get_sample_value("gugus_raft_peer_lag_entries", {"peer": peer}) for peer in ("n2", "n3")}
    assert lag == {"n2": 5, "n3": None}, "of who was not heard yet no lag is known"
    assert registry.get_sample_value("gugus_raft_peer_connected", {"peer": "n3"}) == 0


def test_every_metric_of_managers_is_documented() -> None:
    told: Any = _Told()
    names = {metric.name for metric in ManagerCollector(told, told, told, told, told).collect()}
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in page and f"`{name}_count`" not in page] == []
