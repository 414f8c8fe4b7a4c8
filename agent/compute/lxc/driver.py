"""Hypervisor driver for system containers: defines, starts, changes, stops, kills, watches and adopts them."""

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from gugus.agent.v1 import guest_pb2, node_pb2

from agent.compute.access import not_running
from agent.compute.definitions import Definition
from agent.compute.hypervisor import (
    EMERGENCY_KILL_TIMEOUT_S,
    NO_FILES,
    AttachedDisk,
    AttachedNic,
    KillReport,
    MachineFiles,
    Observation,
    Progress,
)
from agent.compute.lxc import changes, launch, live, prepare, processes, usage
from agent.compute.lxc.access import LxcAccess
from agent.compute.lxc.cgroups import Cgroup
from agent.compute.lxc.checkpoint import LxcCheckpoints
from agent.compute.lxc.checks import check
from agent.compute.lxc.emergency import kill_containers
from agent.compute.lxc.helper import reset as reset_container
from agent.compute.lxc.lifecycle import Lifecycle
from agent.compute.lxc.look import Looker
from agent.compute.lxc.runs import Definitions, Run, Runs
from agent.compute.processes import ProcessRecord, send
from common.config import AgentConfig
from common.errors import GugusError, internal, not_found, precondition
from common.logs import get_logger

RESET_TIMEOUT_S = 10.0
"""How long a container may take to be there again after a reset; usually 0.2 s."""

_POLL_S = 0.02

log = get_logger("lxc")


class LxcDriver:
    """Containers of this host, in an lxcpath of their own names. See Hypervisor for what each method promises."""

    snapshots = None
    disks = None
    migration = None

    def __init__(self, config: AgentConfig) -> None:
        self._path, self._roots = config.lxc_path, config.bind_mount_roots
        self._runs_store = Runs(config.run_dir / "lxc")
        self._definitions_store = Definitions(config.state_dir / "lxc")
        self._definitions: dict[str, Definition] = {}
        self._life = Lifecycle(config, self._ended, self._rebooted)
        self._looker = Looker()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._callbacks: list[Callable[[str], None]] = []
        self._pending: dict[str, tuple[guest_pb2.PendingChange, ...]] = {}
        self._applying: set[asyncio.Task[None]] = set()
        self.access = LxcAccess(config.lxc_path, self._running)
        self.checkpoints = LxcCheckpoints(
            config.lxc_path,
            self._life,
            self._defined,
            self._locks.__getitem__,
            lambda name: bool(self._pending.get(name)),
        )

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
        await self._life.open(self._definitions.values())
        for name, definition in self._definitions.items():
            present = self._life.present[name].spec
            self._pending[name] = tuple(map(changes.pending, changes.open_differences(present, definition.spec)))

    async def close(self) -> None:
        """Stop watching; containers go on."""
        await self._life.close()
        for task in self._applying:
            task.cancel()
        await asyncio.gather(*self._applying, return_exceptions=True)

    async def probe(self) -> node_pb2.HypervisorFacts:
        """Tell whether containers can run and whether unprivileged."""
        return await self._life.probe.facts(self.kinds)

    async def define(
        self,
        spec: guest_pb2.GuestSpec,
        disks: Sequence[AttachedDisk],
        nics: Sequence[AttachedNic],
        files: MachineFiles = NO_FILES,
    ) -> None:
        """Keep how a container is to be run. See Hypervisor; also CONTAINER_NOT_OURS."""
        check(spec, disks, nics)
        async with self._locks[spec.name]:
            try:
                await asyncio.to_thread(prepare.make_folder, self._life.files(spec.name))
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
            definition = Definition(
                kept,
                tuple(replace(disk, spec=own) for disk, own in zip(disks, kept.disks, strict=True)),
                tuple(replace(nic, spec=own) for nic, own in zip(nics, kept.nics, strict=True)),
            )
            if self._definitions.get(spec.name) != definition:
                await asyncio.to_thread(self._definitions_store.save, definition)
                self._definitions[spec.name] = definition

    async def apply(self, name: str) -> Sequence[guest_pb2.PendingChange]:
        """Change a running container into its definition."""
        async with self._locks[name]:
            if name not in self._definitions:
                raise not_found("guest", name)
            await self._life.adopt_if_running(name)
            return await self._apply(name)

    async def start(self, name: str, generation: int) -> None:
        """Start a container; returns once its init runs."""
        async with self._locks[name]:
            if name not in self._definitions:
                raise not_found("guest", name)
            await self._life.adopt_if_running(name)
            await self._life.settled(name)
            if name in self._life.runs and self._life.runs[name].alive:
                return
            begun = time.monotonic()
            self._pending.pop(name, None)
            await self._life.start(self._definitions[name], generation)
            self._leave_reboots(name)
            log.info("container started", guest=name, duration_ms=round((time.monotonic() - begun) * 1000))
        self._changed(name)

    async def shutdown(self, name: str) -> None:
        """Send the signal that asks the container's init to power off."""
        await self._life.adopt_if_running(name)
        run = self._life.runs.get(name)
        if run is None or run.init is None or not run.alive:
            return
        self._life.keep(name, replace(run, asked=run.asked or "shutdown"))
        await asyncio.to_thread(_thaw, name, run.init)  # who is held hears nothing
        if send(run.init, _signal_number(run.halt_signal)):
            self._changed(name)

    async def kill(self, name: str) -> None:
        """Kill a container's init and let liblxc clean up; without it when it does not."""
        async with self._locks[name]:
            await self._life.adopt_if_running(name)
            run = self._life.runs.get(name)
            if run is None or run.ended:
                return
            alive = await self._life.kill(name)
            if alive:
                raise internal("GUEST_KILL_FAILED", f'container "{name}" cannot be killed: {alive[name]}.')

    async def suspend(self, name: str) -> None:
        """Hold all processes of a container."""
        async with self._locks[name]:
            init = await self._running(name)
            try:
                held = await asyncio.to_thread(lambda: Cgroup(init.pid, name).freeze())
                if not held:
                    await asyncio.to_thread(_thaw, name, init)
            except OSError as error:
                raise _suspend_failed(name, str(error)) from error
            if not held:
                raise _suspend_failed(name, "its processes do not stand still: one hangs in the kernel")
        self._changed(name)

    async def resume(self, name: str) -> None:
        """Let a container's processes go on."""
        async with self._locks[name]:
            init = await self._running(name)
            try:
                await asyncio.to_thread(lambda: Cgroup(init.pid, name).thaw())
            except OSError as error:
                raise _suspend_failed(name, str(error)) from error
        self._changed(name)

    async def reset(self, name: str) -> None:
        """End all processes of a container at once and have its monitor start it again, as it was started before."""
        async with self._locks[name]:
            init = await self._running(name)
            self._life.files(name).may_start.touch()
            await asyncio.to_thread(_thaw, name, init)
            try:
                await reset_container(init.pid)
                async with asyncio.timeout(RESET_TIMEOUT_S):
                    while (await self._running(name)) == init:  # noqa: ASYNC110
                        await asyncio.sleep(_POLL_S)
            except (GugusError, TimeoutError) as error:
                why = str(error) or f"it was not there again within {RESET_TIMEOUT_S:g} s"
                raise internal("GUEST_RESET_FAILED", f'container "{name}": {why}.') from error
        self._changed(name)

    async def hibernate(self, name: str, path: Path, progress: Progress) -> None:
        """Refuse: the kernel has no way to write the memory of a container that works for all (CRIU works for few)."""
        raise precondition(
            "NOT_HIBERNATABLE",
            f'container "{name}" cannot be hibernated: only virtual machines can.',
            remedy="Suspend it, or stop it.",
            subject=f"guest/{name}",
        )

    async def undefine(self, name: str) -> None:
        """Forget a stopped container; its root file system stays."""
        async with self._locks[name]:
            await self._life.adopt_if_running(name)
            await self._life.settled(name)
            run = self._life.runs.get(name)
            if run is not None and (run.alive or run.monitored):
                raise precondition("GUEST_RUNNING", f'container "{name}" runs.', remedy="Stop or kill it first.")
            await asyncio.to_thread(prepare.remove_folder, self._life.files(name))
            self._life.forget(name)
            self._looker.forget(name)
            self._pending.pop(name, None)
            self._definitions_store.remove(name)
            known = self._definitions.pop(name, None)
        if known is not None:
            self._changed(name)

    async def observe(self, name: str) -> Observation | None:
        """Look at one container."""
        await self._life.adopt_if_running(name)
        return self._look(name, usage.network_counters())

    async def observe_all(self) -> dict[str, Observation]:
        """Look at all containers; some reads of /proc and the cgroup files each, no process is started."""
        await self._life.adopt_unknown()
        network = usage.network_counters()
        looks = {name: self._look(name, network) for name in sorted({*self._definitions, *self._life.runs})}
        return {name: seen for name, seen in looks.items() if seen is not None}

    def watch(self, callback: Callable[[str], None]) -> None:
        """Have changes told."""
        self._callbacks.append(callback)

    async def console_log(self, name: str, max_bytes: int) -> bytes:
        """Return the end of the console log, reaching into the rotated file when the present one is short."""
        if name not in self._definitions and name not in self._life.runs:
            raise not_found("guest", name)
        console = self._life.files(name).console
        now = launch.tail(console, max_bytes)
        return launch.tail(console.with_name(f"{console.name}.1"), max_bytes - len(now)) + now

    async def emergency_kill(self, names: Collection[str]) -> KillReport:
        """Kill containers by their processes alone."""
        for name in names:
            if name in self._life.runs:  # in memory only: the disk may be what hangs
                self._life.runs[name] = replace(self._life.runs[name], asked="kill")
        return await kill_containers(self._path, self._runs_store, names, EMERGENCY_KILL_TIMEOUT_S)

    async def _apply(self, name: str) -> tuple[guest_pb2.PendingChange, ...]:
        run, wanted = self._life.runs.get(name), self._definitions[name]
        if run is None or run.init is None or not run.alive:
            self._pending.pop(name, None)
            return ()
        present = self._life.present.setdefault(name, wanted)
        if changes.open_differences(present.spec, wanted.spec) or present.nics != wanted.nics:
            userns = self._life.userns_of(run)
            changing = live.Live(name, run.init.pid, present, dict(run.interfaces), userns, self._roots)
            try:
                await live.apply(changing, wanted)
            finally:
                self._life.keep(name, replace(self._life.runs[name], interfaces=changing.interfaces))
                self._life.keep_present(name, changing.present)
            self._pending[name] = tuple(changing.pending)
        else:
            self._pending.pop(name, None)
        self._leave_reboots(name)
        self._changed(name)
        return self._pending.get(name, ())

    def _leave_reboots(self, name: str) -> None:
        """Leave reboots of the guest to its monitor, or take them from it: then its run ends, and it is started anew."""
        started, wanted = self._life.started.get(name), self._definitions.get(name)
        may_start = self._life.files(name).may_start
        if started is None or wanted is None or changes.reboots_in_place(started.spec, wanted.spec):
            may_start.touch()
        else:
            may_start.unlink(missing_ok=True)

    def _defined(self, name: str) -> Definition:
        """Return how a container is to be run. Raises GUEST_NOT_FOUND."""
        if name not in self._definitions:
            raise not_found("guest", name)
        return self._definitions[name]

    async def _running(self, name: str) -> ProcessRecord:
        """Return the init of a container. Raises GUEST_NOT_RUNNING."""
        await self._life.adopt_if_running(name)
        await self._life.settled(name)
        run = self._life.runs.get(name)
        if run is None or run.init is None or not run.alive:
            raise not_running(name)
        return run.init

    def _look(self, name: str, network: dict[str, list[int]]) -> Observation | None:
        run: Run | None = self._life.runs.get(name)
        defined = name in self._definitions
        if not defined and (run is None or run.ended):
            return None
        return self._looker.look(name, run, self._life.present.get(name), self._pending.get(name, ()), network)

    def _ended(self, name: str) -> None:
        self._pending.pop(name, None)
        self._changed(name)

    def _rebooted(self, name: str) -> None:
        """Do again what was changed since the start, which an in-place reboot has undone."""
        self._changed(name)
        if name in self._definitions:
            task = asyncio.get_running_loop().create_task(self._reapply(name), name=f"lxc-reapply-{name}")
            self._applying.add(task)
            task.add_done_callback(self._applying.discard)

    async def _reapply(self, name: str) -> None:
        async with self._locks[name]:
            if name in self._definitions:
                await self._apply(name)

    def _changed(self, name: str) -> None:
        for callback in self._callbacks:
            callback(name)


def create(config: AgentConfig) -> LxcDriver:
    """Make the driver of this host."""
    return LxcDriver(config)


def _thaw(name: str, init: ProcessRecord) -> None:
    processes.thaw([init])
    try:
        Cgroup(init.pid, name).thaw()
    except OSError:
        return  # it ended


def _suspend_failed(name: str, why: str) -> GugusError:
    return internal("GUEST_SUSPEND_FAILED", f'container "{name}": {why}.')


def _signal_number(name: str) -> int:
    base, _, offset = name.partition("+")
    return int(signal.Signals[base]) + int(offset or 0)
