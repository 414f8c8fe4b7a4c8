"""What the acting manager remembers of agents' heartbeats. Kept in memory only: it changes too often for the store.

Invariant: `answered` is recorded, without an await in between, before the answer leaves; so for every lease an agent may hold, the
manager knows a moment that lies after the agent sent the beat.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gugus.agent.v1.node_pb2 import Facts
from gugus.cluster.v1.heartbeat_pb2 import GuestReport, HeartbeatRequest


@dataclass(slots=True)
class NodeBeats:
    """Beats of one node. Times are nanoseconds of this manager (`Acting.now_ns`); None means not since it took over."""

    heard_ns: int | None = None
    answered_ns: int | None = None
    beat: HeartbeatRequest | None = None
    facts: Facts | None = None
    guests: Mapping[str, GuestReport] = field(default_factory=dict)


class Beats:
    """Beats of all nodes since this manager began to act, and the moment it did."""

    def __init__(self) -> None:
        self.since_ns = 0
        self._nodes: dict[str, NodeBeats] = {}
        self._listeners: list[Callable[[str], None]] = []

    def start(self, now_ns: int) -> None:
        """Forget everything, listeners too: this manager begins to act now, and its predecessor may have answered any node until now."""
        self.since_ns = now_ns
        self._nodes.clear()
        self._listeners.clear()

    def listen(self, callback: Callable[[str], None]) -> None:
        """Call back with a node's name after a beat that told something new."""
        self._listeners.append(callback)

    def of(self, node: str) -> NodeBeats:
        """Return what is known of a node; empty when it was not heard of."""
        return self._nodes.get(node) or NodeBeats()

    def nodes(self) -> Mapping[str, NodeBeats]:
        """Return all that is known, by node. Not to be changed."""
        return self._nodes

    def heard(self, beat: HeartbeatRequest, now_ns: int) -> None:
        """Take in a beat, answered or not."""
        entry = self._nodes.setdefault(beat.node, NodeBeats())
        news = entry.beat is None or _tells(entry.beat) != _tells(beat)
        entry.heard_ns = now_ns
        entry.beat = beat
        entry.guests = {guest.name: guest for guest in beat.guests}
        if beat.HasField("facts"):
            entry.facts = beat.facts
        if news:
            for callback in self._listeners:
                callback(beat.node)

    def answered(self, node: str, now_ns: int) -> None:
        """Record that a beat is about to be answered."""
        self._nodes[node].answered_ns = now_ns

    def forget(self, node: str) -> None:
        """Forget a node that was removed."""
        self._nodes.pop(node, None)


def _tells(beat: HeartbeatRequest) -> tuple[object, ...]:
    """Return what of a beat controllers react to; use of CPU and memory changes always and matters to none."""
    guests = tuple((g.name, g.state, g.generation, g.reason, tuple(g.addresses), g.mode) for g in beat.guests)
    return (beat.boot_id, beat.epoch, beat.lapse.number, guests, beat.HasField("facts"), beat.exit)
