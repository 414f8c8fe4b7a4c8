"""The runs of containers: how each begins, is adopted by the next agent, reboots, and ends.

Invariant: what runs is read from /proc at each look, never from memory alone; liblxc's programs are used to start only.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from agent.compute import idmap
from agent.compute.definitions import Definition
from agent.compute.lxc import announce, interfaces, launch, live, prepare, processes
from agent.compute.lxc.criu import CriuProbe
from agent.compute.lxc.emergency import kill_containers
from agent.compute.lxc.launch import Files
from agent.compute.lxc.prepare import Ids, Prepared
from agent.compute.lxc.probe import Probe
from agent.compute.lxc.ranges import Ranges
from agent.compute.lxc.runs import Definitions, Run, Runs
from agent.compute.lxc.watcher import ExitWatcher
from agent.compute.processes import ProcessRecord
from agent.leases.claim import Claim, Claims, claim_of
from agent.network import shaping
from common.config import AgentConfig
from common.errors import GugusError
from common.logs import get_logger

SETTLE_TIMEOUT_S = 10.0
"""How long a monitor may take to clean up after, or to reboot, a container whose init has ended; usually 50 ms. One that
takes longer hangs, or was stopped by a kill which the death of an agent cut short: it is killed."""

KILL_TIMEOUT_S = 5.0
"""How long a killed container's processes may take to be gone."""

HOLD_PERIOD_S = 10.0
"""So often it is looked whether the leases of running containers are held."""

CHECKPOINT = "checkpoint"
"""Run.asked of a container that is being written down, which ends it."""

_POLL_S = 0.01
_PAUSE_S = 1.0

log = get_logger("lxc")


class Restore(Protocol):
    """How a container goes on where it was on another host, in place of a start. Raises GugusError."""

    def ids(self, free: Ids) -> Ids:
        """Return the ids that it has to run with; `free` are those that it would be started with."""

    async def begin(self, files: Files, definition: Definition, prepared: Prepared, ids: Ids) -> None:
        """Restore it; returns when its processes run."""

    async def limit(self, files: Files, definition: Definition, prepared: Prepared, pid: int) -> None:
        """Set what liblxc sets at a start, and not when it restores."""


class Lifecycle:
    """All runs of this host. `ended` and `rebooted` are called in the loop with the guest's name."""

    def __init__(self, config: AgentConfig, ended: Callable[[str], None], rebooted: Callable[[str], None]) -> None:
        self._path, self._roots = config.lxc_path, config.bind_mount_roots
        self._store = Runs(config.run_dir / "lxc")
        self._started_store = Definitions(config.run_dir / "lxc-started")
        self._present_store = Definitions(config.run_dir / "lxc-present")
        self._ranges = Ranges(config.run_dir / "lxc-ids")
        self._ended, self._rebooted = ended, rebooted
        self._watcher = ExitWatcher(self._init_ended)
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._announcing: set[asyncio.Task[None]] = set()
        self._reserved: set[int] = set()
        """Bases of ranges of ids that starts under way have chosen."""
        self._claims = Claims()
        self._holding: asyncio.Task[None] | None = None
        self.probe = Probe(CriuProbe(config.run_dir))
        self.runs: dict[str, Run] = {}
        self.started: dict[str, Definition] = {}
        """What the monitor of each container was told at its start: what an in-place reboot brings back."""
        self.present: dict[str, Definition] = {}
        """What each container is now: how it was started, and what was changed since."""

    async def open(self, defined: Iterable[Definition]) -> None:
        """Adopt what runs, and find out what became of what does not run any more."""
        self.runs = await asyncio.to_thread(self._store.load_all)
        self.started = await asyncio.to_thread(self._started_store.load_all)
        self.present = await asyncio.to_thread(self._present_store.load_all)
        for definition in defined:  # runs of an agent that kept no such record were started with these
            self.started.setdefault(definition.spec.name, definition)
            self.present.setdefault(definition.spec.name, self.started[definition.spec.name])
        await self.adopt()
        for name, run in list(self.runs.items()):
            if run.alive and run.init is not None:
                if run.asked == CHECKPOINT:  # by an agent that is no more: whether it comes to its end is not known
                    self.keep(name, replace(run, asked=""))
                self._watcher.watch(name, run.init)
            elif not run.ended:
                self._init_ended(name)
        self._holding = asyncio.create_task(self._hold(), name="lxc-hold")

    async def close(self) -> None:
        """Stop watching; containers go on."""
        self._watcher.close()
        tasks = [*self._settling.values(), *self._announcing, *filter(None, [self._holding])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.probe.criu.close()

    async def start(self, definition: Definition, generation: int, restore: Restore | None = None) -> None:
        """Start a container that does not run, or have it restored. Raises GUEST_START_FAILED, and what `restore` raises."""
        name = definition.spec.name
        files = self.files(name)
        claim = claim_of(definition, generation)
        await self._claims.check(claim)
        if name in self.runs:
            processes.remove_cgroups(self.runs[name].cgroups)
        await asyncio.to_thread(prepare.make_folder, files)
        ids = await self._ids(definition)
        try:
            await self._start(definition, claim, ids, restore)
        finally:
            if ids.own is not None:
                self._reserved.discard(ids.own.base)
        await self.enforce(name)
        self._announce(name)

    async def _start(self, definition: Definition, claim: Claim, ids: Ids, restore: Restore | None) -> None:
        name = definition.spec.name
        files = self.files(name)
        if restore is not None:
            ids = restore.ids(ids)
        prepared = await asyncio.to_thread(
            prepare.prepare, definition, files, ids, self._roots, restored=restore is not None
        )
        if claim.disks:
            prepared = replace(prepared, order=claim.order(definition.disks[0].path, str(files.monitor_pid)))
        run = Run(
            claim.record["generation"],
            prepared.mode,
            prepared.halt_signal,
            base=prepared.base,
            note=prepared.note,
            interfaces=dict(prepared.interfaces),
            application=bool(prepared.command),
        )
        self.keep(name, run)
        self.keep_present(name, definition, started=True)
        try:
            if restore is None:
                await launch.launch(files, prepared.command, prepared.order)
            else:
                await restore.begin(files, definition, prepared, ids)
            found = processes.scan(self._path).get(name)
            if found is None or found.init is None:
                raise launch.start_failed(files)
            if restore is not None:
                await restore.limit(files, definition, prepared, found.init.pid)
        except BaseException as error:
            await asyncio.shield(self._clear(name, restored=restore is not None))
            self.keep(name, replace(run, ended=True, reason=str(error) or "the start was cancelled"))
            if isinstance(error, GugusError):
                await self._claims.check(claim)  # another host may have been first: that is what is told then
            raise
        self._run_found(name, run, found)

    async def _clear(self, name: str, *, restored: bool) -> None:
        """Leave nothing of a start that failed, also when its call was cancelled."""
        await kill_containers(self._path, self._store, {name}, KILL_TIMEOUT_S)
        if restored:
            try:
                await asyncio.to_thread(processes.kill_payload, name)
            except OSError as error:
                log.error("what was half restored may be left", guest=name, error=str(error))
        await self._unplug(name)

    async def _unplug(self, name: str) -> None:
        """Remove interfaces that outlived a container: liblxc removes only those that it has made itself."""
        for host_name in self.runs[name].interfaces.values():
            if interfaces.exists(host_name):
                try:
                    await interfaces.unplug(host_name)
                except GugusError as error:
                    log.warning("an interface is left", guest=name, interface=host_name, error=error.message)

    def _announce(self, name: str) -> None:
        """Have the network learn where the container is; nobody waits for that."""
        if (init := self.runs[name].init) is not None and self.present[name].nics:
            work = announce.announce(init.pid, self.present[name].nics)
            task = asyncio.get_running_loop().create_task(work, name=f"lxc-announce-{name}")
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    async def enforce(self, name: str) -> None:
        """Set what liblxc does not set at a start or a reboot; what cannot be is noted for the operator. Never raises."""
        run, definition = self.runs[name], self.present[name]
        if run.init is None:
            return
        try:
            problems = await live.enforce(name, run.init.pid, definition, run.interfaces)
        except (OSError, GugusError) as error:
            problems = [f"limits were not set: {error}"]
        if problems:
            log.warning("container is not limited as asked", guest=name, problems=problems)
            self.keep(name, replace(self.runs[name], note="; ".join(filter(None, [run.note, *problems]))))

    async def _hold(self) -> None:
        """Hold, for ever, the leases of containers whose holder was killed, or which were given another disk while they run."""
        while True:
            for name, run in list(self.runs.items()):
                if name in self.present and run.alive and run.monitor is not None and run.generation:
                    claim = claim_of(self.present[name], run.generation)
                    try:
                        await self._claims.hold(claim, self.present[name].disks[0].path, run.monitor.pid)
                    except GugusError as error:
                        log.error("leases cannot be looked at", guest=name, error=error.message)
            await asyncio.sleep(HOLD_PERIOD_S)

    async def kill(self, name: str) -> dict[str, str]:
        """Kill a container and let liblxc clean up; returns what is left, name -> why."""
        self.keep(name, replace(self.runs[name], asked="kill"))
        report = await kill_containers(self._path, self._store, {name}, KILL_TIMEOUT_S, gently=True)
        if not report.alive:
            self._init_ended(name)
            await self.settled(name)
        return dict(report.alive)

    def forget(self, name: str) -> None:
        """Forget a container that does not run."""
        self._watcher.forget(name)
        for store in (self._started_store, self._present_store):
            store.remove(name)
        self._store.remove(name)
        for known in (self.runs, self.started, self.present):
            known.pop(name, None)
        self._tidy_ranges()

    async def adopt(self) -> None:
        """Take up every container that runs in our lxcpath and is not watched, also one that an operator started."""
        for name, found in processes.scan(self._path).items():
            if not self._is_known_alive(name) and found.init is not None and self.files(name).mark.exists():
                run = self.runs.get(name) or self._store.load(name) or Run(generation=0)
                fresh = replace(run, asked="", ended=False, end="", reason="")
                mode, base = run.mode or prepare.mode_of(found.init.pid), prepare.base_of(found.init.pid)
                self._run_found(name, replace(fresh, mode=mode, base=base or 0), found)

    async def adopt_unknown(self) -> None:
        """Adopt what runs and is not known. One file is read when there is no such container."""
        if any(not self._is_known_alive(name) for name in processes.live_names(self._path)):
            await self.adopt()

    async def adopt_if_running(self, name: str) -> None:
        """Adopt one container, if it runs and is not known."""
        if not self._is_known_alive(name) and name in processes.live_names(self._path):
            await self.adopt()

    async def settled(self, name: str) -> None:
        """Wait until what follows the end of an init is over."""
        if task := self._settling.get(name):
            await asyncio.wait([task], timeout=SETTLE_TIMEOUT_S)

    def keep(self, name: str, run: Run) -> None:
        """Remember a run, also on disk."""
        self.runs[name] = run
        self._store.save(name, run)

    def keep_present(self, name: str, definition: Definition, *, started: bool = False) -> None:
        """Remember what a container has become; `started`: also that it was started so."""
        self.present[name] = definition
        self._present_store.save(definition)
        if started:
            self.started[name] = definition
            self._started_store.save(definition)

    def files(self, name: str) -> Files:
        """The files of a container."""
        return Files(self._path, name)

    async def _ids(self, definition: Definition) -> Ids:
        """Find out which ids a container can run with here."""
        if definition.spec.container.privileged:
            return Ids(await self.probe.unprivileged_problem())
        if problem := await self.probe.unprivileged_problem():
            return Ids(problem)
        if shared := await self.probe.why_shared():
            return Ids(shared=shared)
        own = idmap.own(definition.spec.id, self.used_ranges())
        if own is None:
            return Ids(shared="all ranges of ids are taken")
        self._reserved.add(own.base)
        try:
            return Ids(own=own, userns=await self._ranges.ensure(own))
        except BaseException as error:
            self._reserved.discard(own.base)
            if not isinstance(error, GugusError):
                raise
            return Ids(shared=error.message)

    def used_ranges(self) -> set[int]:
        """Return the bases of ranges of ids that containers run in, or are about to."""
        return {run.base for run in self.runs.values() if not run.ended} | self._reserved

    def userns_of(self, run: Run) -> Path | None:
        """Return the namespace by which a run's ids are translated; None when they are not."""
        own = run.base not in (0, idmap.IDMAP.base)
        return self._ranges.file(idmap.IdMap(run.base, idmap.IDMAP.size)) if own else None

    def _tidy_ranges(self) -> None:
        self._ranges.keep_only(self.used_ranges())

    def _run_found(self, name: str, run: Run, found: processes.Processes) -> None:
        if found.init is None:
            return
        cgroups = processes.container_cgroups(found, name)
        self.keep(name, replace(run, monitor=found.monitor, init=found.init, cgroups=cgroups))
        self._watcher.watch(name, found.init)

    def _is_known_alive(self, name: str) -> bool:
        return name in self._settling or (name in self.runs and self.runs[name].alive)

    def _init_ended(self, name: str) -> None:
        if name not in self._settling and name in self.runs and not self.runs[name].ended:
            task = asyncio.get_running_loop().create_task(self._settle(name), name=f"lxc-settle-{name}")
            self._settling[name] = task
            task.add_done_callback(lambda _: self._settling.pop(name, None))

    async def _settle(self, name: str) -> None:
        """After the end of an init: wait until liblxc has cleaned up, or has started another one (a reboot)."""
        run = self.runs[name]
        if run.monitor is not None and (init := await self._next_init(name, run, run.monitor)) is not None:
            await self._rebooted_in_place(name, run, processes.Processes(run.monitor, init))
            return
        run = self.runs.get(name, run)
        end, reason = ("", "")
        if not run.asked:
            end, reason = launch.how_it_ended(self.files(name), application=run.application)
        processes.remove_cgroups(run.cgroups)
        self.keep(name, replace(run, ended=True, end=end, reason=reason))
        self._tidy_ranges()
        await self._unplug(name)
        await shaping.forget(self._limited(name, run))
        log.info("container ended", guest=name, asked=run.asked, end=end, reason=reason)
        self._ended(name)

    async def _rebooted_in_place(self, name: str, run: Run, found: processes.Processes) -> None:
        """The monitor brought back what it was started with, and nothing that was changed since."""
        if (started := self.started.get(name)) is not None:
            names = {nic.spec.name: prepare.host_interface(started.spec.id, n) for n, nic in enumerate(started.nics)}
            run = replace(run, interfaces=names)
            self.keep_present(name, started)
        self._run_found(name, replace(run, asked=""), found)
        if started is not None:
            await self.enforce(name)
        self._rebooted(name)

    def _limited(self, name: str, run: Run) -> list[str]:
        """Host's ends of the interfaces that had rules."""
        nics = self.present[name].nics if name in self.present else ()
        limited = [nic.spec.name for nic in nics if nic.spec.settings.rate_bytes_per_s]
        return [run.interfaces[nic] for nic in limited if nic in run.interfaces]

    async def _next_init(self, name: str, run: Run, monitor: ProcessRecord) -> ProcessRecord | None:
        """Return the init that a monitor starts after the end of the last one; None once the monitor has ended."""
        end = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            try:
                if not run.monitored:
                    return None
                init = processes.child_init(monitor)
                new = init if init != run.init else None
                if new is not None and (processes.is_set_up(new) or time.monotonic() >= end):
                    return new
                if init is None and time.monotonic() >= end:
                    await kill_containers(self._path, self._store, {name}, KILL_TIMEOUT_S)
            except OSError as error:  # it may still be there
                log.error("container cannot be looked at; trying again", guest=name, error=str(error))
                await asyncio.sleep(_PAUSE_S)
            await asyncio.sleep(_POLL_S)
