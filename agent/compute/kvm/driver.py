"""KVM driver: virtual machines through libvirt, as transient domains.

Invariant: libvirt knows a guest only while it runs; how it is to be run is known here alone, so there are never two
definitions and nothing starts by itself. The emergency kill needs neither libvirtd nor its connection.
"""

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import grpc
import libvirt
from gugus.agent.v1 import guest_pb2, node_pb2

from agent.compute.definitions import Definition, DefinitionStore
from agent.compute.hypervisor import EMERGENCY_KILL_TIMEOUT_S, AttachedDisk, AttachedNic, KillReport, Observation
from agent.compute.kvm import domain_xml, qemu, seed
from agent.compute.kvm.accelerator import Accelerator, find
from agent.compute.kvm.caching import cache_mode
from agent.compute.kvm.connection import REFUSED, Connection
from agent.compute.kvm.observations import Marks, Seen, look
from agent.compute.processes import ProcessRecord, RecordStore, kill_all
from common.config import AgentConfig
from common.errors import GugusError, internal, not_found, precondition
from common.logs import get_logger

DRIVER = "kvm"
START_TIMEOUT_S = 60.0
"""libvirtd asks QEMU for its abilities at the first start after an update, which can take a while."""

DESTROY_TIMEOUT_S = 5.0
_CRASH_DETAILS = frozenset({libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED})
_log = get_logger("kvm")


class KvmHypervisor:
    """A driver as `agent.compute.hypervisor.Hypervisor` describes it."""

    name = DRIVER
    kinds = (guest_pb2.GUEST_KIND_VIRTUAL_MACHINE,)

    def __init__(
        self,
        uri: str,
        state_dir: Path,
        run_dir: Path,
        find_accelerator: Callable[[Path], Awaitable[Accelerator]] = find,
    ) -> None:
        self._uri = uri
        self._state = state_dir / DRIVER
        self._definitions = DefinitionStore(self._state / "definitions")
        self._records = RecordStore(run_dir / DRIVER)
        self._find_accelerator = find_accelerator
        self._accelerator: Accelerator | None = None
        self._connection: Connection | None = None
        self._marks = Marks()
        self._callbacks: list[Callable[[str], None]] = []
        self._ends: dict[str, str] = {}
        """Guests whose last run ended badly, and how."""
        self._killed: set[str] = set()
        self._stopping: set[str] = set()
        self._starting: set[str] = set()
        """Starts that libvirtd may still be busy with, even if nobody waits for them any more."""
        self._starting_lock = threading.Lock()

    async def open(self) -> None:
        """Connect, and adopt the domains of ours that run."""
        await asyncio.to_thread(self._make_folders)
        self._connection = Connection(self._uri, self._on_lifecycle, lambda: self._changed(""))
        await self._connection.open()
        with contextlib.suppress(GugusError):  # it is down: that is told when somebody asks
            for name in await self._look():
                await self._remember_process(name)

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            await self._connection.close()

    async def probe(self) -> node_pb2.HypervisorFacts:
        """Tell how virtual machines run here."""
        accelerator = await self._how()
        reasons = [accelerator.reason]
        ready = bool(accelerator.mode)
        try:
            await self._call(lambda connection: connection.getLibVersion())
        except GugusError as error:
            ready, reasons = False, [str(error), *reasons]
        if problem := await asyncio.to_thread(_hidden_from_qemu, self._state):
            ready, reasons = False, [problem, *reasons]
        return node_pb2.HypervisorFacts(
            driver=DRIVER, kinds=self.kinds, ready=ready, mode=accelerator.mode, reason=" ".join(reasons)
        )

    async def define(
        self, spec: guest_pb2.GuestSpec, disks: Sequence[AttachedDisk], nics: Sequence[AttachedNic]
    ) -> None:
        """Remember a guest and make its seed."""
        definition = Definition(spec, tuple(disks), tuple(nics))
        domain_xml.check(definition)
        await seed.ensure(spec, self._seeds(spec.name))
        known = spec.name in self._definitions.names() and self._definitions.get(spec.name) == definition
        if not known:
            await asyncio.to_thread(self._definitions.save, spec, disks, nics)
            self._changed(spec.name)

    async def start(self, name: str, generation: int) -> None:
        """Create the domain."""
        definition = self._definitions.get(name)
        accelerator = await self._how()
        if not accelerator.mode:
            raise _start_failed(name, accelerator.reason, "Install it.")
        run = domain_xml.Run(
            generation=generation,
            mode=accelerator.mode,
            domain_type=accelerator.domain_type,
            seed=await seed.ensure(definition.spec, self._seeds(name)),
            console=self._console(name),
            caches=await asyncio.to_thread(lambda: {disk.path: cache_mode(disk.path) for disk in definition.disks}),
        )
        xml = domain_xml.build(definition, run)
        self._ends.pop(name, None)
        self._killed.discard(name)
        self._stopping.discard(name)
        try:
            await self._call(lambda connection: self._create(connection, name, xml), timeout_s=START_TIMEOUT_S)
        except GugusError as error:
            if error.reason != REFUSED:
                raise
            remedy = "Read its words above; `journalctl -u libvirtd` and /var/log/libvirt/qemu have more."
            raise _start_failed(name, error.message, remedy) from error
        await self._remember_process(name)
        self._changed(name)

    async def shutdown(self, name: str) -> None:
        """Press the power button."""
        if await self._on_domain(name, lambda domain: domain.shutdown()):
            self._stopping.add(name)
            self._changed(name)

    async def kill(self, name: str) -> None:
        """End the domain at once, by its process if libvirtd does not do it."""
        self._killed.add(name)
        try:
            await self._on_domain(name, lambda domain: domain.destroy(), timeout_s=DESTROY_TIMEOUT_S)
            if await self._process(name) is None:
                self._changed(name)
                return
        except GugusError as error:
            _log.warning("libvirt did not end the guest", guest=name, error=str(error))
        report = await self.emergency_kill([name])
        if name in report.alive:
            raise precondition(
                "GUEST_NOT_KILLED",
                f'guest "{name}": {report.alive[name]}.',
                remedy="Look at its process.",
                subject=name,
            )
        self._changed(name)

    async def undefine(self, name: str) -> None:
        """Forget a guest, with its seed and its console log."""
        if await self._process(name) is not None or name in await self._look():
            raise precondition("GUEST_RUNNING", f'guest "{name}" is running.', remedy="Stop it first.", subject=name)
        await asyncio.to_thread(shutil.rmtree, self._seeds(name), True)
        for file in [self._console(name), *self._console(name).parent.glob(f"{name}.log.*")]:
            file.unlink(missing_ok=True)
        await asyncio.to_thread(self._records.remove, name)
        await asyncio.to_thread(self._definitions.remove, name)
        self._ends.pop(name, None)
        self._changed(name)

    async def observe(self, name: str) -> Observation | None:
        """Tell what a guest does."""
        return (await self.observe_all()).get(name)

    async def observe_all(self) -> dict[str, Observation]:
        """Tell what all guests do."""
        seen = await self._look()
        result = {name: self._at_rest(name) for name in self._definitions.names() if name not in seen}
        for name, domain in seen.items():
            process = await self._process(name)
            result[name] = self._in_motion(domain).observation(process.pid if process else 0)
        return result

    def watch(self, callback: Callable[[str], None]) -> None:
        """Call back after each change."""
        self._callbacks.append(callback)

    async def console_log(self, name: str, max_bytes: int) -> bytes:
        """Return the end of the serial console's log."""
        if name not in self._definitions.names() and not self._console(name).exists():
            raise not_found("guest", name, remedy="It is not defined on this node.")
        return await asyncio.to_thread(_tail, self._console(name), max_bytes)

    async def emergency_kill(self, names: Collection[str]) -> KillReport:
        """Kill the QEMU processes."""
        self._killed.update(names)
        found, alive = self._find(names)
        alive |= await kill_all(found, EMERGENCY_KILL_TIMEOUT_S)
        with self._starting_lock:
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
                process = qemu.process_of(name, self._records, self._uid(name), running)
            except OSError as error:
                process, untold[name] = None, f"its process cannot be looked at ({error.strerror})"
            if process is not None:
                found[name] = process
            elif blind:
                untold.setdefault(name, blind)
        return found, untold

    def _create(self, connection: Any, name: str, xml: str) -> None:
        """Create a domain, in a thread of libvirt's pool."""
        with self._starting_lock:
            self._starting.add(name)
        try:
            for domain in connection.listAllDomains():
                if domain.name() == name:
                    if self._marks.of(domain) is None:
                        raise _start_failed(name, "libvirt has another domain of this name", "Rename one of them.")
                    return
            connection.createXML(xml, 0)
        finally:
            with self._starting_lock:
                self._starting.discard(name)

    async def _call(self, function: Callable[[Any], Any], **limits: float) -> Any:
        if self._connection is None:
            raise RuntimeError("open() comes first")
        return await self._connection.call(function, **limits)

    async def _on_domain(self, name: str, act: Callable[[Any], object], **limits: float) -> bool:
        """Do something to a running domain of ours; False when there is none."""

        def find_and_act(connection: Any) -> bool:
            try:
                domain = connection.lookupByName(name)
                if self._marks.of(domain) is None:
                    return False
                act(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                    return False  # it has ended by itself
                raise
            return True

        return bool(await self._call(find_and_act, **limits))

    async def _look(self) -> dict[str, Seen]:
        found: dict[str, Seen] = await self._call(lambda connection: look(connection, self._marks))
        return found

    async def _how(self) -> Accelerator:
        if self._accelerator is None:
            self._accelerator = await self._find_accelerator(self._state / "accelerator.json")
        return self._accelerator

    def _at_rest(self, name: str) -> Observation:
        if reason := self._ends.get(name, ""):
            return Observation(guest_pb2.GUEST_STATE_CRASHED, reason=reason)
        return Observation(guest_pb2.GUEST_STATE_STOPPED)

    def _in_motion(self, seen: Seen) -> Seen:
        if seen.name in self._stopping and seen.state == guest_pb2.GUEST_STATE_RUNNING:
            return Seen(seen.name, seen.mark, guest_pb2.GUEST_STATE_STOPPING, "Asked to shut down.")
        return seen

    async def _process(self, name: str) -> ProcessRecord | None:
        try:
            return await asyncio.to_thread(qemu.process_of, name, self._records, self._uid(name))
        except OSError as error:
            raise internal("PROCESS_UNTOLD", f'the process of guest "{name}" cannot be looked at: {error}.') from error

    async def _remember_process(self, name: str) -> None:
        process = await self._process(name)
        if process is not None:
            await asyncio.to_thread(self._records.save, name, process)

    def _on_lifecycle(self, name: str, event: int, detail: int) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._stopping.discard(name)
            if detail in _CRASH_DETAILS and name not in self._killed:
                self._ends[name] = "QEMU ended by itself with an error; see /var/log/libvirt/qemu."
        self._changed(name)

    def _changed(self, name: str) -> None:
        for callback in self._callbacks:
            asyncio.get_running_loop().call_soon(callback, name)

    def _uid(self, name: str) -> str:
        try:
            return self._definitions.get(name).spec.uid
        except Exception:  # unknown, or of another version: other proofs remain, and a kill must not end here
            return ""

    def _seeds(self, name: str) -> Path:
        return self._state / "seeds" / name

    def _console(self, name: str) -> Path:
        return self._state / "console" / f"{name}.log"

    def _make_folders(self) -> None:
        for folder in (self._state, self._state / "seeds", self._state / "console", self._state / "definitions"):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(seed.FOLDER_MODE)


def _start_failed(name: str, why: str, remedy: str) -> GugusError:
    return GugusError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "GUEST_START_FAILED",
        f'guest "{name}" does not start: {why.rstrip(".")}.',
        remedy=remedy,
        metadata={"subject": name},
    )


def _tail(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - max_bytes, 0))
            return file.read(max_bytes)
    except FileNotFoundError:  # it never ran here
        return b""


def _hidden_from_qemu(folder: Path) -> str:
    """Return which folder keeps QEMU, which libvirt runs as a user of its own, from the seeds; "" if none does."""
    for part in (folder, *folder.parents):
        if part.exists() and not part.stat().st_mode & 0o001:
            return f"{part} cannot be entered by QEMU's user; `chmod o+x {part}` repairs that."
    return ""


def create(config: AgentConfig) -> KvmHypervisor:
    """Make the driver for this node."""
    return KvmHypervisor(config.libvirt_uri, config.state_dir, config.run_dir)
