"""The manager's metrics, collected from the local replica at each scrape; docs/metrics.md describes them.

Invariant: a scrape reads memory only; it asks neither consensus nor an agent.
"""

import importlib.metadata
from collections.abc import Iterable

from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.event_pb2 import Severity
from gugus.cluster.v1.guest_pb2 import Guest, GuestPhase
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node, NodeState
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from manager.acting import Acting
from manager.beats import Beats
from manager.consensus import Consensus, Leadership, Role, StorageStatus
from manager.store import Store, StoreState
from manager.store.rules import QUOTA_BYTES


class ManagerCollector(Collector):
    """Everything that a manager knows of the cluster. Nodes and guests are told by the acting manager only, so that each counts once."""

    def __init__(self, consensus: Consensus, store: Store, state: StoreState, acting: Acting, beats: Beats) -> None:
        self._consensus = consensus
        self._store = store
        self._state = state
        self._acting = acting
        self._beats = beats
        self._version = importlib.metadata.version("gugus")

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they are now."""
        view = self._consensus.leadership()
        yield from _member(view)
        yield from _disk(view.storage)
        yield from _peers(view)
        acting = self._acting.valid
        yield from _gauges(
            ("gugus_manager_acting", "1 when this manager acts for the cluster.", acting),
            ("gugus_manager_epoch", "Epoch of the acting manager.", self._acting.epoch),
            ("gugus_store_revision", "Revision of the local replica.", self._store.revision),
            ("gugus_store_bytes", "What the objects count towards the quota.", self._state.size_bytes),
            ("gugus_store_quota_bytes", "Size at which users' new objects are refused.", QUOTA_BYTES),
        )
        info = GaugeMetricFamily("gugus_manager_info", "1; its label is the release.", labels=["version"])
        info.add_metric([self._version], 1.0)
        yield info
        if acting:
            yield self._alarms()
            yield from self._nodes()
            yield self._guests()

    def _alarms(self) -> Metric:
        alarm = GaugeMetricFamily(
            "gugus_alarm", "1 for what an event told to be wrong and goes on.", labels=["reason", "about", "severity"]
        )
        for cluster in self._store.peek_all(Cluster):
            for finding in cluster.alarms:
                severity = Severity.Name(finding.severity).removeprefix("SEVERITY_").lower()
                alarm.add_metric([finding.reason, finding.about, severity], 1.0)
        return alarm

    def _nodes(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("gugus_node_up", "1 when the node holds its lease.", labels=["node"])
        state = GaugeMetricFamily("gugus_node_state", "1 for the state that a node is in.", labels=["node", "state"])
        age = GaugeMetricFamily("gugus_node_last_beat_seconds", "Seconds since its last beat.", labels=["node"])
        now_ns = self._acting.now_ns()
        for node in self._store.peek_all(Node):
            name = node.meta.name
            up.add_metric([name], float(node.status.state == NODE_STATE_ONLINE))
            state.add_metric([name, NodeState.Name(node.status.state).removeprefix("NODE_STATE_").lower()], 1.0)
            heard_ns = self._beats.of(name).heard_ns
            if heard_ns is not None:
                age.add_metric([name], (now_ns - heard_ns) / 1e9)
        yield from (up, state, age)

    def _guests(self) -> Metric:
        phase = GaugeMetricFamily(
            "gugus_guest_phase", "1 for the phase that a guest is in.", labels=["guest", "node", "phase"]
        )
        for guest in self._store.peek_all(Guest):
            word = GuestPhase.Name(guest.status.phase).removeprefix("GUEST_PHASE_").lower()
            phase.add_metric([guest.meta.name, guest.status.node, word], 1.0)
        return phase


def _member(view: Leadership) -> Iterable[Metric]:
    return _gauges(
        ("gugus_raft_term", "Raft term.", view.term),
        ("gugus_raft_commit_index", "Last log index known to be committed.", view.commit_index),
        ("gugus_raft_applied_index", "Last log index applied to the store.", view.applied_index),
        ("gugus_raft_last_log_index", "Last index of the log.", view.last_log_index),
        ("gugus_raft_snapshot_index", "Last log index that the newest snapshot covers.", view.snapshot_index),
        ("gugus_raft_is_leader", "1 when this member leads.", view.role is Role.LEADER),
        ("gugus_raft_has_leader", "1 when this member leads or knows a leader.", view.leader is not None),
        ("gugus_raft_stopped", "1 when this member stopped taking part by itself.", view.failure is not None),
        ("gugus_raft_voters", "Number of voters.", len(view.voters)),
        ("gugus_raft_level", "Which rules the managers apply.", view.level),
    )


def _disk(storage: StorageStatus) -> Iterable[Metric]:
    yield from _gauges(
        ("gugus_raft_journal_bytes", "Size of the journal.", storage.journal_bytes),
        ("gugus_raft_journal_segments", "Files that the journal consists of.", storage.journal_segments),
        ("gugus_raft_journal_cut_bytes", "Torn end that the last start cut off.", storage.cut_bytes),
        ("gugus_raft_snapshot_bytes", "Size of the newest snapshot.", storage.snapshot_bytes),
        ("gugus_raft_sync_p99_seconds", "99th percentile of the last 1,000 syncs.", storage.sync_p99_s),
        ("gugus_raft_disk_free_bytes", "Room on the file system of the state.", storage.free_bytes),
        ("gugus_raft_disk_size_bytes", "Size of the file system of the state.", storage.total_bytes),
        ("gugus_raft_disk_full", "1 when this member accepts no writes for want of room.", storage.full),
    )
    if storage.snapshot_at_s:
        text = "When the newest snapshot was made or received, Unix time."
        yield GaugeMetricFamily("gugus_raft_snapshot_timestamp_seconds", text, value=storage.snapshot_at_s)
    yield SummaryMetricFamily(
        "gugus_raft_sync_seconds",
        "Duration of the syncs of the journal.",
        count_value=storage.syncs,
        sum_value=storage.sync_seconds,
    )


def _peers(view: Leadership) -> Iterable[Metric]:
    connected = GaugeMetricFamily("gugus_raft_peer_connected", "1 when messages reach that voter.", labels=["peer"])
    match = GaugeMetricFamily(
        "gugus_raft_peer_match_index", "Last log index known to be stored there.", labels=["peer"]
    )
    lag = GaugeMetricFamily("gugus_raft_peer_lag_entries", "Entries of the log that it lacks.", labels=["peer"])
    for peer in view.peers:
        connected.add_metric([peer.name], float(peer.connected))
        if view.role is Role.LEADER and peer.match_index:
            match.add_metric([peer.name], peer.match_index)
            lag.add_metric([peer.name], view.last_log_index - peer.match_index)
    return connected, match, lag


def _gauges(*each: tuple[str, str, float]) -> Iterable[Metric]:
    for name, text, value in each:
        yield GaugeMetricFamily(name, text, value=float(value))
