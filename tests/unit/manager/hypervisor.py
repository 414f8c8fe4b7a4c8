"""Simulated guests that do not always do what they are asked to."""

import asyncio
from dataclasses import replace
from pathlib import Path

from gugus.agent.v1.guest_pb2 import GUEST_END_UNSPECIFIED, GuestEnd

from agent.compute.hypervisor import Observation
from agent.compute.simulated import SimulatedHypervisor


class Hypervisor(SimulatedHypervisor):
    """The hypervisor of a node's folder. Guests end, ignore a shutdown, or take their time to start as they are told."""

    def __init__(self, node: Path) -> None:
        super().__init__(node / "agent", node / "run")
        self.obeys = True
        """Whether guests shut down when they are asked to."""
        self.may_start = asyncio.Event()
        self.may_start.set()
        """Starts wait for this."""
        self.asked: list[str] = []
        """What was done to guests, "start web" for example."""
        self._ends: dict[str, GuestEnd.ValueType] = {}

    async def start(self, name: str, generation: int) -> None:
        self.asked.append(f"start {name}")
        await self.may_start.wait()
        self._ends.pop(name, None)
        await super().start(name, generation)

    async def shutdown(self, name: str) -> None:
        self.asked.append(f"shutdown {name}")
        if self.obeys:
            await super().kill(name)

    async def kill(self, name: str) -> None:
        self.asked.append(f"kill {name}")
        await super().kill(name)

    async def reset(self, name: str) -> None:
        self.asked.append(f"reset {name}")
        await super().reset(name)

    async def observe_all(self) -> dict[str, Observation]:
        seen = await super().observe_all()
        return seen | {name: replace(seen[name], ended=how) for name, how in self._ends.items() if name in seen}

    async def end(self, name: str, how: GuestEnd.ValueType = GUEST_END_UNSPECIFIED) -> None:
        """Let a guest end by itself."""
        if how:
            self._ends[name] = how
        await super().kill(name)
