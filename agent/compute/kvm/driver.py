"""KVM driver: virtual machines through libvirt, as transient domains.

Invariant: libvirt knows a guest only while it runs; how it is to be run is known here alone, so there are never two
definitions and nothing starts by itself. The emergency kill needs neither libvirtd nor its connection.
"""

import asyncio
import contextlib
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
from gugus.agent.v1 import guest_pb2, node_pb2

from agent.compute.definitions import Definition, DefinitionStore
from agent.compute.hypervisor import (
    NO_FILES,
    AttachedDisk,
    AttachedNic,
    KillReport,
    MachineFiles,
    Observation,
    Progress,
)
from agent.compute.kvm import firmware, onlining, power, qemu, seed, setup_key, start, validity
from agent.compute.kvm.abilities import Abilities
from agent.compute.kvm.accelerator import BOOT_ID, Accelerator, find
from agent.compute.kvm.access import KvmAccess
from agent.compute.kvm.addresses import Addresses
from agent.compute.kvm.balloons import Balloons
from agent.compute.kvm.connection import REFUSED
from agent.compute.kvm.disks import KvmDisks
from agent.compute.kvm.domains import LONG_CALLS, Domains
from agent.compute.kvm.emergency import Emergency
from agent.compute.kvm.ends import NEWS_S, Ends
from agent.compute.kvm.folders import Folders, tail
from agent.compute.kvm.guest_agent import GuestAgent
from agent.compute.kvm.live import Live
from agent.compute.kvm.migration import KvmMigration
from agent.compute.kvm.observations import Seen
from agent.compute.kvm.ownership import give
from agent.compute.kvm.snapshots import KvmSnapshots
from agent.compute.kvm.usage import Usage
from agent.compute.kvm.xml.domain import build
from agent.compute.kvm.xml.mark import Mark
from agent.compute.kvm.xml.ownership import settled_files
from agent.compute.kvm.xml.run import Run
from agent.compute.processes import ProcessRecord, RecordStore
from agent.leases.claim import Claims, claim_of
from common.config import AgentConfig
from common.errors import GugusError, internal, not_found, precondition
from common.logs import get_logger

DRIVER = "kvm"
START_TIMEOUT_S = 60.0
"""libvirtd asks QEMU for its abilities at the first start after an update, which can take a while."""

DESTROY_TIMEOUT_S = 5.0
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
        self.state = state_dir / DRIVER
        self._callbacks: list[Callable[[str], None]] = []
        self._folders = Folders(self.state)
        self.definitions = DefinitionStore(self._folders.definitions)
        self.domains = Domains(uri)
        boot_id = BOOT_ID.read_text().strip()
        self._records = RecordStore(run_dir / DRIVER)
        self.snapshots = KvmSnapshots(self.domains, self)
        self.disks = KvmDisks(self.domains)
        self.migration = KvmMigration(self)
        self.access = KvmAccess(self.domains.call, run_dir / DRIVER / "frozen")
        self._agent = GuestAgent(self.domains.call)
        self._find_accelerator = find_accelerator
        self._accelerator: Accelerator | None = None
        self._abilities = Abilities(self.domains, self.state / "abilities.json", boot_id)
        self._ends = Ends(self._folders.ends, boot_id)
        self._live = Live(self.domains, start.CGROUP_V2.exists())
        self._usage = Usage(self.domains)
        self._balloons = Balloons(self.domains, self.definitions, self._usage)
        self._addresses = Addresses(self.domains, self.definitions, self._changed)
        self._background: set[asyncio.Task[None]] = set()
        self._beginning: set[str] = set()
        self._killed: set[str] = set()
        self._stopping: set[str] = set()
        self._asked: set[str] = set()
        self._claims = Claims()
        self._emergency = Emergency(self._records, self._uid)

    async def open(self) -> None:
        """Connect, and adopt the domains of ours that run."""
        await asyncio.to_thread(self._folders.make)
        await self.domains.open(self._on_lifecycle, self._ends.reboots, lambda: self._changed(""))
        with contextlib.suppress(GugusError):  # it is down: that is told when somebody asks
            running = await self.domains.look()
            await asyncio.to_thread(self._ends.load, frozenset(running))
            for name in running:
                await self._remember_process(name)
        await self.access.open()
        for work in (self._finish(), self._usage.run(), self._balloons.run(), self._addresses.run()):
            self._begin(work)

    async def close(self) -> None:
        """Disconnect."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._abilities.close()
        await self.access.close()
        await self.domains.close()

    async def probe(self) -> node_pb2.HypervisorFacts:
        """Tell how virtual machines run here."""
        accelerator = await self._how()
        reasons = [accelerator.reason]
        ready = bool(accelerator.mode)
        try:
            await self.domains.call(lambda connection: connection.getLibVersion())
        except GugusError as error:
            ready, reasons = False, [str(error), *reasons]
        if problem := await asyncio.to_thread(self._folders.hidden_from_qemu):
            ready, reasons = False, [problem, *reasons]
        facts = node_pb2.HypervisorFacts(
            driver=DRIVER, kinds=self.kinds, ready=ready, mode=accelerator.mode, reason=" ".join(reasons)
        )
        self._abilities.begin(accelerator)
        self._abilities.tell(facts)
        return facts

    async def define(
        self,
        spec: guest_pb2.GuestSpec,
        disks: Sequence[AttachedDisk],
        nics: Sequence[AttachedNic],
        files: MachineFiles = NO_FILES,
    ) -> None:
        """Remember a guest and make its seed."""
        definition = Definition(spec, tuple(disks), tuple(nics), files)
        validity.check(definition)
        await seed.ensure(spec, self._folders.seeds(spec.name))
        known = spec.name in self.definitions.names() and self.definitions.get(spec.name) == definition
        if not known:
            await asyncio.to_thread(self.definitions.save, spec, disks, nics, files)
            self._changed(spec.name)

    async def apply(self, name: str) -> Sequence[guest_pb2.PendingChange]:
        """Change the running domain."""
        before = await self.domains.mark(name)
        left = await self._live.apply(self.definitions.get(name))
        after = await self.domains.mark(name)
        if before and after and onlining.has_grown(before.running, after.running):
            self._begin(onlining.online(self._agent, name))
        self._usage.changed(name)
        self._changed(name)
        return left

    async def start(self, name: str, generation: int) -> None:
        """Create the domain, or take it up from its memory."""
        definition = self.definitions.get(name)
        run = await start.prepare(definition, generation, await self._how(), self._folders)
        async with self._claimed(name, generation):
            if not await self._take_up(definition, run):
                await self._run_domain(name, build(definition, run))
        if definition.spec.virtual_machine.boot_into_setup:
            self._begin(setup_key.press(self.domains, name, uefi=run.firmware is not None))

    async def run_domain(self, name: str, xml: str, generation: int, *, paused: bool = False) -> None:
        """Create a domain; a running one is left alone. Raises GUEST_START_FAILED, DISK_IN_USE, HYPERVISOR_DOWN."""
        async with self._claimed(name, generation):
            await self._run_domain(name, xml, paused=paused)

    @contextlib.asynccontextmanager
    async def _claimed(self, name: str, generation: int) -> AsyncIterator[None]:
        """Claim the disks of a guest that does not run here yet. Raises DISK_IN_USE, STALE_GENERATION, LEASE_UNUSABLE."""
        if await self.domains.mark(name) is not None:
            yield
            return
        async with self._claims.during(claim_of(self.definitions.get(name), generation)):
            yield

    async def _run_domain(self, name: str, xml: str, *, paused: bool = False) -> None:
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        create = partial(self._create, name=name, xml=xml, flags=flags)
        await self._run(name, self.domains.call(create, timeout_s=START_TIMEOUT_S))

    async def mode(self) -> str:
        """Return the accelerator in use: "kvm" or "tcg"; "" when there is none."""
        return (await self._how()).mode

    def killed(self, name: str) -> None:
        """Note that the end of a guest's run that comes is ordered."""
        self._killed.add(name)

    async def arrived(self, name: str) -> None:
        """Note that a guest came from another host, and runs."""
        self._new_run(name)
        await self._remember_process(name)
        await start.shape(self.domains, self.definitions.get(name))
        if (mark := await self.domains.mark(name)) is not None:
            self._begin(self._claims.note(claim_of(self.definitions.get(name), mark.generation)))
        self._changed(name)

    async def shutdown(self, name: str) -> None:
        """Press the power button, or have the guest's agent asked, which goes on in the background."""
        agent = name in self.definitions.names() and self.definitions.get(name).spec.virtual_machine.guest_agent
        room = name in self._asked or len(self._asked) < LONG_CALLS  # more of them would wait for each other's guests
        by_agent = agent and room
        self._stopping.add(name)
        if not await self.domains.act(name, lambda domain: None if by_agent else domain.shutdown()):
            self._stopping.discard(name)
        elif by_agent and name not in self._asked:
            self._asked.add(name)
            self._begin(self._ask_agent(name))
        self._changed(name)

    async def _ask_agent(self, name: str) -> None:
        try:
            await power.shutdown_by_agent(self.domains, name)
        finally:
            self._asked.discard(name)

    async def kill(self, name: str) -> None:
        """End the domain at once, by its process if libvirtd does not do it."""
        self._killed.add(name)
        try:
            await self.domains.act(name, lambda domain: domain.destroy(), timeout_s=DESTROY_TIMEOUT_S)
            if await self.process(name) is None:
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

    async def suspend(self, name: str) -> None:
        """Hold the domain."""
        await power.suspend(self.domains, name)
        self._changed(name)

    async def resume(self, name: str) -> None:
        """Let the domain go on."""
        await power.resume(self.domains, name)
        self._changed(name)

    async def reset(self, name: str) -> None:
        """Press the domain's reset button."""
        await power.reset(self.domains, name)
        self._changed(name)

    async def hibernate(self, name: str, path: Path, progress: Progress) -> None:
        """Write the domain's memory and end it."""
        self._killed.add(name)  # its end is ordered
        try:
            await power.hibernate(self.domains, name, path, progress)
        except BaseException:
            self._killed.discard(name)
            raise
        self._changed(name)

    async def undefine(self, name: str) -> None:
        """Forget a guest, with its seed and its console log."""
        if await self.process(name) is not None or name in await self.domains.look():
            raise precondition("GUEST_RUNNING", f'guest "{name}" is running.', remedy="Stop it first.", subject=name)
        await asyncio.to_thread(self._folders.forget, name)
        await asyncio.to_thread(self._records.remove, name)
        with contextlib.suppress(OSError):
            await firmware.clear_tpm(self._uid(name))
        await asyncio.to_thread(self.definitions.remove, name)
        self._ends.forget(name)
        self._live.forget(name)
        self._changed(name)

    async def observe(self, name: str) -> Observation | None:
        """Tell what a guest does."""
        return (await self.observe_all()).get(name)

    async def observe_all(self) -> dict[str, Observation]:
        """Tell what all guests do."""
        seen = await self.domains.look()
        defined = {name: self.definitions.get(name) for name in self.definitions.names()}
        result = {name: self._at_rest(name) for name in defined if name not in seen}
        for name, domain in seen.items():
            self._ends.runs(name)
            process = await self.process(name)
            waits = self._live.pending(name, domain.mark.running, defined[name]) if name in defined else ()
            pid = process.pid if process else 0
            told = self._addresses.of(name)
            result[name] = self._in_motion(domain).observation(pid, waits, self._usage.of(name), told)
        return result

    def watch(self, callback: Callable[[str], None]) -> None:
        """Call back after each change."""
        self._callbacks.append(callback)

    async def console_log(self, name: str, max_bytes: int) -> bytes:
        """Return the end of the serial console's log."""
        if name not in self.definitions.names() and not self._folders.console(name).exists():
            raise not_found("guest", name, remedy="It is not defined on this node.")
        return await asyncio.to_thread(tail, self._folders.console(name), max_bytes)

    async def emergency_kill(self, names: Collection[str]) -> KillReport:
        """Kill the QEMU processes."""
        self._killed.update(names)
        return await self._emergency.kill(names)

    async def _finish(self) -> None:
        """Apply what an agent before this one may not have got to, for each guest that runs."""
        for name in sorted(self.definitions.names()):
            try:
                if await self.domains.mark(name) is not None:
                    await self.apply(name)
            except GugusError as error:
                _log.warning("changes of a running guest wait", guest=name, error=str(error))

    async def _take_up(self, definition: Definition, run: Run) -> bool:
        """Run a guest from its memory, if it has one that can be taken up; False: it boots."""
        name, memory = definition.spec.name, definition.files.hibernation
        if memory is None or await self.domains.mark(name) is not None:
            return False
        if not await asyncio.to_thread(power.is_complete, memory):
            _log.warning("memory is not complete or was taken up before: booting", guest=name, path=str(memory))
            return False
        mark = Mark(definition.spec.uid, run.generation, run.mode, definition)
        await self._run(name, power.take_up(self.domains, name, memory, mark, self._emergency.start_of))
        return True

    async def _run(self, name: str, begin: Awaitable[None]) -> None:
        """Have a domain begin to run, with all that has to be known of it before and after."""
        self._beginning.add(name)
        self._new_run(name)
        try:
            await begin
        except GugusError as error:
            self._killed.add(name)  # libvirt tells of an end, too: it is no crash of a guest that ran
            self._ends.not_begun(name)
            if error.reason != REFUSED:
                raise
            raise start.refused(name, error.message) from error
        finally:
            self._beginning.discard(name)
        await self._remember_process(name)
        await start.shape(self.domains, self.definitions.get(name))
        self._changed(name)

    def _new_run(self, name: str) -> None:
        self._ends.began(name)
        self._live.forget(name)
        self._usage.changed(name)
        self._addresses.forget(name)
        self._killed.discard(name)
        self._stopping.discard(name)

    def _create(self, connection: Any, *, name: str, xml: str, flags: int) -> None:
        """Create a domain, in a thread of libvirt's pool."""
        with self._emergency.start_of(name):
            for domain in connection.listAllDomains():
                if domain.name() == name:
                    if self.domains.marks.of(domain) is None:
                        raise start.failed(name, "libvirt has another domain of this name", "Rename one of them.")
                    return
            give(connection, settled_files(ET.fromstring(xml)))  # noqa: S314  (made by us)
            connection.createXML(xml, flags)

    async def _how(self) -> Accelerator:
        if self._accelerator is None:
            self._accelerator = await self._find_accelerator(self.state / "accelerator.json")
        return self._accelerator

    def _at_rest(self, name: str) -> Observation:
        if name not in self._beginning | self._killed | self._stopping and self._ends.awaits_news(name):
            asyncio.get_running_loop().call_later(NEWS_S, self._changed, name)
            return Observation(guest_pb2.GUEST_STATE_STOPPING, reason="It has ended; libvirt has yet to tell why.")
        ended = self._ends.of(name)
        if ended is None:
            return Observation(guest_pb2.GUEST_STATE_STOPPED)
        state = guest_pb2.GUEST_STATE_CRASHED if ended.crashed else guest_pb2.GUEST_STATE_STOPPED
        return Observation(state, reason=ended.reason, ended=ended.end)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _in_motion(self, seen: Seen) -> Seen:
        if seen.name in self._stopping and seen.state == guest_pb2.GUEST_STATE_RUNNING:
            return Seen(seen.name, seen.mark, guest_pb2.GUEST_STATE_STOPPING, "Asked to shut down.")
        return seen

    async def process(self, name: str) -> ProcessRecord | None:
        """Return QEMU's process of a guest; None when it does not run. Raises PROCESS_UNTOLD."""
        try:
            return await asyncio.to_thread(qemu.process_of, name, self._records, self._uid(name))
        except OSError as error:
            raise internal("PROCESS_UNTOLD", f'the process of guest "{name}" cannot be looked at: {error}.') from error

    async def _remember_process(self, name: str) -> None:
        process = await self.process(name)
        if process is not None:
            await asyncio.to_thread(self._records.save, name, process)

    def _on_lifecycle(self, name: str, event: int, detail: int) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED and name in self.definitions.names():
            ordered = name in self._killed or name in self._stopping
            self._ends.stopped(name, detail, ordered=ordered)
            self._stopping.discard(name)
            self._begin(start.clean(self.definitions.get(name)))
        self._changed(name)

    def _changed(self, name: str) -> None:
        for callback in self._callbacks:
            asyncio.get_running_loop().call_soon(callback, name)

    def _uid(self, name: str) -> str:
        try:
            return self.definitions.get(name).spec.uid
        except Exception:  # unknown, or of another version: other proofs remain, and a kill must not end here
            return ""


def create(config: AgentConfig) -> KvmHypervisor:
    """Make the driver for this node."""
    return KvmHypervisor(config.libvirt_uri, config.state_dir, config.run_dir)
