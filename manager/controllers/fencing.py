"""What the acting manager knows of its nodes' fencing beyond their beats: why devices are to be used or held back, and who was seen off.

Invariant: nothing here decides; `manager.ha.fence_plan` and `manager.ha.node_machine` do. What is only in memory, the opinions of other
hosts and the devices' words, dies with this manager's reign: no word of an earlier one is ever taken for proof.
"""

from collections.abc import Callable
from dataclasses import replace

from gugus.cluster.v1.cluster_pb2 import ClusterSettings
from gugus.cluster.v1.guest_pb2 import POWER_ON, Guest
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
    FenceDevice,
    Node,
)
from gugus.cluster.v1.task_pb2 import Task

from common.leases import NS_PER_MS
from manager.controllers.context import Context
from manager.ha import fence_plan
from manager.ha.departure import awaited
from manager.ha.fence_plan import SILENT_NS, FenceView, Fire, HoldBack, Levels, Limits, Opinion, decide_fire
from manager.ha.node_machine import SUSPECT_AFTER_NS, NodeDecision, NodeView, Off, is_of
from manager.off_nodes import OffNodes
from manager.store import Txn
from manager.tasks import ENDED, log_line

VIEWS_FRESH_NS = 50 * NS_PER_MS
"""All nodes are looked at so often at most while some are suspected: decisions about many of them share one look."""


class Fencing:
    """One reign's knowledge. `rounds` has the nodes that a device is at work on."""

    def __init__(self, context: Context, off_nodes: OffNodes, takeover_ns: int) -> None:
        self._context = context
        self._off_nodes = off_nodes
        self._takeover_ns = takeover_ns
        self._returned_ns: dict[str, tuple[int, ...]] = {}
        self._seen: list[FenceView] = []
        self._viewed_ns = -VIEWS_FRESH_NS
        self.opinions: dict[str, Opinion] = {}
        self.offs: dict[str, Off] = {}
        self.fired_ns: dict[str, tuple[int, ...]] = {}
        self.rounds: set[str] = set()
        self.listener: Callable[[], None] = lambda: None
        """Called back when there is news for decisions about nodes."""

    def add(self, view: NodeView, node: Node) -> NodeView:
        """Return the node's view with what is known here."""
        status, name = node.status.fence, node.meta.name
        asked = bool(status.asked_by)
        if node.status.state == NODE_STATE_ONLINE and not asked:
            return view  # as nearly all are, nearly always
        found = None
        if node.spec.fence.devices and (asked or node.status.state == NODE_STATE_SUSPECT):
            found = decide_fire(self.view(node), self._views(), self._now_ns(), limits_of(self._context.settings()))
        return replace(
            view,
            asked=f"{status.asked_by} asked for it" if status.asked_by else "",
            fire=found.reason if isinstance(found, Fire) else "",
            held=found.reason if isinstance(found, HoldBack) else "",
            off=self._off(node),
            under_fire=name in self.rounds,
        )

    def note(self, txn: Txn, node: Node, view: NodeView, decision: NodeDecision) -> None:
        """Put into a transition of a node, which `txn` commits, what it means for its fencing."""
        fence = node.status.fence
        if decision.state == NODE_STATE_ONLINE:
            if view.state == NODE_STATE_SUSPECT:
                self._returned_ns[view.name] = (*self._recent(self._returned_ns, view.name), self._now_ns())
            self.offs.pop(view.name, None)
            node.status.ClearField("fence")
        elif decision.state == NODE_STATE_FENCING:
            fence.fired = bool(levels_of(node)) and bool(view.fire or view.asked)
        elif decision.state == NODE_STATE_FENCED and fence.asked_task:
            task = self._context.store.peek(Task, fence.asked_task)
            if task is not None and task.state not in ENDED and log_line(task, f"proven: {decision.reason}"):
                txn.put(task, expect_revision=task.meta.revision)

    def begun(self, name: str) -> None:
        """Note that a node's devices are used from now on."""
        self.fired_ns[name] = (*self._recent(self.fired_ns, name), self._now_ns())
        self.rounds.add(name)

    def ended(self, name: str, off: Off | None) -> None:
        """Note that no device is at work on a node any more, and the proof, if there is one."""
        self.rounds.discard(name)
        if off is not None:
            self.offs[name] = off
        self.listener()

    def proven(self, node: Node) -> bool:
        """Return whether a device's proof for the node as it is stored waits to be committed."""
        off = self.offs.get(node.meta.name)
        return off is not None and is_of(off, node.status.boot_id, node.status.lapse_number)

    def _views(self) -> list[FenceView]:
        """Return all nodes as decisions about fence devices see them, at most `VIEWS_FRESH_NS` old."""
        now_ns = self._now_ns()
        if now_ns - self._viewed_ns >= VIEWS_FRESH_NS:
            self._seen = [self.view(node) for node in self._context.store.peek_all(Node)]
            self._viewed_ns = now_ns
        return self._seen

    def silent(self) -> list[Node]:
        """Return the nodes with fence devices that are silent for so long that others may be asked about them."""
        return [
            node
            for node in self._context.store.peek_all(Node)
            if node.spec.fence.devices and self._quiet_ns(node.meta.name) >= SILENT_NS
        ]

    def view(self, node: Node) -> FenceView:
        """Return one node as decisions about fence devices see it."""
        name = node.meta.name
        return FenceView(
            node=name,
            state=node.status.state,
            quiet_ns=self._quiet_ns(name),
            levels=levels_of(node),
            opinion=self.opinions.get(name),
            off_seen_ns=self._off_nodes.since_ns(name),
            fired_ns=self.fired_ns.get(name, ()),
            returned_ns=self._returned_ns.get(name, ()),
            asked_by=node.status.fence.asked_by,
            guests=self._guests(name) if node.status.state == NODE_STATE_SUSPECT and not awaited(node) else 0,
        )

    def heard(self, name: str) -> bool:
        """Return whether a node is being heard."""
        heard_ns = self._context.beats.of(name).heard_ns
        return heard_ns is not None and self._now_ns() - heard_ns < SUSPECT_AFTER_NS

    def _off(self, node: Node) -> Off | None:
        status = node.status.fence
        if status.confirmed_by:
            # When it was seen is not known here: a beat that is newer than those that count as missing refutes it.
            seen_ns = self._now_ns() - SUSPECT_AFTER_NS
            reason = f"{status.confirmed_by} confirmed that it is off"
            return Off(status.confirmed_boot_id, status.confirmed_lapse_number, seen_ns, reason)
        return self.offs.get(node.meta.name)

    def _quiet_ns(self, name: str) -> int:
        heard_ns = self._context.beats.of(name).heard_ns
        return self._now_ns() - max(self._takeover_ns, heard_ns or self._takeover_ns)

    def _guests(self, name: str) -> int:
        return sum(
            1
            for guest in self._context.store.peek_all(Guest)
            if guest.status.node == name
            and guest.spec.ha.enabled
            and guest.spec.power == POWER_ON
            and not guest.status.HasField("preempted")
        )

    def _recent(self, moments: dict[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
        oldest_ns = self._now_ns() - max(fence_plan.FLAP_WINDOW_NS, fence_plan.RETURN_WINDOW_NS)
        return tuple(at_ns for at_ns in moments.get(name, ()) if at_ns > oldest_ns)

    def _now_ns(self) -> int:
        return self._context.acting.now_ns()


def limits_of(settings: ClusterSettings) -> Limits:
    """Return how freely fence devices are used, by the cluster's settings."""
    wanted = settings.fencing
    return Limits(wanted.cap_percent or fence_plan.CAP_PERCENT, wanted.max_cuts or fence_plan.MAX_CUTS)


def devices_of(node: Node) -> list[FenceDevice]:
    """Return a node's fence devices in the order in which they are tried."""
    return sorted(node.spec.fence.devices, key=lambda device: (device.level or 1, device.name))


def levels_of(node: Node) -> Levels:
    """Return the names of a node's devices, level by level."""
    levels: dict[int, list[str]] = {}
    for device in devices_of(node):
        levels.setdefault(device.level or 1, []).append(device.name)
    return tuple(tuple(names) for names in levels.values())
