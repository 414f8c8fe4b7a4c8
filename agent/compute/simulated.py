"""Simulated guests: records in the node's run folder, so that they outlive the agent but not a power cut.

One JSON file a running guest, `<run_dir>/simulated/<guest>.json`: whoever counts the files of all nodes counts the
copies of a guest. Needs no privilege. Serves the simulated lab, whose nodes are plain processes.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from gugus.agent.v1 import guest_pb2, node_pb2

from agent.compute.definitions import DefinitionStore
from agent.compute.differences import Difference, differences
from agent.compute.hypervisor import (
    NO_FILES,
    AttachedDisk,
    AttachedNic,
    KillReport,
    MachineFiles,
    Observation,
    Progress,
)
from common.clock import boottime_ns
from common.config import AgentConfig
from common.errors import precondition
from common.files import read_json, remove_durably, write_json

DRIVER = "simulated"
START_DELAY_ENV = "GUGUS_SIMULATED_START_DELAY_MS"
"""Environment variable: how long a start takes, in milliseconds; 0 if unset."""

MOST_SPECS = 1024
"""Specs of running guests that are kept read."""

_FIXED = re.compile(
    r"virtual_machine\.(machine|cpu\.|memory\.|firmware|tpm|display|watchdog|serial|audio)"
    r"|disks\[.*\]\.settings\.(bus|cache|io_thread|serial|ssd)|nics\[.*\]\.settings\.(model|queues)"
)
"""What a simulated guest, like a real one, takes up at its next start only."""


class SimulatedHypervisor:
    """A driver as `agent.compute.hypervisor.Hypervisor` describes it."""

    name = DRIVER
    kinds = (guest_pb2.GUEST_KIND_VIRTUAL_MACHINE, guest_pb2.GUEST_KIND_CONTAINER)
    snapshots = disks = migration = access = None

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
        self,
        spec: guest_pb2.GuestSpec,
        disks: Sequence[AttachedDisk],
        nics: Sequence[AttachedNic],
        files: MachineFiles = NO_FILES,
    ) -> None:
        """Remember a guest."""
        self._definitions.save(spec, disks, nics, files)
        self._changed(spec.name)

    async def apply(self, name: str) -> Sequence[guest_pb2.PendingChange]:
        """Change the record of a running guest, but for what a real one takes up at its next start only."""
        record, wanted = self._record(name), self._definitions.get(name).spec
        if record is None:
            return ()
        waiting = _waiting(record, wanted)
        if not waiting:  # all or nothing is enough here
            self._write(name, record | {"spec": json_format.MessageToDict(wanted)})
        self._changed(name)
        return waiting

    async def start(self, name: str, generation: int) -> None:
        """Write the record of a running guest."""
        definition = self._definitions.get(name)
        if self._record(name) is not None:
            return
        await asyncio.sleep(self._start_delay_s)
        self._running.mkdir(parents=True, exist_ok=True)
        record = {
            "name": name,
            "generation": generation,
            "since_boottime_ns": boottime_ns(),
            "spec": json_format.MessageToDict(definition.spec),
        }
        self._write(name, record)
        self._changed(name)

    async def shutdown(self, name: str) -> None:
        """End a guest: a simulated one obeys at once."""
        await self.kill(name)

    async def kill(self, name: str) -> None:
        """Remove the record of a running guest."""
        if self._path(name).exists():
            remove_durably(self._path(name))
            self._changed(name)

    async def suspend(self, name: str) -> None:
        """Note that a guest is held."""
        self._write(name, self._running_record(name) | {"held": True})
        self._changed(name)

    async def resume(self, name: str) -> None:
        """Note that a guest is not held any more."""
        self._write(name, self._running_record(name) | {"held": False})
        self._changed(name)

    async def reset(self, name: str) -> None:
        """Begin the life of a guest anew."""
        self._write(name, self._running_record(name) | {"since_boottime_ns": boottime_ns()})
        self._changed(name)

    async def hibernate(self, name: str, path: Path, progress: Progress) -> None:
        """Move the record of a guest to a file."""
        if self._record(name) is None and await asyncio.to_thread(_is_memory, path, name):
            return
        record = self._running_record(name)
        write_json(path, record)
        progress(100, "memory written")
        await self.kill(name)

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
        wanted = {name: self._definitions.get(name).spec for name in stopped}
        return stopped | {name: _observation(record, wanted.get(name)) for name, record in records.items()}

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

    def _running_record(self, name: str) -> dict[str, Any]:
        self._definitions.get(name)
        record = self._record(name)
        if record is None:
            raise precondition("GUEST_NOT_RUNNING", f'guest "{name}" does not run.', remedy="Start it.", subject=name)
        return record

    def _write(self, name: str, record: dict[str, Any]) -> None:
        write_json(self._path(name), record)

    def _changed(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            loop.call_soon(callback, name)


def _observation(record: dict[str, Any], wanted: guest_pb2.GuestSpec | None) -> Observation:
    used_ns = max((boottime_ns() - int(record["since_boottime_ns"])) // 100, 0)  # one hundredth of a CPU: it is idle
    held = bool(record.get("held"))
    return Observation(
        guest_pb2.GUEST_STATE_PAUSED if held else guest_pb2.GUEST_STATE_RUNNING,
        pid=0,
        mode=DRIVER,
        generation=int(record["generation"]),
        cpu_time_ns=used_ns,
        pending=_waiting(record, wanted) if wanted is not None else (),
        usage=guest_pb2.GuestUsage(cpu_time_ns=used_ns, memory_bytes=wanted.memory_bytes if wanted else 0),
    )


def _is_memory(path: Path, name: str) -> bool:
    try:
        return bool(read_json(path).get("name") == name)
    except (OSError, ValueError, AttributeError):
        return False


def _waiting(record: dict[str, Any], wanted: guest_pb2.GuestSpec) -> tuple[guest_pb2.PendingChange, ...]:
    present = _spec(json.dumps(record.get("spec", {})))
    if not present.name:  # a record of another version
        return ()
    return tuple(_change(each) for each in differences(present, wanted) if _FIXED.match(each.field))


@lru_cache(maxsize=MOST_SPECS)
def _spec(text: str) -> guest_pb2.GuestSpec:
    """Return a record's spec, read once: it is looked at every other second. Not to be changed."""
    return json_format.Parse(text, guest_pb2.GuestSpec())


def _change(difference: Difference) -> guest_pb2.PendingChange:
    return guest_pb2.PendingChange(
        field=difference.field,
        present=difference.present,
        wanted=difference.wanted,
        reason="it cannot be changed while the guest runs",
    )


def create(config: AgentConfig) -> SimulatedHypervisor:
    """Make the driver for this node."""
    delay_ms = float(os.environ.get(START_DELAY_ENV, "0"))
    return SimulatedHypervisor(config.state_dir, config.run_dir, delay_ms / 1000)
