"""Live migration through libvirt, peer to peer, with every connection of libvirt and QEMU in UNIX sockets.

The source's libvirtd reaches the target's through a door of the agent, the two QEMUs reach each other through two more
(libvirt 6.8 and later: unix:// for the control connection, for memory and for disks). So no port of libvirt or QEMU is
open, and what goes over the network is the agents' TLS.

The sockets are named *.tunnelmigrate.dest.GUEST under /run/libvirt, for that is what the AppArmor profile that libvirt's
virt-aa-helper makes for a QEMU lets it open (virt-aa-helper.c, "tunnelmigrate.dest").

The target's domain is left paused by libvirt (VIR_MIGRATE_PAUSED); see agent.compute.migration for why, and who lets it go on.
"""

import asyncio
import dataclasses
import os
import signal
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import libvirt
from gugus.agent.v1 import guest_pb2, migration_pb2

from agent.compute import processes
from agent.compute.definitions import DefinitionStore
from agent.compute.hypervisor import Progress
from agent.compute.kvm import destination, firmware, policy
from agent.compute.kvm.domains import Domains
from agent.compute.kvm.incoming import Incoming
from agent.compute.kvm.obstacles import emulator, incompatible, kept_here
from agent.compute.kvm.ownership import give, qemu_user
from agent.compute.migration import Connect, OpenDoor, Parcel
from agent.compute.processes import ProcessRecord
from agent.migration.departure import connect_unix
from common.errors import GugusError, internal, precondition
from common.logs import get_logger
from common.waiting import happened

FOLDER = Path("/run/libvirt/gugus")
SEND_TIMEOUT_S = 7 * 24 * 3600.0
"""No migration takes a week; until then only its policy, or a cancel, ends it."""

PROGRESS_S = 0.5
STILL_LOOK_S = 1.0
"""So often a guest that is sent is looked at beside libvirt's own word, which may be lost when its connection is."""

LARGEST_FILE_BYTES = 4 * 1024 * 1024
HALT_TIMEOUT_S = 2.0
HALT_POLL_S = 0.0005

SETTLE_S = 0.03
"""A guest that just went on has its host's processors for itself so long, as far as that is ours to say: its translations and caches
are cold, and what is left to do after a migration can wait. Measured on two cores with 60 ms: the first answer came after 29 ms, not 40."""

_COMPLETE = (migration_pb2.MIGRATION_PRESENCE_WAITING, migration_pb2.MIGRATION_PRESENCE_RUNNING)
_AFTER_SWITCH = (libvirt.VIR_DOMAIN_PAUSED_POSTCOPY, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
_FETCHING = (libvirt.VIR_DOMAIN_RUNNING_POSTCOPY, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED)
_TORN = {(libvirt.VIR_DOMAIN_PAUSED, reason) for reason in _AFTER_SWITCH}
_TORN |= {(libvirt.VIR_DOMAIN_RUNNING, reason) for reason in _FETCHING}
"""States of the two ends of a post-copy migration while the guest's memory is in two places."""

_log = get_logger("kvm.migration")


class Machines(Protocol):
    """What of the driver is needed."""

    @property
    def domains(self) -> Domains:
        """The domains."""

    @property
    def definitions(self) -> DefinitionStore:
        """The definitions."""

    @property
    def state(self) -> Path:
        """The driver's folder."""

    async def process(self, name: str) -> ProcessRecord | None:
        """Return the process of a guest. Raises PROCESS_UNTOLD."""

    def killed(self, name: str) -> None:
        """Note that a guest is being ended on purpose."""

    async def kill(self, name: str) -> None:
        """End a guest at once. Raises GUEST_NOT_KILLED."""

    async def arrived(self, name: str) -> None:
        """Note that a guest came in."""

    def watch(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called in the loop after each change of a guest ("": of any)."""


class KvmMigration:
    """A part of the driver, as `agent.compute.migration.Migration` describes it."""

    def __init__(self, machines: Machines, folder: Path = FOLDER) -> None:
        self._machines, self._folder = machines, folder
        self._news = asyncio.Event()
        self._incoming: dict[str, Incoming] = {}
        self._changed_s: dict[str, float] = {}
        machines.watch(self._changed)

    async def survey(self, name: str) -> migration_pb2.GuestSurvey:
        """Read the running domain."""
        xml, real_cpu, version, host = await self._machines.domains.require(name, _describe)
        survey = migration_pb2.GuestSurvey(emulator_version=version)
        domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
        kind, cpu = domain.find("os/type"), domain.find("cpu")
        survey.machine = kind.get("machine", "") if kind is not None else ""
        survey.mode = "kvm" if domain.get("type") == "kvm" else "tcg"
        if cpu is not None and cpu.get("mode", "custom") == "custom" and cpu.find("model") is not None:
            survey.cpu_xml = real_cpu
        elif cpu is not None and survey.mode == "kvm":
            survey.cpu_xml = host  # host-passthrough: the target's processor has to be able to do all that this one can
        survey.obstacles.extend(kept_here(xml))
        for path in destination.small_files(xml, str(self._machines.state)):
            content = await asyncio.to_thread(_read, Path(path))
            survey.files.add(path=str(Path(path).relative_to(self._machines.state)), content=content)
        return survey

    async def check(
        self, spec: guest_pb2.GuestSpec, survey: migration_pb2.GuestSurvey, policy: migration_pb2.MigrationPolicy
    ) -> list[migration_pb2.MigrationObstacle]:
        """Ask this host's libvirt about the CPU and the machine type."""
        return await self._machines.domains.call(partial(incompatible, survey=survey, policy=policy))

    async def places(self, name: str) -> dict[str, str]:
        """Return where this host has a guest's files."""
        return destination.places_of(self._machines.definitions.get(name), self._machines.state)

    async def receive(self, name: str) -> Mapping[str, Connect]:
        """Make the folders in which this host's QEMU will open its sockets, and have what belongs to the machine alone."""
        await self._make_folder()
        definition = self._machines.definitions.get(name)
        try:
            await asyncio.to_thread(firmware.make_folder, definition)
            await firmware.clear_tpm(definition.spec.uid)
        except OSError as error:
            raise internal("MACHINE_FOLDER", f'the machine folder of guest "{name}": {error}.') from error
        files = [disk.path for disk in definition.disks if not disk.read_only]
        if definition.files.state is not None:
            files.append(definition.files.state / firmware.VARIABLES_FILE)
        await self._machines.domains.call(partial(give, paths=files))
        self._clear(name)
        sockets = {stream: self._socket(name, stream) for stream in ("memory", "disk")}
        joins: dict[str, Connect] = {stream: partial(connect_unix, path) for stream, path in sockets.items()}
        self._incoming[name] = incoming = Incoming(self._socket(name, "run"))
        return {**joins, "control": incoming.connect_libvirt}

    async def presence(self, name: str) -> migration_pb2.MigrationPresence.ValueType:
        """Tell what libvirt has of it: a domain that is coming in is paused for a migration."""
        states: list[list[int]] = []
        await self._machines.domains.act(name, lambda domain: states.append(domain.state()))
        if not states:
            return migration_pb2.MIGRATION_PRESENCE_ABSENT
        state, reason = states[0][:2]
        if state == libvirt.VIR_DOMAIN_RUNNING and reason in _FETCHING:
            return migration_pb2.MIGRATION_PRESENCE_UNSPECIFIED  # whether it will be whole, nobody knows yet
        if state in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED):  # libvirt has yet to take it off its list
            return migration_pb2.MIGRATION_PRESENCE_ABSENT
        if state != libvirt.VIR_DOMAIN_PAUSED:
            return migration_pb2.MIGRATION_PRESENCE_RUNNING
        if reason in _AFTER_SWITCH:  # what runs is the other host's copy, for good
            return migration_pb2.MIGRATION_PRESENCE_ABSENT
        coming = reason in (libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
        return migration_pb2.MIGRATION_PRESENCE_COMING if coming else migration_pb2.MIGRATION_PRESENCE_WAITING

    async def lives(self, name: str) -> bool:
        """Look at the process, too: libvirt may take long to notice its end."""
        if await self.presence(name) == migration_pb2.MIGRATION_PRESENCE_ABSENT:
            return False
        process = await self._machines.process(name)
        return process is not None and not await asyncio.to_thread(processes.stands_still, process)

    def wait_complete(self, name: str, timeout_s: float) -> bool:
        """Wait for QEMU to have all of it, and for the source's libvirt to be through with it."""
        incoming = self._incoming.get(name)
        return incoming is not None and incoming.wait(timeout_s)

    async def is_complete(self, name: str) -> bool:
        """Ask libvirt."""
        with suppress(GugusError):
            return await self.presence(name) in _COMPLETE
        return False

    async def standstill(self, name: str) -> None:
        """Wait for libvirt to tell that the domain is paused for the last of it, or is no more."""
        ran = False
        while True:
            self._news.clear()
            with suppress(GugusError):
                runs = await self.presence(name) == migration_pb2.MIGRATION_PRESENCE_RUNNING
                if ran and not runs:
                    return
                ran |= runs
            await happened(self._news, STILL_LOOK_S)

    def stopped_s(self, name: str) -> float:
        """Return when the guest last changed: of one that is complete elsewhere, when it stopped here (time.monotonic)."""
        return self._changed_s.get(name, time.monotonic())

    async def resume(self, name: str) -> float:
        """Let the CPUs run; QEMU announces the guest's addresses on its bridges by itself then.

        libvirt resumes no domain before its own part of the migration is over, which takes as long as all the rest of the
        hand-over; so QEMU is told first, and libvirt then finds that it runs.
        """
        await self._settle_tpm(name)
        ran_s = 0.0
        if (incoming := self._incoming.pop(name, None)) is not None:
            await asyncio.to_thread(incoming.go_on)
            ran_s = time.monotonic()
            incoming.close()
            await asyncio.sleep(SETTLE_S)
        await self._machines.domains.require(name, _resume)
        ran_s = ran_s or time.monotonic()
        await self._machines.arrived(name)
        return ran_s

    async def hold(self, name: str) -> None:
        """Take in a domain whose CPUs are to stand still, as they did at its source."""
        self._leave(name)
        await self._settle_tpm(name)
        await self._machines.arrived(name)

    async def bury(self, name: str) -> bool:
        """End a domain that has only a part of its memory."""
        states: list[tuple[int, int]] = []
        await self._machines.domains.act(name, lambda domain: states.append(tuple(domain.state()[:2])))
        if not _TORN.intersection(states):
            return False
        _log.error("the rest of a guest's memory cannot be had: ending it", guest=name)
        await self._machines.kill(name)
        return True

    async def drop(self, name: str) -> None:
        """Destroy the domain that came in."""
        self._machines.killed(name)
        await self._machines.domains.act(name, lambda domain: domain.destroy())
        with suppress(
            OSError, GugusError
        ):  # the next arrival, or the guest's removal, tries again; or it is not defined any more
            await firmware.clear_tpm(self._machines.definitions.get(name).spec.uid)
        self._clear(name)

    async def send(self, parcel: Parcel, open_door: OpenDoor, progress: Progress) -> None:
        """Have libvirt migrate the domain, and follow it."""
        user = await self._make_folder()
        parcel, forgetful = await self._as_it_stands(parcel)
        sockets = {stream: self._socket(parcel.name, stream) for stream in ("control", "memory", "disk")}
        for stream, path in sockets.items():
            open_door(path, stream, (0, 0) if stream == "control" else user)
        places = await self.places(parcel.name)
        sockets["run"] = self._socket(parcel.name, "run")
        begin = partial(_begin, parcel=parcel, sockets=sockets, here=places)
        sending = asyncio.create_task(self._machines.domains.require(parcel.name, begin, timeout_s=SEND_TIMEOUT_S))
        watch = policy.Watch(parcel.policy, time.monotonic(), forgetful=forgetful)
        if forgetful:
            _log.warning("this QEMU's emulator may lose what the guest writes while it is sent", guest=parcel.name)
        try:
            await self._machines.domains.act(parcel.name, watch.limits())
            while not (await asyncio.wait({sending}, timeout=PROGRESS_S))[0]:
                await self._look(parcel.name, watch, progress)
        except BaseException:
            if await self._abort(parcel.name, sending):
                return  # it went over before the order was obeyed: libvirt breaks off no post-copy
            raise
        try:
            await sending
        except GugusError as error:
            raise watch.failure(parcel.name, error) from error

    async def halt(self, name: str) -> None:
        """Stop QEMU's process, which has no more to do: to take it down costs its host more, and what comes after it, than this."""
        await self._signal(name, _halt)

    async def end(self, name: str) -> None:
        """Kill QEMU's process; the kernel gives its memory back in its own time."""
        await self._signal(name, lambda process: processes.send(process, signal.SIGKILL))

    async def _signal(self, name: str, send: Callable[[ProcessRecord], object]) -> None:
        process = await self._machines.process(name)
        if process is None:
            return
        self._machines.killed(name)
        try:
            await asyncio.to_thread(send, process)
        except OSError as error:
            raise internal(
                "GUEST_NOT_KILLED", f'the process of guest "{name}" cannot be looked at: {error}.'
            ) from error

    def _leave(self, name: str) -> None:
        if (incoming := self._incoming.pop(name, None)) is not None:
            incoming.close()

    def _clear(self, name: str) -> None:
        """Remove the sockets of a guest that came in, or is to."""
        self._leave(name)
        for stream in ("memory", "disk", "run"):
            self._socket(name, stream).unlink(missing_ok=True)

    def _changed(self, name: str) -> None:
        if name:
            self._changed_s[name] = time.monotonic()
        self._news.set()

    async def _look(self, name: str, watch: "policy.Watch", progress: Progress) -> None:
        """Tell how far it is, and do what its policy says."""
        stats: list[dict[str, Any]] = []
        with suppress(GugusError):  # it may be over, or libvirtd busy
            await self._machines.domains.act(name, lambda domain: stats.append(domain.jobStats()))
        if not stats or stats[0].get("type", 0) != libvirt.VIR_DOMAIN_JOB_UNBOUNDED:
            return
        percent, words = policy.told(stats[0])
        progress(percent, words)
        longer, act = watch.longer(stats[0]), watch.due(stats[0], time.monotonic())
        if act is not None:
            _log.warning("migration does not come to its end", guest=name, action=watch.action)
        for what in (longer, act):
            if what is not None:
                with suppress(GugusError):
                    await self._machines.domains.act(name, what)

    async def _as_it_stands(self, parcel: Parcel) -> tuple[Parcel, bool]:
        """Return a parcel whose policy fits a guest that is held (it changes nothing, so there is no use for post-copy), and whether its
        QEMU forgets writes.
        """
        held, forgetful = await self._machines.domains.require(parcel.name, _condition)
        return (dataclasses.replace(parcel, policy=policy.of_held(parcel.policy)) if held else parcel), forgetful

    async def _settle_tpm(self, name: str) -> None:
        definition = self._machines.definitions.get(name)
        try:
            await firmware.settle_tpm(definition)
        except OSError as error:
            raise internal("TPM_NOT_SETTLED", f'the TPM of guest "{name}": {error}.') from error

    async def _abort(self, name: str, sending: "asyncio.Task[None]") -> bool:
        """End the migration and wait until libvirt has let the guest go on here; whether it has gone over all the same."""

        async def abort() -> None:
            while not sending.done():
                with suppress(GugusError):
                    await self._machines.domains.act(name, lambda domain: domain.abortJob())
                await asyncio.wait({sending}, timeout=PROGRESS_S)

        await asyncio.shield(asyncio.ensure_future(abort()))
        return not sending.cancelled() and sending.exception() is None

    async def _make_folder(self) -> tuple[int, int]:
        """Make the folder for sockets; return QEMU's user and group, whose it is."""
        user = await self._machines.domains.call(qemu_user)

        def make() -> None:
            self._folder.mkdir(parents=True, exist_ok=True)
            os.chown(self._folder, *user)
            self._folder.chmod(0o700)

        await asyncio.to_thread(make)
        return user

    def _socket(self, name: str, stream: str) -> Path:
        return self._folder / f"{stream[0]}.tunnelmigrate.dest.{name}"


def _describe(domain: Any) -> tuple[str, str, str, str]:
    """Return a domain's XML, its CPU as it came out, its emulator's version, and the host's CPU; in a thread of libvirt's pool.

    The CPU that was asked for may have features that the guest did not get; those the target need not have.
    """
    connection = domain.connect()
    flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE
    cpu = ET.fromstring(connection.getCapabilities()).find("host/cpu")  # noqa: S314  (libvirt's own output)
    real = ET.fromstring(domain.XMLDesc(0)).find("cpu")  # noqa: S314  (libvirt's own output)
    found = ["" if one is None else ET.tostring(one, encoding="unicode") for one in (real, cpu)]
    return domain.XMLDesc(flags), found[0], emulator(connection), found[1]


def _condition(domain: Any) -> tuple[bool, bool]:
    """Return whether a domain's processors stand still, and whether its QEMU forgets what they write."""
    kind = ET.fromstring(domain.XMLDesc(0)).get("type", "")  # noqa: S314  (libvirt's own output)
    return domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED, policy.forgets_writes(kind, domain.connect().getVersion())


def _begin(domain: Any, parcel: Parcel, sockets: Mapping[str, Path], here: Mapping[str, str]) -> None:
    """Migrate, in a thread of libvirt's pool; returns when it is over."""
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
    moved = destination.Moved(here, parcel.places)
    parameters = policy.parameters(parcel.policy)
    parameters[libvirt.VIR_MIGRATE_PARAM_URI] = f"unix://{sockets['memory']}"
    parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = destination.rewritten(
        xml, parcel.target_generation, moved, parcel.bridges, parcel.spec, monitor=str(sockets["run"])
    )
    if parcel.copied_disks:
        paths = [here[f"disk/{disk}"] for disk in parcel.copied_disks]
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = destination.targets_of(xml, paths)
        parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{sockets['disk']}"
    flags = policy.flags(parcel.policy, copies_disks=bool(parcel.copied_disks))
    domain.migrateToURI3(f"qemu+unix:///system?socket={sockets['control']}", parameters, flags)


def _resume(domain: Any) -> None:
    try:
        domain.resume()
    except libvirt.libvirtError:
        if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            raise


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE_BYTES + 1)
    if len(content) > LARGEST_FILE_BYTES:
        raise precondition("FILE_TOO_LARGE", f"{path} is larger than {LARGEST_FILE_BYTES} bytes and cannot move.")
    return content


def _halt(process: ProcessRecord) -> None:
    """SIGSTOP, and wait until each thread stands still: none returns to user space before a SIGCONT, which nobody sends."""
    if not processes.send(process, signal.SIGSTOP):
        return
    end = time.monotonic() + HALT_TIMEOUT_S
    while not processes.stands_still(process):
        if time.monotonic() > end:
            raise OSError(f"process {process.pid} was told to stop and does not (stuck in the kernel)")
        time.sleep(HALT_POLL_S)
