"""Holding, resetting and hibernating a running domain, and taking a hibernated one up again.

Invariant: the memory of a guest is taken up once. Before its CPUs run, the file is marked as taken, so that a second
start with the same file, after the disks have moved on, boots afresh instead of destroying them.
"""

import asyncio
import contextlib
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import libvirt

from agent.compute.hypervisor import Progress
from agent.compute.kvm.connection import REFUSED
from agent.compute.kvm.domains import Domains
from agent.compute.kvm.ownership import give
from agent.compute.kvm.xml.mark import NAMESPACE, Mark, element, read_mark
from agent.compute.kvm.xml.monitor import remove_monitor
from agent.compute.kvm.xml.ownership import settled_files
from agent.compute.kvm.xml.run import to_text
from common.errors import GugusError, internal, precondition, resource_exhausted
from common.logs import get_logger

SAVE_TIMEOUT_S = 6 * 3600.0
"""Longest writing of a memory: a terabyte at 50 MB a second."""

RESTORE_TIMEOUT_S = 3600.0
PROGRESS_PERIOD_S = 0.5
AGENT_TIMEOUT_S = 90.0
"""libvirt waits up to 60 s for a guest to end by its agent, and some seconds more for an agent that does not answer."""

COMPLETE = b"LibvirtQemudSave"
"""First bytes of a complete memory file (qemu_saveimage.h); another word is there while it is written."""

TAKEN = b"GugusMemoryTaken"
_FULL = ("No space left", "Disk quota exceeded")
_log = get_logger("kvm.power")


async def suspend(domains: Domains, name: str) -> None:
    """Hold a domain's CPUs. Raises GUEST_NOT_RUNNING."""

    def hold(domain: Any) -> None:
        if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
            domain.suspend()

    await domains.require(name, hold)


async def resume(domains: Domains, name: str) -> None:
    """Let a domain's CPUs run. Raises GUEST_NOT_RUNNING."""

    def go_on(domain: Any) -> None:
        state = domain.state()[0]
        if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
            domain.pMWakeup(0)
        elif state == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()

    await domains.require(name, go_on)


async def shutdown_by_agent(domains: Domains, name: str) -> None:
    """Have a guest's agent end it, and press the power button if that fails; takes as long as the guest, up to a minute."""
    try:
        await domains.act(name, _ask_agent, timeout_s=AGENT_TIMEOUT_S)
        return
    except GugusError as error:
        _log.warning("a guest's agent cannot be asked to shut it down", guest=name, error=str(error))
    try:
        await domains.act(name, lambda domain: domain.shutdown())
    except GugusError as error:
        _log.warning("guest cannot be asked to shut down", guest=name, error=str(error))


def _ask_agent(domain: Any) -> None:
    """Ask an agent, or press the power button when there is none that answers. Raises libvirtError."""
    with contextlib.suppress(libvirt.libvirtError):  # it is not up, or hangs
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        return
    if domain.connect().lookupByName(domain.name()).ID() == domain.ID():  # else it was killed, and runs anew
        domain.shutdown()


async def reset(domains: Domains, name: str) -> None:
    """Press a domain's reset button. Raises GUEST_NOT_RUNNING, GUEST_RESET_FAILED."""
    try:
        await domains.require(name, lambda domain: domain.reset(0))
    except GugusError as error:
        if error.reason == REFUSED:
            raise internal("GUEST_RESET_FAILED", f'guest "{name}" is not reset: {error.message}') from error
        raise


async def hibernate(domains: Domains, name: str, path: Path, progress: Progress) -> None:
    """Write a domain's memory to a file and end it. Raises GUEST_NOT_RUNNING, NOT_HIBERNATABLE, NO_SPACE."""
    await _wait_idle(domains, name)
    if await domains.mark(name) is None and await asyncio.to_thread(is_complete, path):
        return  # an agent before this one began it, and libvirtd went on
    telling = asyncio.create_task(_tell(domains, name, progress))
    saving = asyncio.ensure_future(
        domains.require(name, lambda domain: _save(domain, name, path), timeout_s=SAVE_TIMEOUT_S)
    )
    try:
        await asyncio.shield(saving)
    except asyncio.CancelledError:
        with contextlib.suppress(GugusError):
            await domains.act(name, lambda domain: domain.abortJob())
        await asyncio.wait([saving])
        saving.exception()  # looked at: the cancellation is what is told
        raise
    except GugusError as error:
        raise _not_written(name, error) from error
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
    if not await asyncio.to_thread(is_complete, path):
        raise internal("NOT_HIBERNATABLE", f'the memory of guest "{name}" was not written in full.')


async def _wait_idle(domains: Domains, name: str) -> None:
    """Wait until a domain has no job any more; libvirtd ends what a killed agent has begun. Gone counts as idle."""
    busy = True
    while busy:
        try:
            busy = await domains.require(name, lambda domain: domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
        except GugusError as error:
            if error.reason != "GUEST_NOT_RUNNING":
                raise
            return
        if busy:
            await asyncio.sleep(PROGRESS_PERIOD_S)


def is_complete(path: Path) -> bool:
    """Whether a file is a guest's memory that was written to its end and not taken up yet."""
    try:
        with path.open("rb") as file:
            return file.read(len(COMPLETE)) == COMPLETE
    except OSError:
        return False


async def take_up(
    domains: Domains, name: str, path: Path, mark: Mark, during: Callable[[str], AbstractContextManager[None]]
) -> None:
    """Run a domain from its memory, with a mark of this run; `during` holds while libvirt is about to start it.

    Raises what libvirt says (LIBVIRT_REFUSED).
    """

    def restore(connection: Any) -> None:
        with during(name):
            restore_held(connection)

    def restore_held(connection: Any) -> None:
        saved = connection.saveImageGetXMLDesc(str(path), libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
        xml = _remarked(saved, mark)
        give(connection, settled_files(ET.fromstring(xml)))  # noqa: S314  (made by us)
        connection.restoreFlags(str(path), xml, libvirt.VIR_DOMAIN_SAVE_PAUSED)
        domain = connection.lookupByName(name)
        try:
            _take(path)
        except OSError:
            domain.destroy()  # its memory might be taken up twice
            raise
        domain.resume()

    try:
        await domains.call(restore, timeout_s=RESTORE_TIMEOUT_S)
    except OSError as error:
        raise internal("MEMORY_NOT_TAKEN", f"{path} cannot be written: {error}.") from error


def _remarked(xml: str, mark: Mark) -> str:
    """Return the XML of a saved domain with the mark of its new run; what it runs with is what it was saved with."""
    domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
    remove_monitor(domain)
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(domain, "metadata")
    running = mark.running
    for old in metadata.findall(f"{{{NAMESPACE}}}guest"):
        running = read_mark(to_text(old)).running or running
        metadata.remove(old)
    metadata.append(element(Mark(mark.uid, mark.generation, mark.mode, running)))
    return to_text(domain)


def _save(domain: Any, name: str, path: Path) -> None:
    """Write a domain's memory, in a thread of libvirt's pool. Raises libvirtError, NOT_HIBERNATABLE."""
    try:
        domain.save(str(path))
    except libvirt.libvirtError as error:
        # libvirt has one code for a domain that is gone and for one whose devices cannot be saved.
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and domain.isActive():
            raise _not_hibernatable(name, str(error)) from error
        raise


def _take(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(TAKEN)
        file.flush()
        os.fsync(file.fileno())


async def _tell(domains: Domains, name: str, progress: Progress) -> None:
    """Tell how far the writing is. It takes a connection's thread only for moments."""
    while True:
        await asyncio.sleep(PROGRESS_PERIOD_S)
        with contextlib.suppress(GugusError):
            stats = await domains.require(name, lambda domain: domain.jobStats())
            if stats.get("memory_total"):
                part = stats.get("memory_processed", 0) * 100 // stats["memory_total"]
                progress(min(99, part), "writing its memory")


def _not_written(name: str, error: GugusError) -> GugusError:
    if error.reason != REFUSED:
        return error
    if any(words in error.message for words in _FULL):
        what = f'there is no room for the memory of guest "{name}": {error.message}'
        return resource_exhausted("NO_SPACE", what, remedy="Free some room in that pool, or use another one.")
    return _not_hibernatable(name, error.message)


def _not_hibernatable(name: str, why: str) -> GugusError:
    return precondition(
        "NOT_HIBERNATABLE",
        f'guest "{name}" cannot be hibernated: {why.rstrip(".")}.',
        remedy="It runs on. Devices of the host that were given to it are the usual cause.",
        subject=name,
    )
