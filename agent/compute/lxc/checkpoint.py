"""Writing containers down and restoring them, by liblxc and CRIU. See agent.compute.checkpoints.

What liblxc does at a start and not when it restores is done here: the limits and devices of the cgroup, the cgroups below,
and the translation of the root's ids.
"""

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gugus.agent.v1 import guest_pb2, migration_pb2

from agent.compute import idmap
from agent.compute.access import not_running
from agent.compute.definitions import Definition
from agent.compute.lxc import cgroup_tree, cgroups, helper, launch, limits, portable, restoring, security
from agent.compute.lxc.cgroups import Cgroup
from agent.compute.lxc.criu import Criu, CriuProbe, errors_of
from agent.compute.lxc.launch import Files
from agent.compute.lxc.lifecycle import CHECKPOINT, Lifecycle
from agent.compute.lxc.prepare import Ids, Prepared
from agent.compute.lxc.processes import UNIFIED, folders_by_controller
from agent.compute.lxc.runs import Run
from common.errors import GugusError, internal, precondition
from common.files import read_json, write_json
from common.logs import get_logger
from common.process import CommandFailed, run

DUMP_TIMEOUT_S = 120.0
"""CRIU writes some GB/s into the page cache, and from there as fast as the disk; the rest is for loaded hosts."""

RESTORE_TIMEOUT_S = 40.0
"""With the ordinary start that follows a failure, within what the source waits for (agent.migration.host)."""

COMMAND_TIMEOUT_S = 10.0
_NOTE = "gugus.json"
_LOCK = re.compile(r"^table (\w+) (CRIU-\d+)$", re.MULTILINE)  # what CRIU 3.17 calls it, by the pid of an init
_LOG_BYTES = 64 * 1024
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600

log = get_logger("lxc")


class LxcCheckpoints:
    """The ability, for the containers of one lxcpath. `pending`: whether changes of a container wait for its next start."""

    def __init__(
        self,
        lxc_path: Path,
        life: Lifecycle,
        defined: Callable[[str], Definition],
        turn: Callable[[str], asyncio.Lock],
        pending: Callable[[str], bool],
    ) -> None:
        self._path, self._life, self._defined, self._turn, self._pending = lxc_path, life, defined, turn, pending

    async def survey(self, name: str) -> migration_pb2.ContainerSurvey:
        """Tell of a running container."""
        running, criu = await self._running(name), await self._life.probe.criu.look()
        return await asyncio.to_thread(self._survey, name, running, criu)

    async def check(
        self, spec: guest_pb2.GuestSpec, survey: migration_pb2.ContainerSurvey
    ) -> list[migration_pb2.MigrationObstacle]:
        """Tell what is in the way here."""
        probe, used = self._life.probe, self._life.used_ranges()
        found = list(portable.of_target(spec, survey, await probe.criu.look()))
        if not spec.container.privileged:
            own = idmap.own(spec.id, used)
            shared = await probe.unprivileged_problem() or await probe.why_shared()
            found += portable.of_ids(survey.ids_base, own.base if own else 0, shared, sorted(used))
        return found

    async def dump(self, name: str, images: Path) -> None:
        """Write a container down and end it; not interrupted, for CRIU cannot be in the middle of its processes."""
        work = asyncio.ensure_future(self._dump(name, images))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    async def restore(self, name: str, generation: int, images: Path) -> None:
        """Have a container go on."""
        async with self._turn(name):
            await self._life.adopt_if_running(name)
            await self._life.settled(name)
            if name in self._life.runs and self._life.runs[name].alive:
                return
            try:
                note = await asyncio.to_thread(read_json, images / _NOTE)
                kept = Kept(images, note["base"], note["groups"], self._life.probe.criu)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise _not_restored(name, f"its images cannot be read: {error}") from error
            await self._life.start(self._defined(name), generation, kept)
            log.info("container restored", guest=name)

    async def _dump(self, name: str, images: Path) -> None:
        async with self._turn(name):
            running = await self._running(name)
            try:
                await self._write(name, running, images)
            except (GugusError, OSError) as error:
                why = await asyncio.to_thread(_log_of, images / "dump.log") or str(error)
                await asyncio.to_thread(shutil.rmtree, images, ignore_errors=True)
                raise await self._not_dumped(name, running, why) from error
            await self._life.settled(name)
        log.info("container written down", guest=name)

    async def _write(self, name: str, running: Run, images: Path) -> None:
        """Have liblxc write a container into a new folder, then what liblxc knows nothing of."""
        assert running.init is not None
        environment = await self._life.probe.criu.environment()
        await asyncio.to_thread(_make, images)
        top = folders_by_controller(running.init.pid, name).get(UNIFIED)
        groups = await asyncio.to_thread(cgroup_tree.record, str(top)) if top else []
        self._life.keep(name, replace(running, asked=CHECKPOINT))
        argv = ["lxc-checkpoint", "--stop", "--verbose", f"--name={name}", f"--lxcpath={self._path}"]
        await run([*argv, f"--checkpoint-dir={images}"], timeout_s=DUMP_TIMEOUT_S, env=environment)
        await asyncio.to_thread(write_json, images / _NOTE, {"base": running.base, "groups": groups}, _FILE_MODE)

    async def _not_dumped(self, name: str, running: Run, why: str) -> GugusError:
        """See to it that a container that could not be written down goes on, and return the error."""
        if running.alive:
            with suppress(OSError):
                await asyncio.to_thread(lambda: Cgroup(running.init.pid, name).thaw() if running.init else None)
            self._life.keep(name, replace(self._life.runs[name], asked=running.asked))
        state = "it runs on" if running.alive else "and it has ended"
        return precondition(
            "CHECKPOINT_FAILED",
            f'container "{name}" could not be written down by CRIU, {state}: {why.rstrip(".")}.',
            remedy="Without --live it is stopped and started.",
            subject=f"guest/{name}",
        )

    def _survey(self, name: str, running: Run, criu: Criu) -> migration_pb2.ContainerSurvey:
        assert running.init is not None
        told, pid = portable.survey(), running.init.pid
        told.criu_version, told.ids_base = criu.version, running.base
        with suppress(OSError, KeyError):
            told.memory_bytes = int((folders_by_controller(pid, name)[UNIFIED] / "memory.current").read_text())
        if criu.problem:
            what = f"CRIU cannot write containers down on its node: {criu.problem}."
            told.obstacles.add(reason="CRIU_MISSING", message=what, remedy="Without --live it is stopped and started.")
        present = self._life.started.get(name) or self._defined(name)
        told.obstacles.extend(portable.of_spec(present.spec, pending=self._pending(name)))
        with suppress(OSError):
            told.obstacles.extend(portable.of_processes(pid))
        return told

    async def _running(self, name: str) -> Run:
        await self._life.adopt_if_running(name)
        await self._life.settled(name)
        found = self._life.runs.get(name)
        if found is None or found.init is None or not found.alive:
            raise not_running(name)
        return found


@dataclass(frozen=True, slots=True)
class Kept:
    """A container that was written down. See agent.compute.lxc.lifecycle.Restore."""

    images: Path
    base: int
    groups: list[cgroup_tree.Group]
    criu: CriuProbe

    def ids(self, free: Ids) -> Ids:
        """Its ids are in the images: it cannot have others."""
        if self.base == idmap.IDMAP.base:
            return replace(
                free, own=None, userns=None, shared="it came from a host on which it shared its range of ids"
            )
        return free

    async def begin(self, files: Files, definition: Definition, prepared: Prepared, ids: Ids) -> None:
        """Have liblxc and CRIU restore it."""
        name = definition.spec.name
        if prepared.base != self.base:
            raise _not_restored(name, f"here it would run with ids from {prepared.base}, it has those from {self.base}")
        idmapped = prepared.base not in (0, idmap.IDMAP.base)
        order = restoring.Order(
            name=name,
            lxc_path=str(files.lxc_path),
            rootfs=str(definition.disks[0].path),
            userns=str(ids.userns) if idmapped else "",
            images=str(self.images),
            log=str(files.log),
            pid_file=str(files.monitor_pid),
            hook=str(files.restore_hook),
            groups=self.groups,
        )
        try:
            await asyncio.to_thread(_give, self.images, self.base)
            await asyncio.to_thread(files.restore.write_text, json.dumps(order))
            variables = {
                **helper.environment(),
                **await self.criu.environment(),
                restoring.VARIABLE: str(files.restore),
            }
            argv = [sys.executable, "-m", "agent.compute.lxc.restoring"]
            await launch.begin(files, argv, RESTORE_TIMEOUT_S, variables, prepared.order)
        except (CommandFailed, OSError) as error:
            why = await asyncio.to_thread(_log_of, self.images / "restore.log") or str(error)
            raise _not_restored(name, why) from error

    async def limit(self, files: Files, definition: Definition, prepared: Prepared, pid: int) -> None:
        """Set limits and devices before anybody is told that it runs. Raises RESTORE_FAILED."""
        name, spec = definition.spec.name, definition.spec
        wanted = limits.essential(spec, unified=True, swap=cgroups.accounts_swap())
        try:
            failed = await asyncio.to_thread(lambda: Cgroup(pid, name).set(wanted))
            if failed:
                raise _not_restored(name, f"its limits cannot be set: {failed}")
            for word, rule in security.device_rules(spec.container):
                argv = ["lxc-cgroup", f"--name={name}", f"--lxcpath={files.lxc_path}", f"devices.{word}", rule]
                await run(argv, timeout_s=COMMAND_TIMEOUT_S)
            await _let_through(pid)
        except (CommandFailed, OSError) as error:
            raise _not_restored(name, f"its limits cannot be set: {error}") from error


async def _let_through(pid: int) -> None:
    """Open a restored container's network. Raises CommandFailed.

    CRIU locks it by a table of nftables before it writes that down, so the table is restored, and under another name than
    the one that CRIU then removes. Until here it has kept packets from sockets that were not there yet.
    """
    nft = ["nsenter", f"--net=/proc/{pid}/ns/net", "nft"]
    for family, table in _LOCK.findall((await run([*nft, "list", "tables"], timeout_s=COMMAND_TIMEOUT_S)).text):
        await run([*nft, "delete", "table", family, table], timeout_s=COMMAND_TIMEOUT_S)


def _make(images: Path) -> None:
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(mode=_FOLDER_MODE, parents=True)


def _give(images: Path, base: int) -> None:
    """Let CRIU read images as the host's root and as the container's: it is the one, then the other, of each process."""
    for folder, _, names in os.walk(images):
        os.chown(folder, 0, base)
        os.chmod(folder, 0o750)  # noqa: S103  (its root has to enter)
        for name in names:
            os.chown(Path(folder) / name, 0, base)
            os.chmod(Path(folder) / name, 0o640)


def _log_of(file: Path) -> str:
    """Return CRIU's errors."""
    return errors_of(launch.tail(file, _LOG_BYTES).decode(errors="replace"))


def _not_restored(name: str, why: str) -> GugusError:
    return internal("RESTORE_FAILED", f'container "{name}" could not be restored: {why.rstrip(".")}.')
