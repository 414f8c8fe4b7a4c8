"""A manager in the simulation: the real pure functions in the smallest shell that commits what they decide.

The product's shell is manager.acting and manager.controllers; this one keeps the same rules and no more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, GUEST_PHASE_RUNNING
from gugus.cluster.v1.node_pb2 import (
    NODE_STATE_FENCED,
    NODE_STATE_FENCING,
    NODE_STATE_JOINING,
    NODE_STATE_ONLINE,
    NODE_STATE_SUSPECT,
)

from common.leases import MANAGER_LEASE_MS
from manager.ha.manager_lease import Acquire, LeaseMachine, LeaseView, Renew
from manager.ha.node_machine import SUSPECT_AFTER_NS, Beat, NodeView, decide
from manager.ha.recovery import TAKEN_IN, GuestView, Lost, Move, Wait, recover
from manager.scheduler import GuestRequest
from manager.scheduler import NodeView as Room
from tests.simulation.ha.clockwork import MS, S
from tests.simulation.ha.devices import Fencing
from tests.simulation.ha.moves import Moves
from tests.simulation.ha.state import Guest, Lease, Node, State, Txn

if TYPE_CHECKING:
    from tests.simulation.ha.world import Host

TICK = 200 * MS
START_AGAIN = 4 * S


class Manager:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = host.world
        self.replica = State()
        self.applied = 0
        self.process = 0
        self.off_seen: dict[str, int] = {}

    def begin(self) -> None:
        """Start as a new process; the replica comes back from the disk."""
        self.process += 1
        self.machine = LeaseMachine(self.host.name)
        self.off_seen.clear()
        self.take_over()
        process = self.process
        self.host.every(TICK, lambda: process == self.process, self.tick)

    def take_over(self) -> None:
        self.takeover = self.now()
        self.beats: dict[str, tuple[int, Beat]] = {}
        self.answers: dict[str, int] = {}
        self.pending: dict[str, int] = {}
        self.starts: dict[str, int] = {}
        self.moves = Moves(self)
        self.fencing = Fencing(self)

    def now(self) -> int:
        return self.host.clock.now()

    def applied_txn(self) -> None:
        """The replica changed."""
        for name in self.world.names:
            node = self.replica.objects.get(f"node/{name}")
            off = (
                node is not None
                and isinstance(node[0], Node)
                and node[0].state
                not in (
                    NODE_STATE_JOINING,
                    NODE_STATE_ONLINE,
                )
            )
            if not off:
                self.off_seen.pop(name, None)
            elif name not in self.off_seen:
                self.off_seen[name] = self.now()

    def observe(self) -> None:
        """Before every act: the epoch and the state that is acted upon come from the same revision."""
        lease = self.replica.lease()
        view = None if lease is None else self._lease_view(*lease)
        self.machine = self.machine.observe(view, self.now())

    def tick(self) -> None:
        self.observe()
        instruction = self.machine.step(self.now(), self.world.leader == self.host.name, self.world.times.drift_ppm)
        if isinstance(instruction, Acquire | Renew):
            self._propose_lease(instruction)
        if self.machine.acting(self.now()):
            for name in self.world.names:
                self.look(name)
            if self.world.rules.devices:
                self.fencing.tick()
            self._recover()
            self._reconcile()
            self.moves.begin()
            self.moves.tick()

    def heard(self, node: str, stream: int, sequence: int, epoch: int, beat: Beat) -> None:
        self.observe()
        if not self.machine.acting(self.now()):
            lease = self.replica.lease()
            if lease is not None and lease[0].holder not in ("", self.host.name):
                to = lease[0].holder
                self.world.send(
                    self.host.name, node, "redirect", lambda: self.world.hosts[node].agent.redirected(stream, to)
                )
            return
        if node in self.beats and stream < self.beats[node][0]:
            return
        self.beats[node] = (stream, replace(beat, heard_ns=self.now(), current=self._current(epoch)))
        self.look(node)
        state = self.replica.node(node).state
        if self.world.rules.renews(self._node_view(node), self.now(), self.world.times):
            self.answers[node] = self.now()
            self._answer(node, stream, sequence, self.world.times.lease_ms, fenced=False)
        else:
            fenced = state in (NODE_STATE_FENCING, NODE_STATE_FENCED)
            self._answer(node, stream, sequence, 0, fenced=fenced)

    def _current(self, epoch: int) -> bool:
        return epoch >= self.machine.epoch or not self.world.rules.boots_know_the_epoch

    def _answer(self, node: str, stream: int, sequence: int, lease_ms: int, *, fenced: bool) -> None:
        epoch = self.machine.epoch
        self.world.send(
            self.host.name,
            node,
            f"answers-{stream}",
            lambda: self.world.hosts[node].agent.answered(stream, sequence, lease_ms, fenced, epoch),
        )

    def told_off(self, name: str, seen: tuple[str, int]) -> None:
        """A person says that a node is off, and which incarnation of it was told to them when they looked."""
        if not self.machine.acting(self.now()):
            return
        node, key = self.replica.node(name), f"node/{name}"
        heard = name in self.beats and self.now() - self.beats[name][1].heard_ns < SUSPECT_AFTER_NS
        if (
            node.state not in (NODE_STATE_SUSPECT, NODE_STATE_FENCING)
            or heard
            or (node.boot_id, node.lapse_number) != seen
        ):
            return
        self.world.log(f"{self.host.name}: a person saw {name} off")
        txn = Txn({key: self.replica.revision_of(key)}, {key: replace(node, confirmed=seen)})
        self.world.propose(self.host.name, txn, lambda ok: None)

    def look(self, name: str) -> None:
        view = self._node_view(name)
        decision = decide(view, self.now(), self.world.times)
        if decision is None:
            return
        self.world.log(f"{self.host.name}: {name} {decision.event}: {decision.reason}")
        key = f"node/{name}"
        compares = {key: self.replica.revision_of(key)}
        back = decision.state == NODE_STATE_ONLINE
        node = self.replica.node(name)
        puts: dict[str, Node | Guest | Lease] = {
            key: Node(
                decision.state,
                decision.boot_id,
                decision.lapse_number,
                fired=not back and (node.fired or (decision.state == NODE_STATE_FENCING and bool(view.fire))),
                confirmed=None if back else node.confirmed,
            )
        }
        lease = self.replica.lease()
        assert lease is not None
        if decision.raise_epoch and self.world.rules.raise_epoch:
            compares["lease"] = lease[1]
            puts["lease"] = replace(lease[0], epoch=lease[0].epoch + 1)
        self.pending[name] = self.world.propose(self.host.name, Txn(compares, puts), lambda ok: None)

    def _node_view(self, name: str) -> NodeView:
        node = self.replica.node(name)
        return NodeView(
            name=name,
            state=node.state,
            boot_id=node.boot_id,
            lapse_number=node.lapse_number,
            takeover_ns=self.takeover,
            answered_ns=self.answers.get(name),
            off_seen_ns=self.off_seen.get(name),
            beat=self.beats[name][1] if name in self.beats else None,
            pending=not self.world.outcome_known(self.host.name, self.pending.get(name, -1)),
            unrecovered=any(
                guest.node == name and guest.phase not in TAKEN_IN for guest in self.replica.guests().values()
            ),
            fire=self.fencing.fire(name),
            off=self.fencing.off(name),
            under_fire=name in self.fencing.rounds,
        )

    def _propose_lease(self, instruction: Acquire | Renew) -> None:
        asked, process = self.now(), self.process
        renewals = instruction.renewals if isinstance(instruction, Renew) else 1
        self.machine = self.machine.proposed(instruction.epoch, asked)
        txn = Txn({"lease": instruction.expected}, {"lease": Lease(self.host.name, instruction.epoch, renewals)})

        def done(ok: bool) -> None:
            lease = self.replica.lease()
            if not ok or process != self.process or lease is None or lease[0].epoch != instruction.epoch:
                return
            acted = self.machine.acting(self.now())
            self.machine = self.machine.granted(asked, self._lease_view(*lease))
            if not acted and self.machine.acting(self.now()):
                self.world.log(f"{self.host.name}: acting in epoch {self.machine.epoch}")
                self.take_over()

        self.world.propose(self.host.name, txn, done)

    def _lease_view(self, lease: Lease, revision: int) -> LeaseView:
        return LeaseView(lease.holder, lease.epoch, MANAGER_LEASE_MS, lease.renewals, revision)

    def _recover(self) -> None:
        guests = self.replica.guests()
        states = {name: self.replica.node(name).state for name in self.world.names}
        lost = [g for g in guests if states[guests[g].node] in Lost or guests[g].phase == GUEST_PHASE_RECOVERING]
        if not lost:
            return
        views = [
            GuestView(
                g,
                guests[g].node,
                guests[g].generation,
                guests[g].phase,
                True,
                True,
                GuestRequest(g, 1, 1, 1),
                migration_target=self._target(guests[g]),
            )
            for g in lost
        ]
        rooms = [
            Room(n, states[n] == NODE_STATE_ONLINE, cpus=4, memory_bytes=9, kinds=frozenset({1}))
            for n in self.world.names
        ]
        for outcome in recover(views, states, rooms):
            guest, key = guests[outcome.guest], f"guest/{outcome.guest}"
            compares = {key: self.replica.revision_of(key)}
            if isinstance(outcome, Move):
                lost_node = f"node/{guest.node}"
                compares[lost_node] = self.replica.revision_of(lost_node)
                moved = Guest(outcome.to_node, outcome.generation, GUEST_PHASE_RUNNING)
                self.world.propose(self.host.name, Txn(compares, {key: moved}), lambda ok: None)
            elif isinstance(outcome, Wait) and guest.phase != GUEST_PHASE_RECOVERING:
                waiting = replace(guest, phase=GUEST_PHASE_RECOVERING)
                self.world.propose(self.host.name, Txn(compares, {key: waiting}), lambda ok: None)

    def _target(self, guest: Guest) -> str:
        return guest.migration[0] if guest.migration and self.world.rules.recovery_minds_migrations else ""

    def _reconcile(self) -> None:
        for name, guest in self.replica.guests().items():
            beat = self.beats.get(guest.node)
            if beat is None or name in beat[1].running or guest.phase != GUEST_PHASE_RUNNING:
                continue
            if guest.migration is not None:
                continue  # locked
            if self.replica.node(guest.node).state != NODE_STATE_ONLINE:
                continue
            if self.now() - self.starts.get(name, -START_AGAIN) < START_AGAIN:
                continue
            self.starts[name] = self.now()
            if self.world.rules.epoch_of_decision:
                self._start(name, guest, self.machine.epoch)
            else:
                self._start_later(name, guest)

    def _start_later(self, name: str, guest: Guest) -> None:
        """A mutation: other work comes first, then the old decision is sent in what is then the epoch."""

        def send() -> None:
            if self.machine.acting(self.now()):
                self._start(name, guest, self.machine.epoch)

        self.world.queue.after(self.world.rng.randrange(30 * S), lambda: self.host.do(send))

    def _start(self, name: str, guest: Guest, epoch: int) -> None:
        self.world.send(
            self.host.name,
            guest.node,
            "",
            lambda: self.world.hosts[guest.node].agent.start(name, guest.generation, epoch),
        )
