"""Simulated guests: records in the node's run folder, so that they outlive the agent but not a power cut.

One JSON file a running guest, `<run_dir>/simulated/<guest>.json`: whoever counts the files of all nodes counts the
copies of a guest. Needs no privilege. Serves the simulated lab, whose nodes are plain processes.
"""

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from gugus.agent.v1 import guest_pb2, node_pb2

from agent.compute.definitions import DefinitionStore
from agent.compute.hypervisor import AttachedDisk, AttachedNic, KillReport, Observation
from common.clock import boottime_ns
from common.config import AgentConfig
from common.errors import precondition
from common.files import read_json, remove_durably, write_json

DRIVER = "simulated"
START_DELAY_ENV = "GUGUS_SIMULATED_START_DELAY_MS"
"""Environment variable: how long a start takes, in milliseconds; 0 if unset."""


class SimulatedHypervisor:
    """A driver as `agent.compute.hypervisor.Hypervisor` describes it."""

    name = DRIVER
    kinds = (guest_pb2.GUEST_KIND_VIRTUAL_MACHINE, guest_pb2.GUEST_KIND_CONTAINER)

    def __init__(self, state_dir: Path, run_dir: Path, start_delay_s: float = 0.0) -> None:
        self._definitions = DefinitionStore(state_dir / DRIVER)
        self._running = run_dir / DRIVER
        self._start_delay_s = start_delay_s
        self._callbacks: list[Callable[[str], None]] = []

    async def open(self) -> None:
        """Make the folder of running guests."""
        self._running.mkdir(parents=True, exist_ok=True)

    async def close(self) -> None:
        """Leave everything as it is."""

    async def probe(self) -> node_pb2.HypervisorFacts:
        """Tell that guests are simulated here."""
        reason = "Guests are records in a folder; nothing is executed."
        return node_pb2.HypervisorFacts(driver=DRIVER, kinds=self.kinds, ready=True, mode=DRIVER, reason=reason)

    async def define(
        self, spec: guest_pb2.GuestSpec, disks: Sequence[AttachedDisk], nics: Sequence[AttachedNic]
    ) -> None:
        """Remember a guest."""
        self._definitions.save(spec, disks, nics)
        self._changed(spec.name)

    async def start(self, name: str, generation: int) -> None:
        """Write the record of a running guest."""
        self._definitions.get(name)
        if self._record(name) is not None:
            return
        await asyncio.sleep(self._start_delay_s)
        self._running.mkdir(parents=True, exist_ok=True)
        record = {"name": name, "generation": generation, "since_boottime_ns": boottime_ns()}
        write_json(self._path(name), record)
        self._changed(name)

    async def shutdown(self, name: str) -> None:
        """End a guest: a simulated one obeys at once."""
        await self.kill(name)

    async def kill(self, name: str) -> None:
        """Remove the record of a running guest."""
        if self._path(name).exists():
            remove_durably(self._path(name))
            self._changed(name)

    async def undefine(self, name: str) -> None:
        """Forget a guest."""
        if self._record(name) is not None:
            raise precondition("GUEST_RUNNING", f'guest "{name}" is running.', remedy="Stop it first.", subject=name)
        self._definitions.remove(name)
        self._changed(name)

    async def observe(self, name: str) -> Observation | None:
        """Tell what a guest does."""
        return (await self.observe_all()).get(name)

    async def observe_all(self) -> dict[str, Observation]:
        """Tell what all guests do."""
        stopped = {name: Observation(guest_pb2.GUEST_STATE_STOPPED) for name in self._definitions.names()}
        names = [path.stem for path in self._running.glob("[!.]*.json")]
        records = {name: record for name in names if (record := self._record(name)) is not None}
        return stopped | {name: _observation(record) for name, record in records.items()}

    def watch(self, callback: Callable[[str], None]) -> None:
        """Call back after each change that this process makes."""
        self._callbacks.append(callback)

    async def console_log(self, name: str, max_bytes: int) -> bytes:
        """Return what a simulated guest would say."""
        self._definitions.get(name)
        record = self._record(name)
        line = f"{name}: generation {record['generation']}\n" if record else ""
        return line.encode()[-max_bytes:]

    async def emergency_kill(self, names: Collection[str]) -> KillReport:
        """Remove the records."""
        alive: dict[str, str] = {}
        for name in names:
            try:
                await self.kill(name)
            except OSError as error:
                alive[name] = f"its record cannot be removed: {error.strerror}"
        return KillReport(frozenset(names) - alive.keys(), alive)

    def _path(self, name: str) -> Path:
        return self._running / f"{name}.json"

    def _record(self, name: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = read_json(self._path(name))
        except FileNotFoundError:
            return None
        return value

    def _changed(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            loop.call_soon(callback, name)


def _observation(record: dict[str, Any]) -> Observation:
    used_ns = boottime_ns() - int(record["since_boottime_ns"])
    return Observation(
        guest_pb2.GUEST_STATE_RUNNING,
        pid=0,
        mode=DRIVER,
        generation=int(record["generation"]),
        cpu_time_ns=max(used_ns // 100, 0),  # one hundredth of a CPU: an idle guest
    )


def create(config: AgentConfig) -> SimulatedHypervisor:
    """Make the driver for this node."""
    delay_ms = float(os.environ.get(START_DELAY_ENV, "0"))
    return SimulatedHypervisor(config.state_dir, config.run_dir, delay_ms / 1000)
