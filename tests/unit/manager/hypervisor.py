"""Simulated guests that do not always do what they are asked to."""

import asyncio
from pathlib import Path

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

    async def start(self, name: str, generation: int) -> None:
        self.asked.append(f"start {name}")
        await self.may_start.wait()
        await super().start(name, generation)

    async def shutdown(self, name: str) -> None:
        self.asked.append(f"shutdown {name}")
        if self.obeys:
            await super().kill(name)

    async def kill(self, name: str) -> None:
        self.asked.append(f"kill {name}")
        await super().kill(name)

    async def end(self, name: str) -> None:
        """Let a guest end by itself."""
        await super().kill(name)
