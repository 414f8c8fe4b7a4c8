"""What is seen of a container: its state and what it uses, from what is known and a few reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gugus.agent.v1 import guest_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import Observation
from agent.compute.lxc import live, processes, usage
from agent.compute.lxc.runs import Run
from agent.compute.processes import ProcessRecord

_ENDS = {
    "": guest_pb2.GUEST_END_UNSPECIFIED,
    "poweroff": guest_pb2.GUEST_END_POWEROFF,
    "reboot": guest_pb2.GUEST_END_REBOOT,
    "crash": guest_pb2.GUEST_END_CRASH,
}

HELD = "held by suspend"
Network = Mapping[str, list[int]]
Pending = Sequence[guest_pb2.PendingChange]


@dataclass(frozen=True, slots=True)
class _Known:
    """Where the numbers of one run are; found once a run."""

    init: ProcessRecord
    disks: tuple[str, ...]
    folders: Mapping[str, Path]
    devices: Mapping[str, live.Device]


class Looker:
    """Looks at containers."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def look(
        self, name: str, run: Run | None, present: Definition | None, pending: Pending, network: Network
    ) -> Observation:
        """Return what is seen of a container that is defined, or runs. Raises OSError when that cannot be told."""
        if run is None or (run.init is None and run.ended):
            return Observation(guest_pb2.GUEST_STATE_STOPPED, reason=run.reason if run is not None else "")
        if run.init is not None and run.alive:
            return self._running(name, run, run.init, present, pending, network)
        self._known.pop(name, None)
        if not run.ended:
            words = "its init has ended; liblxc cleans up or reboots it" if run.init else "it is being started"
            return Observation(guest_pb2.GUEST_STATE_STOPPING, mode=run.mode, reason=words, generation=run.generation)
        crashed = run.end == "crash"
        state = guest_pb2.GUEST_STATE_CRASHED if crashed else guest_pb2.GUEST_STATE_STOPPED
        return Observation(state, reason=run.reason, ended=_ENDS[run.end])

    def forget(self, name: str) -> None:
        """Forget a container."""
        self._known.pop(name, None)

    def _running(
        self,
        name: str,
        run: Run,
        init: ProcessRecord,
        present: Definition | None,
        pending: Pending,
        network: Network,
    ) -> Observation:
        known = self._of(name, init, present)
        held = _is_held(known.folders)
        state = guest_pb2.GUEST_STATE_STOPPING if run.asked else guest_pb2.GUEST_STATE_RUNNING
        used = None
        if known.folders:
            used = usage.read(usage.Sources(known.folders, known.devices, run.interfaces), network)
        return Observation(
            guest_pb2.GUEST_STATE_PAUSED if held else state,
            pid=init.pid,
            mode=run.mode,
            reason="; ".join(filter(None, [HELD if held else "", run.note])),
            generation=run.generation,
            addresses=processes.addresses(init.pid),
            cpu_time_ns=used.cpu_time_ns if used else 0,
            memory_used_bytes=used.memory_bytes if used else 0,
            pending=tuple(pending),
            usage=used,
        )

    def _of(self, name: str, init: ProcessRecord, present: Definition | None) -> _Known:
        known, disks = self._known.get(name), present.disks if present is not None else ()
        names = tuple(disk.spec.name for disk in disks)
        if known is None or known.init != init or known.disks != names:
            folders = processes.folders_by_controller(init.pid, name)
            known = _Known(init, names, folders, live.devices_of(disks))
            self._known[name] = known
        return known


def _is_held(folders: Mapping[str, Path]) -> bool:
    try:
        if (folder := folders.get("freezer")) is not None:
            return (folder / "freezer.state").read_text().strip() != "THAWED"
        unified = folders.get(processes.UNIFIED)
        return unified is not None and (unified / "cgroup.freeze").read_text().strip() == "1"
    except OSError:
        return False
