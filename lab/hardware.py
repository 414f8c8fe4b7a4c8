"""The watchdog hardware of a real lab: one process that counts down for every node and resets the one that stops
feeding.

Invariant: a node that was armed and then feeds no more loses its power within its timeout, whatever runs or hangs in
it; a node that was switched off or reset since it was armed is left alone, for its hardware lost the countdown with the
power.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab import events, machine
from lab.container import Container
from lab.plan import LabPlan
from lab.service import run
from lab.timer import Timer

#: Seconds between two looks at deadlines and for new nodes: the grain of the hardware.
TICK_SECONDS = 0.05
_PIPE_BYTES = 65536


@dataclass
class Device:
    """The watchdog of one node. ``boot``: the power-on that armed it."""

    container: Container
    pipe: int
    inode: int
    timer: Timer = field(default_factory=Timer)
    boot: int = 0

    @classmethod
    def open(cls, container: Container) -> Device:
        """The device behind the node's pipe. Open for writing as well, so that the node's end may come and go."""
        pipe = os.open(container.node.watchdog, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return cls(container, pipe, os.fstat(pipe).st_ino)

    def read(self, log: Path) -> None:
        """Take in what the node wrote."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.pipe, _PIPE_BYTES)
        boot = self.container.boots
        if boot != self.boot:
            self.timer, self.boot = self.timer.disarmed(), boot
        armed = self.timer.deadline is not None
        self.timer = self.timer.receive(data, time.monotonic())
        name = self.container.node.name
        if not armed and self.timer.deadline is not None:
            events.append(log, name, "watchdog-armed", timeout=self.timer.timeout)
        if armed and self.timer.deadline is None:
            events.append(log, name, "watchdog-disarmed")

    def check(self, plan: LabPlan) -> None:
        """Reset the node when its time is up."""
        if not self.timer.expired(time.monotonic()):
            return
        self.timer = self.timer.disarmed()
        if self.container.on and self.container.boots == self.boot:
            threading.Thread(target=reset, args=(plan, self.container, self.boot), daemon=True).start()


def reset(plan: LabPlan, container: Container, boot: int) -> None:
    """Cut the node's power and switch it on again, unless somebody did since it was armed."""
    node = container.node
    with machine.locked(node.folder / "lock"):
        if not container.on or container.boots != boot:
            return
        events.append(plan.log, node.name, "watchdog-reset")
        container.power_off()
        container.power_on()
        events.append(plan.log, node.name, "power-on", boot=container.boots)


def serve(plan: LabPlan) -> None:
    """Count down for every node of ``plan`` for ever."""
    devices: dict[str, Device] = {}
    while True:
        for node in plan.nodes():
            with contextlib.suppress(FileNotFoundError):
                known = devices.get(node.name)
                if known is None or known.inode != node.watchdog.stat().st_ino:
                    devices[node.name] = Device.open(Container(plan, node))
                    if known is not None:
                        os.close(known.pipe)
        by_pipe = {device.pipe: device for device in devices.values()}
        readable, _, _ = select.select(list(by_pipe), [], [], TICK_SECONDS)
        for pipe in readable:
            by_pipe[pipe].read(plan.log)
        for device in devices.values():
            device.check(plan)


def main() -> None:
    """Run as ``python -m lab.hardware --lab NAME --state FOLDER``."""
    run("lab.hardware", lambda plan, _: serve(plan))


if __name__ == "__main__":
    main()
