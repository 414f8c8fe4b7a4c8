"""The node controller: carries out what `manager.ha.node_machine` decides of each node, and says whose beats may be answered.

Invariant: a beat is answered only while the node is committed ONLINE and no transition of it is under way; so nobody holds a lease that
a committed fencing does not know of.
"""

import asyncio

from gugus.cluster.v1.cluster_pb2 import ManagerLease
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import HOST_EXIT_UNSPECIFIED, NODE_STATE_FENCED, NODE_STATE_ONLINE, Departure, Node

from common.errors import GugusError
from common.logs import get_logger
from common.waiting import happened
from manager.consensus import ConsensusError, ProposalTimeout
from manager.controllers.context import Context
from manager.controllers.fencing import Fencing
from manager.controllers.guest_step import ALIVE_STATES
from manager.events import INFO, WARNING, record
from manager.ha import departure
from manager.ha.node_machine import Beat, NodeDecision, NodeView, deadline, decide, renews
from manager.ha.recovery import TAKEN_IN
from manager.off_nodes import OffNodes
from manager.store import Change, Conflict, Txn
from manager.store.kinds import LEASE_NAME

TICK_S = 0.2
"""Longest time between two looks at all nodes; a beat with news is looked at once, and so is a node when its time has come."""

LEAST_WAIT_S = 0.01
"""Of timers: a decision that is due within it is made a little later."""

_log = get_logger("nodes")


class NodeController:
    """Nodes of the cluster, from the moment this manager began to act."""

    def __init__(self, context: Context, off: OffNodes, fencing: Fencing, takeover_ns: int) -> None:
        self._context = context
        self._fencing = fencing
        self._off = off
        self._takeover_ns = takeover_ns
        self._pending: set[str] = set()
        self._writing: set[str] = set()
        self._news = asyncio.Event()
        self._wait_s = TICK_S
        context.beats.listen(lambda _: self._news.set())
        fencing.listener = self._news.set

    def changed(self, change: Change) -> None:
        """Take in a change of a node: a person may have asked something of it."""
        if change.kind != "node":
            return
        if change.deleted:
            self._context.beats.forget(change.name)
        self._news.set()

    def renews(self, name: str) -> bool:
        """Return whether a beat of the node may be answered with a lease right now."""
        node = self._context.store.peek(Node, name)
        if node is None or not self._context.acting.valid:
            return False
        return renews(self._view(node), self._context.acting.now_ns(), self._context.lease_times())

    async def run(self) -> None:
        """Look at every node on each tick and at each news, until cancelled. A commit for one node holds up no other."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._news.clear()
                self._wait_s = TICK_S
                for node in self._context.store.peek_all(Node):
                    try:
                        self._look(node, group)
                    except Exception:
                        _log.exception("node skipped this time", node=node.meta.name)
                await happened(self._news, self._wait_s)

    def _look(self, node: Node, group: asyncio.TaskGroup) -> None:
        name = node.meta.name
        if name in self._writing:
            return
        view = self._fencing.add(self._view(node), node)
        decision = decide(view, self._context.acting.now_ns(), self._context.lease_times())
        if decision is not None:
            self._writing.add(name)
            self._pending.add(name)
            group.create_task(self._commit(node, view, decision))
        elif (change := self._departs(node)) is not None:
            self._writing.add(name)
            group.create_task(self._keep_departure(node, change))
        elif self._has_new_facts(node):
            self._writing.add(name)
            group.create_task(self._keep_facts(node))
        elif (due_ns := deadline(view, self._context.lease_times())) is not None:
            wait_s = (due_ns - self._context.acting.now_ns()) / 1e9
            self._wait_s = min(self._wait_s, max(wait_s, LEAST_WAIT_S))

    def _view(self, node: Node) -> NodeView:
        beats = self._context.beats.of(node.meta.name)
        beat = None
        if beats.beat is not None and beats.heard_ns is not None:
            lapse = beats.beat.lapse.number if beats.beat.HasField("lapse") else None
            running = tuple(g.name for g in beats.beat.guests if g.ha and g.state in ALIVE_STATES)
            current = beats.beat.epoch >= self._context.acting.epoch
            leaving = beats.beat.exit != HOST_EXIT_UNSPECIFIED
            beat = Beat(beats.heard_ns, beats.beat.boot_id, lapse, running, current, leaving)
        return NodeView(
            name=node.meta.name,
            state=node.status.state,
            boot_id=node.status.boot_id,
            lapse_number=node.status.lapse_number,
            takeover_ns=self._takeover_ns,
            answered_ns=beats.answered_ns,
            off_seen_ns=self._off.since_ns(node.meta.name),
            beat=beat,
            pending=node.meta.name in self._pending,
            unrecovered=node.status.state == NODE_STATE_FENCED and self._unrecovered(node.meta.name),
        )

    def _unrecovered(self, name: str) -> bool:
        return any(
            guest.status.node == name and not guest.meta.deleting and guest.status.phase not in TAKEN_IN
            for guest in self._context.store.peek_all(Guest)
        )

    async def _commit(self, node: Node, view: NodeView, decision: NodeDecision) -> None:
        name = node.meta.name
        online = decision.state == NODE_STATE_ONLINE
        node.status.state = decision.state
        node.status.reason = "holds its lease" if online else decision.reason
        node.status.boot_id = decision.boot_id
        node.status.lapse_number = decision.lapse_number
        if facts := self._context.beats.of(name).facts:
            node.status.facts.CopyFrom(facts)
        if online and not self._still_leaves(name):
            departure.settle_return(node)
        txn = Txn()
        self._fencing.note(txn, node, view, decision)
        txn.put(node, expect_revision=node.meta.revision)
        message = f"{name} is online: {decision.reason}" if online else decision.reason
        record(txn, f"node/{name}", decision.event, message, INFO if online else WARNING)
        try:
            if decision.raise_epoch:
                self._raise_epoch(txn)
            await self._write(name, decision.event, txn)
        except Exception:
            _log.exception("transition failed", node=name, transition=decision.event)
        finally:
            self._pending.discard(name)
            self._writing.discard(name)
            self._news.set()
            self._context.acting.observe()

    async def _write(self, name: str, what: str, txn: Txn) -> None:
        """Commit; return when the outcome is known here. What failed is decided anew at the next look."""
        try:
            await self._context.store.txn(txn)
        except Conflict:
            _log.info("node changed meanwhile, looking again", node=name)
        except ProposalTimeout:
            await self._until_known(name)
        except (ConsensusError, GugusError) as error:
            _log.warning("not committed", node=name, transition=what, error=str(error))
        else:
            _log.info("node changed", node=name, transition=what)

    async def _until_known(self, name: str) -> None:
        """Return after a read barrier that the proposal of unknown outcome lies before."""
        while True:
            try:
                await self._context.store.get(Node, name)
            except (ConsensusError, GugusError) as error:
                _log.warning("outcome not known yet", node=name, error=str(error))
                await asyncio.sleep(TICK_S)
            else:
                return

    def _raise_epoch(self, txn: Txn) -> None:
        lease = self._context.store.peek(ManagerLease, LEASE_NAME)
        if lease is None:
            raise RuntimeError("acting without a lease in the state")
        lease.epoch += 1
        txn.put(lease, expect_revision=lease.meta.revision)

    def _still_leaves(self, name: str) -> bool:
        """Return whether the newest beat of a node says that its host goes down."""
        beat = self._context.beats.of(name).beat
        return beat is not None and beat.exit != HOST_EXIT_UNSPECIFIED

    def _departs(self, node: Node) -> Departure | None:
        """Return the departure that is to be written down of a node, an empty one when it was called off, None when nothing is."""
        beat = self._context.beats.of(node.meta.name).beat
        if departure.called_off(node, beat):
            return Departure()
        return departure.begun(node, beat, self._context.settings())

    async def _keep_departure(self, node: Node, change: Departure) -> None:
        """Store that a node's host goes down, and what becomes of its guests; or that it does not after all."""
        name, txn = node.meta.name, Txn()
        try:
            if change.boot_id:
                change.at.GetCurrentTime()
                node.status.departure.CopyFrom(change)
                record(txn, f"node/{name}", "NODE_LEAVES", f"{name} leaves: {departure.words(change)}", INFO)
            else:
                departure.settle_return(node)
            await self._write(name, "departure", txn.put(node, expect_revision=node.meta.revision))
        except Exception:
            _log.exception("departure not stored", node=name)
        finally:
            self._writing.discard(name)
            self._news.set()

    def _has_new_facts(self, node: Node) -> bool:
        facts = self._context.beats.of(node.meta.name).facts
        return facts is not None and node.status.state == NODE_STATE_ONLINE and facts != node.status.facts

    async def _keep_facts(self, node: Node) -> None:
        """Store facts that changed since the node came online: what it can run, and which pools and networks it has."""
        name = node.meta.name
        try:
            if facts := self._context.beats.of(name).facts:
                node.status.facts.CopyFrom(facts)
                await self._write(name, "facts", Txn().put(node, expect_revision=node.meta.revision))
        except Exception:
            _log.exception("facts not stored", node=name)
        finally:
            self._writing.discard(name)
