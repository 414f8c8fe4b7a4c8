"""Hypervisor driver for system containers: defines, starts, stops, kills, watches and adopts them.

Invariant: what runs is read from /proc at each look, never from memory alone; liblxc's programs are used to start only.
"""

import asyncio
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from gugus.agent.v1 import guest_pb2, node_pb2, volume_pb2

from agent.compute.hypervisor import (
    EMERGENCY_KILL_TIMEOUT_S,
    AttachedDisk,
    AttachedNic,
    KillReport,
    Observation,
)
from agent.compute.lxc import launch, prepare, processes
from agent.compute.lxc.emergency import kill_containers
from agent.compute.lxc.launch import Files
from agent.compute.lxc.probe import Probe
from agent.compute.lxc.runs import Definition, Definitions, Run, Runs
from agent.compute.lxc.watcher import ExitWatcher
from agent.compute.processes import ProcessRecord, send
from common import validate
from common.config import AgentConfig
from common.errors import internal, invalid, not_found, precondition
from common.logs import get_logger

SETTLE_TIMEOUT_S = 10.0
"""How long a monitor may take to clean up after, or to reboot, a container whose init has ended; usually 50 ms. One that
takes longer hangs, or was stopped by a kill which the death of an agent cut short: it is killed."""

KILL_TIMEOUT_S = 5.0
"""How long a killed container's processes may take to be gone."""

_POLL_S = 0.01
_PAUSE_S = 1.0

log = get_logger("lxc")


class LxcDriver:
    """Containers of this host, in an lxcpath of their own names. See Hypervisor for what each method promises."""

    def __init__(self, config: AgentConfig) -> None:
        self._path = config.lxc_path
        self._definitions_store = Definitions(config.state_dir / "lxc")
        self._runs_store = Runs(config.run_dir / "lxc")
        self._definitions: dict[str, Definition] = {}
        self._runs: dict[str, Run] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._watcher = ExitWatcher(self._init_ended)
        self._callbacks: list[Callable[[str], None]] = []
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._probe = Probe()

    @property
    def name(self) -> str:
        """Driver's name."""
        return "lxc"

    @property
    def kinds(self) -> tuple[guest_pb2.GuestKind.ValueType, ...]:
        """Containers."""
        return (guest_pb2.GUEST_KIND_CONTAINER,)

    async def open(self) -> None:
        """Read the definitions, adopt what runs, and find out what became of what does not run any more."""
        self._definitions = await asyncio.to_thread(self._definitions_store.load_all)
        self._runs = await asyncio.to_thread(self._runs_store.load_all)
        await self._adopt()
        for name, run in list(self._runs.items()):
            if run.alive and run.init is not None:
                self._watcher.watch(name, run.init)
            elif not run.ended:
                self._init_ended(name)

    async def close(self) -> None:
        """Stop watching; containers go on."""
        self._watcher.close()
        for task in self._settling.values():
            task.cancel()
        await asyncio.gather(*self._settling.values(), return_exceptions=True)

    async def probe(self) -> node_pb2.HypervisorFacts:
        """Tell whether containers can run and whether unprivileged."""
        return await self._probe.facts(self.kinds)

    async def define(
        self, spec: guest_pb2.GuestSpec, disks: Sequence[AttachedDisk], nics: Sequence[AttachedNic]
    ) -> None:
        """Keep how a container is to be run. See Hypervisor; also CONTAINER_NOT_OURS."""
        _check(spec, disks, nics)
        async with self._locks[spec.name]:
            try:
                await asyncio.to_thread(prepare.make_folder, self._files(spec.name))
            except FileExistsError as error:
                raise precondition(
                    "CONTAINER_NOT_OURS",
                    f'a container "{spec.name}" that gugus did not make is in {error}; it was not touched.',
                    remedy="Choose another guest name, or remove that container on this host.",
                ) from error
            except OSError as error:
                raise internal("GUEST_DEFINE_FAILED", f'container "{spec.name}": {error}.') from error
            kept = guest_pb2.GuestSpec()
            kept.CopyFrom(spec)
            definition = Definition(kept, disks[0], tuple(nics))
            if self._definitions.get(spec.name) != definition:
                await asyncio.to_thread(self._definitions_store.save, definition)
                self._definitions[spec.name] = definition

    async def start(self, name: str, generation: int) -> None:
        """Start a container; returns once its init runs."""
        async with self._locks[name]:
            if name not in self._definitions:
                raise not_found("guest", name)
            await self._adopt_if_running(name)
            await self._settled(name)
            if name in self._runs and self._runs[name].alive:
                return
            begun = time.monotonic()
            await self._start(self._definitions[name], generation)
            log.info("container started", guest=name, duration_ms=round((time.monotonic() - begun) * 1000))
        self._changed(name)

    async def shutdown(self, name: str) -> None:
        """Send the signal that asks the container's init to power off."""
        await self._adopt_if_running(name)
        run = self._runs.get(name)
        if run is None or run.init is None or not run.alive:
            return
        self._keep(name, replace(run, asked=run.asked or "shutdown"))
        if send(run.init, _signal_number(run.halt_signal)):
            self._changed(name)

    async def kill(self, name: str) -> None:
        """Kill a container's init and let liblxc clean up; without it when it does not."""
        async with self._locks[name]:
            await self._adopt_if_running(name)
            run = self._runs.get(name)
            if run is None or run.ended:
                return
            self._keep(name, replace(run, asked="kill"))
            report = await kill_containers(self._path, self._runs_store, {name}, KILL_TIMEOUT_S, gently=True)
            if report.alive:
                raise internal("GUEST_KILL_FAILED", f'container "{name}" cannot be killed: {report.alive[name]}.')
            self._init_ended(name)
            await self._settled(name)

    async def undefine(self, name: str) -> None:
        """Forget a stopped container; its root file system stays."""
        async with self._locks[name]:
            await self._adopt_if_running(name)
            await self._settled(name)
            run = self._runs.get(name)
            if run is not None and (run.alive or run.monitored):
                raise precondition("GUEST_RUNNING", f'container "{name}" runs.', remedy="Stop or kill it first.")
            self._watcher.forget(name)
            if self._files(name).mark.exists():
                await asyncio.to_thread(shutil.rmtree, self._files(name).folder, ignore_errors=True)
            self._runs_store.remove(name)
            self._definitions_store.remove(name)
            self._runs.pop(name, None)
            known = self._definitions.pop(name, None)
        if known is not None:
            self._changed(name)

    async def observe(self, name: str) -> Observation | None:
        """Look at one container."""
        await self._adopt_if_running(name)
        return self._look(name)

    async def observe_all(self) -> dict[str, Observation]:
        """Look at all containers; some reads of /proc and the cgroup files each, no process is started."""
        unknown = [name for name in processes.live_names(self._path) if not self._is_known_alive(name)]
        if unknown:
            await self._adopt()
        looks = {name: self._look(name) for name in sorted({*self._definitions, *self._runs})}
        return {name: seen for name, seen in looks.items() if seen is not None}

    def watch(self, callback: Callable[[str], None]) -> None:
        """Have changes told."""
        self._callbacks.append(callback)

    async def console_log(self, name: str, max_bytes: int) -> bytes:
        """Return the end of the console log, reaching into the rotated file when the present one is short."""
        if name not in self._definitions and name not in self._runs:
            raise not_found("guest", name)
        console = self._files(name).console
        now = launch.tail(console, max_bytes)
        return launch.tail(console.with_name(f"{console.name}.1"), max_bytes - len(now)) + now

    async def emergency_kill(self, names: Collection[str]) -> KillReport:
        """Kill containers by their processes alone."""
        for name in names:
            if name in self._runs:  # in memory only: the disk may be what hangs
                self._runs[name] = replace(self._runs[name], asked="kill")
        return await kill_containers(self._path, self._runs_store, names, EMERGENCY_KILL_TIMEOUT_S)

    async def _start(self, definition: Definition, generation: int) -> None:
        name = definition.spec.name
        files = self._files(name)
        problem = await self._probe.unprivileged_problem()
        if name in self._runs:
            processes.remove_cgroups(self._runs[name].cgroups)
        await asyncio.to_thread(prepare.make_folder, files)
        prepared = await asyncio.to_thread(prepare.prepare, definition, files, problem)
        run = Run(generation, prepared.mode, prepared.halt_signal)
        self._keep(name, run)
        try:
            await launch.launch(files)
            found = processes.scan(self._path).get(name)
            if found is None or found.init is None:
                raise launch.start_failed(files)
        except BaseException as error:
            # Nothing half-started is left, also when the call is cancelled.
            await asyncio.shield(kill_containers(self._path, self._runs_store, {name}, KILL_TIMEOUT_S))
            self._keep(name, replace(run, ended=True, reason=str(error) or "the start was cancelled"))
            raise
        self._run_found(name, run, found)

    async def _adopt(self) -> None:
        """Take up every container that runs in our lxcpath and is not watched, also one that an operator started."""
        for name, found in processes.scan(self._path).items():
            if not self._is_known_alive(name) and found.init is not None and self._files(name).mark.exists():
                run = self._runs.get(name) or self._runs_store.load(name) or Run(generation=0)
                fresh = replace(run, asked="", ended=False, crashed=False, reason="")
                mode = run.mode or prepare.mode_of(found.init.pid)
                self._run_found(name, replace(fresh, mode=mode), found)

    async def _adopt_if_running(self, name: str) -> None:
        if not self._is_known_alive(name) and name in processes.live_names(self._path):
            await self._adopt()

    def _run_found(self, name: str, run: Run, found: processes.Processes) -> None:
        if found.init is None:
            return
        cgroups = processes.container_cgroups(found)
        self._keep(name, replace(run, monitor=found.monitor, init=found.init, cgroups=cgroups))
        self._watcher.watch(name, found.init)

    def _is_known_alive(self, name: str) -> bool:
        return name in self._settling or (name in self._runs and self._runs[name].alive)

    def _init_ended(self, name: str) -> None:
        if name not in self._settling and name in self._runs and not self._runs[name].ended:
            task = asyncio.get_running_loop().create_task(self._settle(name), name=f"lxc-settle-{name}")
            self._settling[name] = task
            task.add_done_callback(lambda _: self._settling.pop(name, None))

    async def _settled(self, name: str) -> None:
        if task := self._settling.get(name):
            await asyncio.wait([task], timeout=SETTLE_TIMEOUT_S)

    async def _settle(self, name: str) -> None:
        """After the end of an init: wait until liblxc has cleaned up, or has started another one (a reboot)."""
        run = self._runs[name]
        if run.monitor is not None and (init := await self._next_init(name, run, run.monitor)) is not None:
            self._run_found(name, replace(run, asked=""), processes.Processes(run.monitor, init))
            self._changed(name)
            return
        run = self._runs.get(name, run)
        crashed, reason = launch.how_it_ended(self._files(name)) if not run.asked else (False, "")
        processes.remove_cgroups(run.cgroups)
        self._keep(name, replace(run, ended=True, crashed=crashed, reason=reason))
        log.info("container ended", guest=name, asked=run.asked, crashed=crashed, reason=reason)
        self._changed(name)

    async def _next_init(self, name: str, run: Run, monitor: ProcessRecord) -> ProcessRecord | None:
        """Return the init that a monitor starts after the end of the last one; None once the monitor has ended."""
        end = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            try:
                if not run.monitored:
                    return None
                init = processes.child_init(monitor)
                if init is not None and init != run.init:
                    return init
                if init is None and time.monotonic() >= end:
                    await kill_containers(self._path, self._runs_store, {name}, KILL_TIMEOUT_S)
            except OSError as error:  # it may still be there
                log.error("container cannot be looked at; trying again", guest=name, error=str(error))
                await asyncio.sleep(_PAUSE_S)
            await asyncio.sleep(_POLL_S)

    def _look(self, name: str) -> Observation | None:
        run = self._runs.get(name)
        if run is None or (run.init is None and run.ended):
            reason = run.reason if run is not None else ""
            return Observation(guest_pb2.GUEST_STATE_STOPPED, reason=reason) if name in self._definitions else None
        if run.init is not None and run.alive:
            state = guest_pb2.GUEST_STATE_STOPPING if run.asked else guest_pb2.GUEST_STATE_RUNNING
            used = processes.usage(run.cgroups)
            return Observation(
                state,
                pid=run.init.pid,
                mode=run.mode,
                generation=run.generation,
                addresses=processes.addresses(run.init.pid),
                cpu_time_ns=used.cpu_time_ns,
                memory_used_bytes=used.memory_bytes,
            )
        if not run.ended:
            words = "its init has ended; liblxc cleans up or reboots it" if run.init else "it is being started"
            return Observation(guest_pb2.GUEST_STATE_STOPPING, mode=run.mode, reason=words, generation=run.generation)
        state = guest_pb2.GUEST_STATE_CRASHED if run.crashed else guest_pb2.GUEST_STATE_STOPPED
        return Observation(state, reason=run.reason) if name in self._definitions else None

    def _keep(self, name: str, run: Run) -> None:
        self._runs[name] = run
        self._runs_store.save(name, run)

    def _changed(self, name: str) -> None:
        for callback in self._callbacks:
            callback(name)

    def _files(self, name: str) -> Files:
        return Files(self._path, name)


def create(config: AgentConfig) -> LxcDriver:
    """Make the driver of this host."""
    return LxcDriver(config)


def _check(spec: guest_pb2.GuestSpec, disks: Sequence[AttachedDisk], nics: Sequence[AttachedNic]) -> None:
    """Raise INVALID_ARGUMENT for what a container cannot have."""
    validate.require("name", validate.name(spec.name))
    validate.require("first_boot.hostname", validate.name(spec.first_boot.hostname or spec.name))
    if spec.cpus < 1:
        raise invalid("cpus", "is 0.", remedy="A guest has at least one CPU.")
    if spec.memory_bytes < 1:
        raise invalid("memory_bytes", "is 0.", remedy="Say how much memory the container may use.")
    if len(disks) != 1:
        raise invalid("disks", f"has {len(disks)} entries.", remedy="A container has one disk, its root file system.")
    if disks[0].format != volume_pb2.VOLUME_FORMAT_FILESYSTEM:
        raise invalid("disks[0]", "is no FILESYSTEM volume.", remedy="Import a root file system archive for it.")
    for number, nic in enumerate(nics):
        validate.require(f"nics[{number}].mac", validate.mac(nic.spec.mac))
        validate.require(f"nics[{number}].name", validate.bridge_name(nic.spec.name))
    for key in spec.first_boot.ssh_authorized_keys:
        if "\n" in key.strip():
            raise invalid("first_boot.ssh_authorized_keys", "has several lines in one entry.", remedy="One key each.")


def _signal_number(name: str) -> int:
    base, _, offset = name.partition("+")
    return int(signal.Signals[base]) + int(offset or 0)
