"""A manager in the simulation: the real pure functions in the smallest shell that commits what they decide.

The product's shell is manager.acting and manager.controllers; this one keeps the same rules and no more. Nothing is looked at
that cannot have changed: at rest only beats come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.meta_pb2 import Meta
from gugus.cluster.v1.node_pb2 import (
    HOST_EXIT_UNSPECIFIED,
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_JOINING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
    HostExit,
    Node,
    NodeState,
)
from gugus.cluster.v1.pool_pb2 import Pool

from common.leases import MANAGER_LEASE_MS
from manager.ha import departure
from manager.ha.manager_lease import Acquire, LeaseMachine, LeaseView, Renew
from manager.ha.node_machine import (
    SUSPECT_AFTER_NS,
    Beat,
    NodeDecision,
    NodeView,
    another_incarnation,
    deadline,
    decide,
)
from manager.ha.recovery import TAKEN_IN
from manager.scheduler.settings import planner_settings
from manager.scheduler.what_if import Stored
from simulator.agent import Report
from simulator.balance import Balancing
from simulator.clockwork import MS
from simulator.departures import Departures
from simulator.devices import Fencing
from simulator.drains import Drains
from simulator.guests import Guests
from simulator.load import LoadWatch
from simulator.moves import Moves
from simulator.reboots import Reboots
from simulator.recovering import Recovering
from simulator.room import Room
from simulator.state import LEASE, Lease, State, Txn, copy_of, guest_key, node_key

if TYPE_CHECKING:
    from simulator.host import Host

TICK = 200 * MS
"""A manager looks at its lease, and at what is due, so often."""

NEVER = 1 << 62

HEARD_STATES = (NODE_STATE_JOINING, NODE_STATE_ONLINE)


class Manager:
    """One voter. What an acting one remembers of nodes and guests is made anew at each takeover."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = host.world
        self.replica = State()
        self.applied = 0
        self.process = 0
        self.off_seen: dict[str, int] = {}
        self._lease_seen = -1
        self._nudged = False

    def begin(self) -> None:
        """Start as a new process; the replica comes back from the disk."""
        self.process += 1
        self.machine = LeaseMachine(self.host.name)
        self._lease_seen = -1
        self._nudged = False
        self.off_seen.clear()
        self.take_over()
        process = self.process
        self.host.every(TICK, lambda: process == self.process, self.tick)

    def take_over(self) -> None:
        """Begin to act, knowing nothing but the state."""
        self.takeover = self.now()
        self.beats: dict[str, tuple[int, Beat]] = {}
        self.reports: dict[str, Report] = {}
        self.answers: dict[str, int] = {}
        self.pending: dict[str, int] = {}
        self.due: dict[str, int] = dict.fromkeys(self.replica.nodes, 0)
        self.giving = 0
        """Commits under way that give guests nodes: nobody else chooses one meanwhile, as in a real cluster (`Context.room`)."""
        self.guests = Guests(self)
        self.recovering = Recovering(self)
        self.moves = Moves(self)
        self.drains = Drains(self)
        self.room = Room(self)
        self.departures = Departures(self)
        self.reboots = Reboots(self)
        self.loads = LoadWatch(self)
        self.balancing = Balancing(self)
        self.fencing = Fencing(self)

    def now(self) -> int:
        """Return the time of this manager's clock."""
        return self.host.clock.now()

    def applied_txn(self, txn: Txn) -> None:
        """The replica changed."""
        if not self.process:
            self._note_all_off(txn)
            return
        for key in (*txn.puts, *txn.deletes):
            kind, _, name = key.partition("/")
            if kind == "lease":
                self.observe()  # others count from the moment at which they see it change
            elif kind == "node":
                self._note_off(name)
                self.due[name] = 0
                self.guests.wake_on(name)
            elif kind == "guest":
                self.guests.wake(name)
            elif kind in ("move", "cluster"):
                self.guests.wake_all()
            if kind != "lease":
                self.nudge()

    def nudge(self) -> None:
        """There is news: act a moment later, with what else comes by then."""
        if not self._nudged:
            self._nudged = True
            self.world.queue.after(MS, lambda: self.host.do(self._nudge))

    def _nudge(self) -> None:
        self._nudged = False
        if self.process and self.machine.acting(self.now()):
            self.observe()
            self._act()

    def _note_all_off(self, txn: Txn) -> None:
        for key in txn.puts:
            if key.startswith("node/"):
                self._note_off(key.partition("/")[2])

    def _note_off(self, name: str) -> None:
        node = self.replica.nodes.get(name)
        if node is None or node.status.state in HEARD_STATES:
            self.off_seen.pop(name, None)
        else:
            self.off_seen.setdefault(name, self.now())

    # Acting.

    def observe(self) -> None:
        """Before every act: the epoch and the state that is acted upon come from the same revision."""
        revision = self.replica.revision_of(LEASE)
        if revision != self._lease_seen:
            self._lease_seen = revision
            view = None if self.replica.lease is None else self._lease_view(self.replica.lease, revision)
            self.machine = self.machine.observe(view, self.now())

    def tick(self) -> None:
        """Keep or take the lease, and act when it is this manager's."""
        leads = self.world.leader == self.host.name
        if not leads and self.machine.valid_until_ns is None:
            return  # it neither holds the lease nor can take it
        self.observe()
        instruction = self.machine.step(self.now(), leads, self.world.drift_ppm)
        if isinstance(instruction, Acquire | Renew):
            self._propose_lease(instruction)
        if self.machine.acting(self.now()):
            self._act()

    def _act(self) -> None:
        now = self.now()
        for name, due in self.due.items():
            if due <= now:
                self.look(name)
        self.fencing.tick()
        self.recovering.tick()
        self.guests.tick()
        self.moves.tick()
        self.drains.tick()
        self.room.tick()
        self.departures.tick()
        self.reboots.tick()
        self.loads.tick()
        self.balancing.tick()

    def hand_over(self, successors: Sequence[str]) -> None:
        """Hand the lease back, then let another one lead, if there is any."""
        lease = self.replica.lease
        if not successors or lease is None:
            return
        release = Txn({LEASE: self.replica.revision_of(LEASE)}, {LEASE: replace(lease, holder="")})
        self.world.tell(f"node/{self.host.name}", "hands over")
        self.machine = LeaseMachine(self.host.name)
        self.put(release, lambda ok: self.world.lead(self.world.rng.choice(successors)))

    def stored(self) -> Stored:
        """Return all that the planner looks at."""
        replica = self.replica
        return Stored(
            nodes=list(replica.nodes.values()),
            guests=list(replica.guests.values()),
            rules=list(replica.rules.values()),
            settings=planner_settings(replica.cluster.settings),
            lease=self.world.times,
            disarmed=replica.cluster.ha.disarmed,
            pools=list(self.pools().values()),
            load_of=self.loads.of,
        )

    def pools(self) -> dict[str, Pool]:
        """Return all pools, by name; each is shared."""
        names = sorted({name for node in self.replica.nodes.values() for name in node.status.facts.pools})
        return {name: Pool(meta=Meta(name=name), spec=PoolSpec(dir=DirPool(shared=True))) for name in names}

    def acts_in(self, epoch: int) -> bool:
        """Return whether this manager still acts in an epoch."""
        return self.machine.acting(self.now()) and self.machine.epoch == epoch

    def put(self, txn: Txn, done: Callable[[bool], None] = lambda ok: None) -> None:
        """Propose a transaction; `done` is told whether it was committed, if this process lives to hear it."""
        process = self.process
        self.world.propose(self.host.name, txn, lambda ok: done(ok) if process == self.process else None)

    def give(self, txn: Txn, done: Callable[[bool], None]) -> None:
        """Propose a transaction that gives guests nodes, or lets them be on their way to some."""
        reign = self.guests
        self.giving += 1

        def over(ok: bool) -> None:
            if self.guests is reign:
                self.giving -= 1
            done(ok)

        self.put(txn, over)

    def put_guest(self, guest: Guest, done: Callable[[bool], None] = lambda ok: None, *tells: tuple[str, str]) -> None:
        """Propose another state of a guest, if it is as it was when it was looked at."""
        key = guest_key(guest.meta.name)
        self.put(Txn({key: self.replica.revision_of(key)}, {key: guest}, tells=tells), done)

    def _propose_lease(self, instruction: Acquire | Renew) -> None:
        asked, process = self.now(), self.process
        renewals = instruction.renewals if isinstance(instruction, Renew) else 1
        self.machine = self.machine.proposed(instruction.epoch, asked)
        txn = Txn({LEASE: instruction.expected}, {LEASE: Lease(self.host.name, instruction.epoch, renewals)})

        def done(ok: bool) -> None:
            lease = self.replica.lease
            if not ok or process != self.process or lease is None or lease.epoch != instruction.epoch:
                return
            acted = self.machine.acting(self.now())
            self.machine = self.machine.granted(asked, self._lease_view(lease, self.replica.revision_of(LEASE)))
            self._lease_seen = self.replica.revision_of(LEASE)
            if not acted and self.machine.acting(self.now()):
                self.world.tell(f"node/{self.host.name}", f"acts for the cluster, in epoch {self.machine.epoch}")
                self.take_over()

        self.world.propose(self.host.name, txn, done)

    def _lease_view(self, lease: Lease, revision: int) -> LeaseView:
        return LeaseView(lease.holder, lease.epoch, MANAGER_LEASE_MS, lease.renewals, revision)

    # Nodes.

    def heard(
        self,
        node: str,
        stream: int,
        sequence: int,
        epoch: int,
        beat: Beat,
        report: Report,
        exit_: HostExit.ValueType = HOST_EXIT_UNSPECIFIED,
    ) -> None:
        """Take in a beat, and answer it."""
        self.observe()
        if not self.machine.acting(self.now()):
            lease = self.replica.lease
            if lease is not None and lease.holder not in ("", self.host.name):
                agent, to = self.world.hosts[node].agent, lease.holder
                self.world.to_agent(self.host.name, node, "redirect", lambda: agent.redirected(stream, to))
            return
        if node not in self.replica.nodes or (node in self.beats and stream < self.beats[node][0]):
            return
        before = self.beats.get(node)
        leaving = exit_ != HOST_EXIT_UNSPECIFIED
        heard = Beat(self.now(), beat.boot_id, beat.lapse_number, beat.running, self._current(epoch), leaving)
        self.beats[node] = (stream, heard)
        self.told(node, report)
        self.departures.heard(node, beat.boot_id, exit_)
        if before is None or before[0] != stream or before[1].lapse_number != beat.lapse_number:
            self.guests.wake_on(node)
        view = self._node_view(node)
        if view.state != NODE_STATE_ONLINE or not self.world.rules.renews(view, self.now(), self.world.times):
            self.look(node)
            view = self._node_view(node)
        lease_ms, fenced = 0, view.state in (NODE_STATE_FENCING, NODE_STATE_FENCED)
        if self.world.rules.renews(view, self.now(), self.world.times):
            self.answers[node] = self.now()
            lease_ms, fenced = self.world.times.lease_ms, False
        self._answer(node, stream, sequence, lease_ms, fenced=fenced)

    def told(self, node: str, report: Report) -> None:
        """Take in what a node has of guests, if that is news."""
        known = self.reports.get(node)
        if known is None or report.version > known.version:
            self.reports[node] = report
            for name in dict.fromkeys((*report.copies, *(known.copies if known else ()))):
                self.guests.wake(name)
            self.recovering.told(node)
            self.nudge()

    def heard_as(self, node: Node) -> bool:
        """Return whether this manager has heard a node, and as the incarnation that holds the lease."""
        if node.meta.name not in self.beats:
            return False
        beat, status = self.beats[node.meta.name][1], node.status
        return not another_incarnation(status.boot_id, status.lapse_number, beat.boot_id, beat.lapse_number)

    def _current(self, epoch: int) -> bool:
        return epoch >= self.machine.epoch or not self.world.rules.boots_know_the_epoch

    def _answer(self, node: str, stream: int, sequence: int, lease_ms: int, *, fenced: bool) -> None:
        epoch, agent, order = self.machine.epoch, self.world.hosts[node].agent, self.departures.order(node)
        self.world.to_agent(
            self.host.name,
            node,
            f"answers-{stream}",
            lambda: agent.answered(stream, sequence, lease_ms, fenced, epoch, order),
        )

    def told_off(self, name: str, seen: tuple[str, int]) -> None:
        """A person says that a node is off, and which incarnation of it was told to them when they looked."""
        if not self.machine.acting(self.now()):
            return
        node, key = copy_of(self.replica.nodes[name]), node_key(name)
        heard = name in self.beats and self.now() - self.beats[name][1].heard_ns < SUSPECT_AFTER_NS
        incarnation = (node.status.boot_id, node.status.lapse_number)
        if node.status.state not in (NODE_STATE_SUSPECT, NODE_STATE_FENCING) or heard or incarnation != seen:
            return
        fence = node.status.fence
        fence.confirmed_by, fence.confirmed_boot_id, fence.confirmed_lapse_number = "a person", *seen
        self.put(Txn({key: self.replica.revision_of(key)}, {key: node}, tells=((key, "a person saw it off"),)))

    def look(self, name: str) -> None:
        """Decide about a node, and commit what is decided."""
        view = self._node_view(name)
        decision = decide(view, self.now(), self.world.times)
        if decision is None:
            waiting = view.state in (NODE_STATE_SUSPECT, NODE_STATE_FENCING) or view.pending
            self.due[name] = 0 if waiting else deadline(view, self.world.times) or NEVER
            return
        self.due[name] = 0
        key = node_key(name)
        node = self._decided(copy_of(self.replica.nodes[name]), view, decision)
        compares = {key: self.replica.revision_of(key)}
        puts: dict[str, Node | Lease] = {key: node}
        lease = self.replica.lease
        assert lease is not None, "acting without a lease in the state"
        if decision.raise_epoch and self.world.rules.raise_epoch:
            compares[LEASE] = self.replica.revision_of(LEASE)
            puts[LEASE] = replace(lease, epoch=lease.epoch + 1)
        word = NodeState.Name(decision.state).removeprefix("NODE_STATE_").lower()
        tells = ((key, f"{word}: {decision.reason}"),)
        self.pending[name] = self.world.propose(self.host.name, Txn(compares, puts, tells=tells), lambda ok: None)

    def _decided(self, node: Node, view: NodeView, decision: NodeDecision) -> Node:
        online = decision.state == NODE_STATE_ONLINE
        node.status.state, node.status.reason = decision.state, "holds its lease" if online else decision.reason
        node.status.boot_id, node.status.lapse_number = decision.boot_id, decision.lapse_number
        if online:
            node.status.facts.boot_id = decision.boot_id
        self.fencing.note(node, view, decision)
        if online and not self.departures.goes_down(node.meta.name):
            departure.settle_return(node)
        return node

    def _node_view(self, name: str) -> NodeView:
        status = self.replica.nodes[name].status
        quiet = status.state == NODE_STATE_ONLINE and not status.fence.asked_by
        return NodeView(
            name=name,
            state=status.state,
            boot_id=status.boot_id,
            lapse_number=status.lapse_number,
            takeover_ns=self.takeover,
            answered_ns=self.answers.get(name),
            off_seen_ns=self.off_seen.get(name),
            beat=self.beats[name][1] if name in self.beats else None,
            pending=not self.world.outcome_known(self.host.name, self.pending.get(name, -1)),
            unrecovered=status.state == NODE_STATE_FENCED
            and any(guest.status.phase not in TAKEN_IN for guest in self.replica.on(name)),
            asked=f"{status.fence.asked_by} asked for it" if status.fence.asked_by else "",
            fire="" if quiet else self.fencing.fire(name),
            off=None if quiet else self.fencing.off(name),
            under_fire=name in self.fencing.rounds,
        )
