"""An agent in the simulation: the real LeaseKeeper of agent.fencing in a shell that kills, reports, and is watched.

What lives on the disk survives a power cut: the highest epoch, generations, and the number of the last lapse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.fencing.lease import LeaseKeeper, Phase
from common.leases import KILL_BUDGET_MS
from manager.ha.node_machine import Beat
from tests.simulation.ha.clockwork import MS, S
from tests.simulation.ha.moves import Ends

if TYPE_CHECKING:
    from tests.simulation.ha.world import Host

TICK = 100 * MS
BOOT = 2 * S
KILL_BUDGET = KILL_BUDGET_MS * MS


class Agent:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = host.world
        self.epoch = 0
        self.generations: dict[str, int] = {}
        self.lapses = 0
        self.boots = 0
        self.running: set[str] = set()
        self.ends = Ends(self)
        self.target = self.world.rng.choice(self.world.names)

    @property
    def boot_id(self) -> str:
        return f"{self.host.name}-boot-{self.boots}"

    def boot(self) -> None:
        self.boots += 1
        self.keeper = LeaseKeeper(lapses=self.lapses)
        self.sequence = 0
        self.heard = self.host.clock.now()
        self.killing = False
        boot = self.boots
        self.host.every(TICK, lambda: boot == self.boots, self.tick)
        self.host.every(S, lambda: boot == self.boots, self.beat)
        self.watch(boot)

    def power_cut(self) -> None:
        self.running.clear()
        self.ends.power_cut()
        self.boots += 1

    def tick(self) -> None:
        if self.keeper.tick(self.host.clock.now()) is Phase.LAPSING and not self.killing:
            self.killing = True
            self.host.after(self.world.rng.randrange(0, KILL_BUDGET - 2 * TICK), self.boots, self.emptied)

    def emptied(self) -> None:
        self.running.clear()
        self.ends.killed()
        self.lapses += 1
        self.killing = False
        self.keeper.emptied(self.lapses)

    def watch(self, boot: int) -> None:
        """The watchdog: hardware, not stopped by a freeze; resets no later than lease end and kill budget."""
        if boot != self.boots or not self.host.powered:
            return
        deadline = self.keeper.deadline_ns + KILL_BUDGET
        leased = self.keeper.phase in (Phase.HELD, Phase.LAPSING) and self.keeper.deadline_ns > 0
        if leased and self.host.clock.now() >= deadline and (self.host.frozen or self.running):
            self.world.log(f"{self.host.name}: watchdog resets")
            self.host.power_off()
            self.world.queue.after(BOOT, self.host.power_on)
            return
        nearest = self.host.clock.real(deadline) if leased else 0
        when = nearest if nearest > self.world.queue.now else self.world.queue.now + TICK
        self.world.queue.at(min(when, self.world.queue.now + TICK), lambda: self.watch(boot))

    def beat(self) -> None:
        if self.host.clock.now() - self.heard > 2 * S:
            self.target = self.world.rng.choice(self.world.names)
            self.heard = self.host.clock.now()
        self.sequence += 1
        lapse = self.lapses if self.keeper.phase is Phase.LAPSED else None
        beat = Beat(0, self.boot_id, lapse, tuple(sorted(self.running)))
        sequence, boot, to, epoch = self.sequence, self.boots, self.target, self.epoch
        self.keeper.beat_sent(sequence, self.host.clock.now())
        self.world.send(
            self.host.name,
            to,
            f"beats-{boot}",
            lambda: self.world.hosts[to].manager.heard(self.host.name, boot, sequence, epoch, beat),
        )

    def answered(self, boot: int, sequence: int, lease_ms: int, fenced: bool, epoch: int) -> None:
        if boot != self.boots or (epoch < self.epoch and self.world.rules.epochs):
            return
        self.heard = self.host.clock.now()
        self.epoch = max(self.epoch, epoch)
        self.keeper.beat_answered(sequence, lease_ms, fenced=fenced, now_ns=self.host.clock.now())

    def redirected(self, boot: int, to: str) -> None:
        if boot == self.boots:
            self.target, self.heard = to, self.host.clock.now()

    def start(self, guest: str, generation: int, epoch: int) -> None:
        rules = self.world.rules
        if epoch < self.epoch and rules.epochs:
            return
        if generation < self.generations.get(guest, 0) and rules.generations:
            return
        self.epoch = max(self.epoch, epoch)
        if not self.keeper.holds(self.host.clock.now()) and rules.start_needs_lease:
            return
        self.generations[guest] = max(generation, self.generations.get(guest, 0))
        self.running.add(guest)
        self.world.check_copies(guest)
