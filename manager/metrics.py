"""The manager's metrics, collected from the local replica at each scrape; docs/metrics.md describes them.

Invariant: a scrape reads memory only; it asks neither consensus nor an agent.
"""

from collections.abc import Iterable

from gugus.cluster.v1.guest_pb2 import Guest, GuestPhase
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node, NodeState
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from manager.acting import Acting
from manager.beats import Beats
from manager.consensus import Consensus, Role
from manager.store import Store


class ManagerCollector(Collector):
    """Everything that a manager knows of the cluster. Nodes and guests are told by the acting manager only, so that each counts once."""

    def __init__(self, consensus: Consensus, store: Store, acting: Acting, beats: Beats) -> None:
        self._consensus = consensus
        self._store = store
        self._acting = acting
        self._beats = beats

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they are now."""
        yield from self._raft()
        acting = self._acting.valid
        yield GaugeMetricFamily(
            "gugus_manager_acting", "1 when this manager acts for the cluster.", value=float(acting)
        )
        yield GaugeMetricFamily("gugus_manager_epoch", "Epoch of the acting manager.", value=self._acting.epoch)
        yield GaugeMetricFamily("gugus_store_revision", "Revision of the local replica.", value=self._store.revision)
        if acting:
            yield from self._nodes()
            yield self._guests()

    def _raft(self) -> Iterable[Metric]:
        view = self._consensus.leadership()
        for name, text, value in (
            ("gugus_raft_term", "Raft term.", view.term),
            ("gugus_raft_commit_index", "Last log index known to be committed.", view.commit_index),
            ("gugus_raft_applied_index", "Last log index applied to the store.", view.applied_index),
            ("gugus_raft_is_leader", "1 when this member leads.", float(view.role is Role.LEADER)),
            ("gugus_raft_voters", "Number of voters.", len(view.voters)),
        ):
            yield GaugeMetricFamily(name, text, value=value)

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
