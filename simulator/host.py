"""A host: power, a clock of its own, an agent, and a manager if it is a voter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gugus.cluster.v1.node_pb2 import HOST_EXIT_POWER_OFF, HOST_EXIT_REBOOT

from simulator.agent import Agent
from simulator.clockwork import DriftingClock, S
from simulator.manager import Manager

if TYPE_CHECKING:
    from simulator.world import World


class Host:
    """One machine. What is done on it is not done while it is off, and later if it is frozen."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        spread = max(world.drift_ppm // 2 - 1, 0)
        ppm = -spread if name == world.names[0] else world.rng.choice([-spread, 0, spread])
        self.clock = DriftingClock(world.queue, world.rng.randrange(1000 * S), ppm)
        self.powered = False
        self.frozen = False
        self.watchdog = name not in world.witnesses
        self._held: list[Callable[[], None]] = []
        self._cuts = 0
        self.agent = Agent(self)
        self.manager = Manager(self)

    def power_on(self) -> None:
        """Be up at once."""
        if not self.powered:
            self.powered, self.frozen = True, False
            self.world.storage.heard(self)
            self.agent.boot()
            if self.name in self.world.voters:
                self.manager.begin()

    def boot(self) -> None:
        """Switch the power on: it is up after the time that a boot takes, unless the power is cut meanwhile."""
        cuts = self._cuts
        self.world.queue.after(self.world.setup.boot_ns, lambda: self.power_on() if cuts == self._cuts else None)

    def power_off(self) -> None:
        """Lose the power."""
        self._cuts += 1
        if self.powered:
            self.world.tell(f"node/{self.name}", "power off")
            self.powered, self.frozen, self._held = False, False, []
            self.world.storage.heard(self)
            self.agent.power_cut()
            self.manager.process += 1
            self.world.changed()

    def go_down(self, *, reboot: bool) -> None:
        """Go down in order, to boot again or not."""

        def down() -> None:
            self.power_off()
            if reboot:
                self.boot()

        if self.powered and not self.frozen and not self.agent.hung:
            self.world.tell(f"node/{self.name}", "goes down in order" + (", to boot again" if reboot else ""))
            self.agent.leave(HOST_EXIT_REBOOT if reboot else HOST_EXIT_POWER_OFF, down)

    def freeze(self) -> None:
        """Do nothing any more, as a host that hangs does; its watchdog goes on."""
        if self.powered:
            self.world.tell(f"node/{self.name}", "frozen")
            self.frozen = True
            self.world.storage.heard(self)

    def thaw(self) -> None:
        """Go on."""
        held, self._held, self.frozen = self._held, [], False
        self.world.storage.heard(self)
        self.world.rng.shuffle(held)
        for what in held:
            self.do(what)

    def do(self, what: Callable[[], None]) -> None:
        """Do something now; once thawed, if this host is frozen; never, if it is off."""
        if self.powered and self.frozen:
            self._held.append(what)
        elif self.powered:
            what()

    def every(self, period: int, alive: Callable[[], bool], what: Callable[[], None]) -> None:
        """Do something again and again, from some moment within a period on."""

        def again() -> None:
            if alive():
                what()
                self.world.queue.after(period, lambda: self.do(again))

        self.world.queue.after(self.world.rng.randrange(period), lambda: self.do(again))

    def after(self, delay: int, boot: int, what: Callable[[], None]) -> None:
        """Do something later, unless the host booted meanwhile."""
        self.world.queue.after(delay, lambda: self.do(lambda: what() if boot == self.agent.boots else None))
