"""The kill that must always work: by processes alone, without libvirtd, from any thread's loop."""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator

from agent.compute.hypervisor import EMERGENCY_KILL_TIMEOUT_S, KillReport
from agent.compute.kvm import qemu
from agent.compute.processes import ProcessRecord, RecordStore, kill_all


class Emergency:
    """Kills QEMUs, and knows which may be about to appear. uid_of: UUID of a guest, "" when that is not known."""

    def __init__(self, records: RecordStore, uid_of: Callable[[str], str]) -> None:
        self._records, self._uid_of = records, uid_of
        self._starting: set[str] = set()
        """Starts that libvirtd may still be busy with, even if nobody waits for them any more."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def start_of(self, name: str) -> Iterator[None]:
        """Hold while libvirt is about to start a guest, in the thread that waits for it."""
        with self._lock:
            self._starting.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._starting.discard(name)

    async def kill(self, names: Collection[str]) -> KillReport:
        """Kill the QEMU processes of guests; those that cannot be proven gone are told as alive. Never raises."""
        found, alive = self._find(names)
        alive |= await kill_all(found, EMERGENCY_KILL_TIMEOUT_S)
        with self._lock:
            pending = self._starting & (set(names) - found.keys())
        alive |= dict.fromkeys(pending, "libvirtd may be about to start it")
        return KillReport(frozenset(names) - alive.keys(), alive)

    def _find(self, names: Collection[str]) -> tuple[dict[str, ProcessRecord], dict[str, str]]:
        """Return the processes of guests, and of which guests it cannot be told whether they have one, and why."""
        found: dict[str, ProcessRecord] = {}
        untold: dict[str, str] = {}
        running, blind = dict[str, list[int]](), ""
        try:
            running = qemu.processes()
        except OSError as error:
            blind = f"the host's processes cannot be listed ({error.strerror})"
        for name in names:
            try:
                process = qemu.process_of(name, self._records, self._uid_of(name), running)
            except OSError as error:
                process, untold[name] = None, f"its process cannot be looked at ({error.strerror})"
            if process is not None:
                found[name] = process
            elif blind:
                untold.setdefault(name, blind)
        return found, untold
