"""Disks of running virtual machines: copied and flattened by QEMU's block jobs, through libvirt.

A mirror is made with synchronous writes: from when it is complete, whatever the guest is told to be written is in both
volumes. So from then on either may be taken for the disk, however the machine ends.
"""

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt

from agent.compute.definitions import Definition
from agent.compute.hypervisor import AttachedDisk, Progress
from agent.compute.kvm.connection import REFUSED
from agent.compute.kvm.domains import Domains
from agent.compute.kvm.ownership import give
from agent.compute.kvm.xml.ownership import settle
from common.errors import GugusError, internal, precondition, resource_exhausted
from common.logs import get_logger

LOOK_S = 0.2
"""So often a block job is looked at."""

CALL_TIMEOUT_S = 60.0
"""Longest single order; ending a job waits for requests that are under way."""

_NO_SPACE = ("No space left on device", "Disk quota exceeded")
_log = get_logger("kvm.disks")


class KvmDisks:
    """A part of the driver, as `agent.compute.disks.GuestDisks` describes it."""

    def __init__(self, domains: Domains) -> None:
        self._domains = domains

    async def mirror(
        self, name: str, disk: Path, copy: Path, copy_format: str, bytes_per_s: int, progress: Progress
    ) -> None:
        """Start a mirror, unless it is there, and follow it until it is complete."""

        def begin(domain: Any) -> None:
            if _target(domain, copy) or _mirror_of(domain, disk) == str(copy):
                return
            if _mirror_of(domain, disk):
                domain.blockJobAbort(_needed(domain, disk), 0)
            flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
            flags |= libvirt.VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES
            limits = {libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: bytes_per_s} if bytes_per_s else {}
            give(domain.connect(), [copy])
            domain.blockCopy(_needed(domain, disk), _copy_xml(copy, copy_format), limits, flags)

        tell = progress_of(progress)
        try:
            await self._require(name, begin)
            await self._until(name, lambda domain: _complete(domain, disk, copy, tell))
        except asyncio.CancelledError:
            await asyncio.shield(self.drop(name, disk, copy))
            raise
        except GugusError as error:
            raise _in_words(error, "MIRROR_FAILED", f"{disk.name} was not copied") from error

    async def pivot(self, name: str, disk: Path, copy: AttachedDisk) -> None:
        """Go over to the copy, and have the domain's mark say so."""

        def go_over(domain: Any) -> None:
            if _target(domain, copy.path):
                return
            if _mirror_of(domain, disk) != str(copy.path):
                raise precondition(
                    "MIRROR_MISSING",
                    f'guest "{name}" runs on {disk.name}, and no copy of it is being made.',
                    remedy="Move the disk again.",
                )
            domain.blockJobAbort(_needed(domain, disk), libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

        await self._require(name, go_over)
        mark = await self._domains.mark(name)
        if mark is not None and mark.running is not None:
            await self._domains.remark(name, replace(mark, running=_with_copy(mark.running, disk, copy)))

    async def drop(self, name: str, disk: Path, copy: Path) -> None:
        """End a mirror into a copy."""

        def end(domain: Any) -> None:
            if _target(domain, copy):
                raise precondition("VOLUME_IN_USE", f'guest "{name}" uses the copy {copy.name} already.')
            if _mirror_of(domain, disk) == str(copy):
                domain.blockJobAbort(_needed(domain, disk), 0)

        await self._require(name, end)

    async def flatten(self, name: str, disk: Path, bytes_per_s: int, progress: Progress) -> None:
        """Stream the base into the disk, unless that is under way, and follow it."""

        def begin(domain: Any) -> None:
            target = _needed(domain, disk)
            if domain.blockJobInfo(target, 0):
                return
            domain.blockPull(target, bytes_per_s, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)

        def ended(domain: Any) -> bool:
            info = domain.blockJobInfo(_needed(domain, disk), 0)
            if info:
                tell(int(info["cur"]), int(info["end"]))
            return not info

        tell = progress_of(progress)
        try:
            await self._require(name, begin)
            await self._until(name, ended)
        except asyncio.CancelledError:
            await asyncio.shield(self._stop_job(name, disk))
            raise
        except GugusError as error:
            raise _in_words(error, "FLATTEN_FAILED", f"{disk.name} was not flattened") from error

    async def _stop_job(self, name: str, disk: Path) -> None:
        try:
            await self._require(name, lambda domain: domain.blockJobAbort(_needed(domain, disk), 0))
        except GugusError as error:
            _log.warning("block job not ended", guest=name, error=str(error))

    async def _until(self, name: str, done: Callable[[Any], bool]) -> None:
        """Look at a job until it is done; libvirt's events of jobs would be missed while its connection is down."""
        while True:
            if await self._require(name, done):
                return
            await asyncio.sleep(LOOK_S)

    async def _require(self, name: str, act: Callable[[Any], Any]) -> Any:
        return await self._domains.require(name, act, timeout_s=CALL_TIMEOUT_S)


def progress_of(progress: Progress) -> Callable[[int, int], None]:
    """Return what takes bytes done and bytes in all, and tells percents in the loop; to be made in the loop."""
    loop = asyncio.get_running_loop()

    def tell(done: int, total: int) -> None:
        loop.call_soon_threadsafe(progress, done * 100 // total if total else 0, "copying")

    return tell


def _disks(domain: Any) -> list[ET.Element]:
    return ET.fromstring(domain.XMLDesc(0)).findall("devices/disk")  # noqa: S314  (libvirt's own output)


def _file(element: ET.Element) -> str:
    source = element.find("source")
    return "" if source is None else source.get("file") or source.get("dev") or ""


def _target(domain: Any, file: Path) -> str:
    """Return libvirt's name of the disk of a file; "" when the domain has no such disk."""
    for element in _disks(domain):
        target = element.find("target")
        if _file(element) == str(file) and target is not None:
            return target.get("dev", "")
    return ""


def _needed(domain: Any, file: Path) -> str:
    target = _target(domain, file)
    if not target:
        raise internal("DISK_NOT_ATTACHED", f"the running guest does not use {file}.")
    return target


def _mirror(domain: Any, file: Path) -> ET.Element | None:
    for element in _disks(domain):
        if _file(element) == str(file):
            return element.find("mirror")
    return None


def _mirror_of(domain: Any, file: Path) -> str:
    """Return the file that a disk is being mirrored into; "" when it is not."""
    mirror = _mirror(domain, file)
    return "" if mirror is None else _file(mirror) or mirror.get("file", "")


def _complete(domain: Any, disk: Path, copy: Path, tell: Callable[[int, int], None]) -> bool:
    if _target(domain, copy):
        return True
    mirror = _mirror(domain, disk)
    if mirror is None:
        raise internal("MIRROR_FAILED", "QEMU gave the copy up; its log (/var/log/libvirt/qemu) says why.")
    info = domain.blockJobInfo(_needed(domain, disk), 0)
    if info:
        tell(int(info["cur"]), int(info["end"]))
    return mirror.get("ready") == "yes"


def _copy_xml(copy: Path, copy_format: str) -> str:
    disk = ET.Element("disk", type="file")
    ET.SubElement(disk, "driver", name="qemu", type=copy_format)
    settle(ET.SubElement(disk, "source", file=str(copy)))
    return ET.tostring(disk, encoding="unicode")


def _with_copy(running: Definition, disk: Path, copy: AttachedDisk) -> Definition:
    """Return what a domain runs with, with another volume for a disk."""
    spec = type(running.spec)()
    spec.CopyFrom(running.spec)
    disks = list(running.disks)
    for index, known in enumerate(disks):
        if known.path == disk:
            spec.disks[index].pool, spec.disks[index].volume = copy.spec.pool, copy.spec.volume
            disks[index] = replace(known, spec=spec.disks[index], path=copy.path, format=copy.format)
    return replace(running, spec=spec, disks=tuple(disks))


def _in_words(error: GugusError, reason: str, what: str) -> GugusError:
    if any(text in error.message for text in _NO_SPACE):
        return resource_exhausted("NO_SPACE", f"{what}: {error.message}", remedy="Make room, then try again.")
    if error.reason not in (REFUSED, "DISK_NOT_ATTACHED"):
        return error
    return GugusError(
        error.code, reason, f"{what}: {error.message}", remedy="The node's /var/log/libvirt/qemu has more."
    )
