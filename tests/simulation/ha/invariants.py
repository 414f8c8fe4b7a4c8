"""What holds at every step of a simulated cluster, and in fair weather also within which time.

Two copies, and two hosts that write to one disk, are looked for by the world itself. Here: generations and epochs only rise, rules hold,
counters are reset, whoever can run does run within a bound, and no host is fenced that could prove itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, HA_STATE_ERROR, POWER_ON, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_FENCING, NodeState

from common.leases import MANAGER_LEASE_MS, safe_after_ns
from manager.ha.account import STEADY_S
from simulator.clockwork import MS, S

if TYPE_CHECKING:
    from simulator.world import World

LOOK = 500 * MS
"""What time alone can break is looked at so often."""

TAKEOVER = 2 * (MANAGER_LEASE_MS * MS + 2 * S)
"""Until a manager acts again: its predecessor's lease is waited out, agents look for the new one; and once more, for it may fail first."""

STARTING = 10 * S
"""Recovery, a start that is asked for again, and the agent's next beats."""

REPEATED = 64 * S
"""Pauses after failures, up to the fourth, and what a move takes that is asked for meanwhile."""


class Broken(AssertionError):
    """Something did not hold that is promised."""


class Watch:
    """Looks at a world from now on.

    fair: messages come, so that silence has a cause: times are looked at, too. apart: guests that a strict rule keeps apart.
    """

    def __init__(self, world: World, *, fair: bool = False, apart: tuple[str, ...] = ()) -> None:
        self.world, self.fair, self.apart = world, fair, apart
        self._generations: dict[str, int] = {}
        self._epoch = 0
        self._states: dict[str, NodeState.ValueType] = {}
        self._disturbed: dict[str, int] = dict.fromkeys(world.names, world.queue.now)
        self._any = world.queue.now
        self._steady: dict[str, int] = {}
        self._ran: dict[str, int] = {}
        self.bound = safe_after_ns(0, world.times) + world.setup.boot_ns + TAKEOVER + STARTING + REPEATED
        world.watchers.append(self.look)
        if fair:
            world.queue.after(LOOK, self._tick)

    def look(self) -> None:
        """Look at what was committed."""
        state = self.world.committed
        for name, guest in state.guests.items():
            if guest.meta.generation < self._generations.get(name, 0):
                raise Broken(f"generation of {name} fell to {guest.meta.generation}")
            self._generations[name] = guest.meta.generation
        if state.lease is not None:
            if state.lease.epoch < self._epoch:
                raise Broken(f"the epoch fell to {state.lease.epoch}")
            self._epoch = state.lease.epoch
        self._rules()
        if self.fair:
            self._disturbances()
            self._fencings()

    def _rules(self) -> None:
        """Guests that a strict rule keeps apart are given to different nodes, and never run on one."""
        guests = self.world.committed.guests
        given = [guests[name].status for name in self.apart if name in guests]
        homes = [
            status.node for status in given if status.phase != GUEST_PHASE_RECOVERING
        ]  # those are on their nodes no more
        if len(set(homes)) < len(homes):
            raise Broken(f"{' and '.join(self.apart)} are all given to {homes}, though a rule keeps them apart")
        for host in self.world.hosts.values():
            if len(host.agent.running.intersection(self.apart)) > 1:
                raise Broken(f"{' and '.join(self.apart)} run on {host.name}, though a rule keeps them apart")

    def _disturbances(self) -> None:
        """Note when a host, and when anything, was last not as it should be."""
        now = self.world.queue.now
        for name, host in self.world.hosts.items():
            up = host.powered and not host.frozen and not host.agent.hung and not host.agent.exit
            reached = all(self.world.reaches(name, other) for other in self.world.names)
            if not (up and reached):
                self._disturbed[name] = self._any = now

    def _fencings(self) -> None:
        """A host that was well for a lease and a takeover is not fenced: it could have proven itself."""
        now = self.world.queue.now
        for name, node in self.world.committed.nodes.items():
            before, state = self._states.get(name), node.status.state
            self._states[name] = state
            lost = state in (NODE_STATE_FENCING, NODE_STATE_FENCED) and before not in (
                NODE_STATE_FENCING,
                NODE_STATE_FENCED,
            )
            if not lost or before is None:
                continue
            away = max(self._disturbed[name], *(self._disturbed[voter] for voter in self.world.voters))
            if now - away > safe_after_ns(0, self.world.times) + TAKEOVER:
                raise Broken(f"{name} was {node.status.reason}, though nothing was wrong for {(now - away) / S:.1f} s")

    def _tick(self) -> None:
        self.look()
        now = self.world.queue.now
        for name, guest in self.world.committed.guests.items():
            if self.world.copies(name):
                self._ran[name] = now
                self._counters(name, guest, now)
                continue
            self._steady.pop(name, None)
            down = now - max(self._any, self._ran.get(name, 0))
            if guest.spec.power == POWER_ON and guest.status.ha.state != HA_STATE_ERROR and down > self.bound:
                raise Broken(f"{name} does not run {down / S:.1f} s after the last fault: {guest.status.reason}")
        self.world.queue.after(LOOK, self._tick)

    def _counters(self, name: str, guest: Guest, now: int) -> None:
        """Failures are forgotten once a guest has run for long, also by a manager that came meanwhile and counts from there."""
        since = self._steady.setdefault(name, now)
        quiet = now - max(since, self._any)
        ha = guest.status.ha
        if quiet > 2 * STEADY_S * S and (ha.restarts or ha.relocations or ha.failed_nodes):
            raise Broken(f"{name} has run for {quiet / S:.0f} s, and its failures are not forgotten")
