"""Hosts that go down in order, in the simulation: the real `manager.ha.departure` says what becomes of them and their guests.

The product's shells are manager.controllers.nodes, which writes departures down, and manager.controllers.departures, for "migrate".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp
from gugus.cluster.v1.cluster_pb2 import SHUTDOWN_POLICY_CONDITIONAL, SHUTDOWN_POLICY_MIGRATE, ShutdownPolicy
from gugus.cluster.v1.heartbeat_pb2 import HeartbeatRequest
from gugus.cluster.v1.node_pb2 import HOST_EXIT_UNSPECIFIED, NODE_STATE_ONLINE, HostExit, Node

from manager.ha import departure
from simulator.clockwork import MS
from simulator.state import Course, Drain, Object, Txn, copy_of, node_key

if TYPE_CHECKING:
    from simulator.manager import Manager


class Departures:
    """One reign's knowledge of hosts that go down."""

    def __init__(self, manager: Manager) -> None:
        self.manager, self.world = manager, manager.world
        self._beats: dict[str, HeartbeatRequest] = {}
        self._open: set[str] = set()
        self._looked = -1

    def heard(self, name: str, boot_id: str, exit_: HostExit.ValueType) -> None:
        """Take in whether a host says that it goes down, and write that down."""
        known = self._beats.get(name)
        if known is None or (known.boot_id, known.exit) != (boot_id, exit_):
            self._beats[name] = HeartbeatRequest(node=name, boot_id=boot_id, exit=exit_)
            self._looked = -1
            self.manager.nudge()

    def goes_down(self, name: str) -> bool:
        """Return whether the newest beat of a node says that its host goes down."""
        return name in self._beats and self._beats[name].exit != HOST_EXIT_UNSPECIFIED

    def order(self, name: str) -> ShutdownPolicy.ValueType:
        """Return what a host that goes down is to do by now."""
        node = self.manager.replica.nodes[name]
        if not node.status.HasField("departure") or name not in self._beats:
            return ShutdownPolicy.SHUTDOWN_POLICY_UNSPECIFIED
        return departure.answer(node, self._beats[name])

    def tick(self) -> None:
        """Write down who leaves, and have nodes emptied and filled again, if anything has changed."""
        replica = self.manager.replica
        if self._looked == replica.changes:
            return
        self._looked = replica.changes
        for name, node in replica.nodes.items():
            if name not in self._open:
                self._look(name, node)

    def _look(self, name: str, stored: Node) -> None:
        node, beat = copy_of(stored), self._beats.get(name)
        if departure.called_off(node, beat):
            departure.settle_return(node)
            self._put(node, {}, "does not go down after all")
            return
        begun = departure.begun(node, beat, self.manager.replica.cluster.settings)
        if begun is not None:
            begun.at.CopyFrom(now_of(self.world.queue.now))
            node.status.departure.CopyFrom(begun)
            self._put(node, {}, f"leaves: {departure.words(begun)}")
        elif node.status.HasField("departure"):
            self._carry_on(node)

    def _carry_on(self, node: Node) -> None:
        """Empty a node under the policy "migrate" before its host goes down, and bring its guests back after."""
        name, leave = node.meta.name, node.status.departure
        drain = self.manager.replica.drains.get(leave.task)
        if departure.is_back(node):
            back = Drain(f"{leave.task}-back", name, back=True)
            node.status.ClearField("departure")
            wanted_empty = node.spec.maintenance or node.spec.cordoned
            self._put(node, {} if wanted_empty else {f"drain/{back.name}": back}, "is back")
        elif leave.policy != SHUTDOWN_POLICY_MIGRATE or not departure.leaving(node):
            return
        elif node.status.state == NODE_STATE_ONLINE and not leave.task:
            begun = Drain(f"leaving-{leave.boot_id}", name)
            leave.task = begun.name
            self._put(node, {f"drain/{begun.name}": begun}, "is emptied before it goes down")
        elif node.status.state == NODE_STATE_ONLINE and (
            drain is None or drain.course is not Course.OPEN or self._spent(node)
        ):
            leave.policy = departure.resolved(SHUTDOWN_POLICY_CONDITIONAL, leave.exit)
            self._put(node, {}, f"goes down now: {departure.words(leave)}")

    def _spent(self, node: Node) -> bool:
        began_ns = node.status.departure.at.ToNanoseconds()
        return self.world.queue.now - began_ns > departure.MOVE_BUDGET_MS * MS

    def _put(self, node: Node, puts: dict[str, Object], says: str) -> None:
        name, key = node.meta.name, node_key(node.meta.name)
        self._open.add(name)

        def done(ok: bool) -> None:
            self._open.discard(name)
            self._looked = -1
            self.manager.nudge()

        txn = Txn({key: self.manager.replica.revision_of(key)}, {key: node, **puts}, tells=((key, says),))
        self.manager.put(txn, done)


def now_of(at_ns: int) -> Timestamp:
    """Return a moment of the world's clock as the wall clock that everybody shares."""
    found = Timestamp()
    found.FromNanoseconds(at_ns)
    return found
