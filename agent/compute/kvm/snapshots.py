"""Snapshots of running virtual machines: internal snapshots of their qcow2 disks, all at one moment, by QEMU itself.

Disks alone are one QMP transaction. With memory, QEMU's job snapshot-save writes the memory into the first disk while the
machine stands still. To go back, the very machine that the memory belongs to is started anew, with its devices where they
were (they may have been plugged in while it ran), does not run a single instruction, and loads it.
"""

import xml.etree.ElementTree as ET
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import libvirt

from agent.compute.kvm import qmp
from agent.compute.kvm.connection import REFUSED
from agent.compute.kvm.domains import Domains
from agent.compute.kvm.xml.mark import NAMESPACE, PREFIX
from agent.compute.kvm.xml.ownership import remove_findings
from agent.compute.snapshots import MEMORY_TIMEOUT_S, SNAPSHOT_TIMEOUT_S, Taken
from common.errors import GugusError, internal
from common.logs import get_logger

MS_PER_S = 1000
MAX_MACHINE_BYTES = 1024 * 1024
"""Largest description of a machine that is unpacked: 24 disks with all their settings need some 50 KiB."""

_BEFORE_FIRST_RUN = frozenset({"prelaunch", "inmigrate", "restore-vm"})
"""What query-status says of a machine whose CPUs have not run since it was started, or loaded."""

_RUNTIME_PARTS = frozenset({"seclabel", "backingStore", "mirror"})
"""Parts of a live domain's XML that tell what libvirt found or did, not what it is to do."""

_log = get_logger("kvm.snapshots")


class Runner(Protocol):
    """What of the driver is needed beside its domains."""

    async def run_domain(self, name: str, xml: str, generation: int, *, paused: bool = False) -> None:
        """Create a transient domain. Raises GUEST_START_FAILED, DISK_IN_USE."""

    async def kill(self, name: str) -> None:
        """End a domain at once."""

    async def mode(self) -> str:
        """Return the accelerator in use, "kvm" or "tcg"."""


class KvmSnapshots:
    """A part of the driver, as `agent.compute.snapshots.GuestSnapshots` describes it."""

    def __init__(self, domains: Domains, runner: Runner) -> None:
        self._domains, self._runner = domains, runner

    async def memory_obstacles(self, name: str) -> list[str]:
        """Ask QEMU what keeps it from being saved: it would keep it from being migrated as well."""
        known = await self._domains.require(name, lambda domain: qmp.command(domain, "query-migrate"))
        return [str(reason).rstrip(".") for reason in known.get("blocked-reasons", ())]

    async def machine(self, name: str) -> bytes:
        """Return the domain's XML, compressed."""
        flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE
        xml = await self._domains.require(name, lambda domain: domain.XMLDesc(flags))
        return zlib.compress(settled(xml).encode(), level=9)

    async def take(self, name: str, tag: str, disks: Sequence[Path], *, memory: bool) -> Taken:
        """Take a snapshot, unless it is there as a whole."""
        limit_s = MEMORY_TIMEOUT_S if memory else SNAPSHOT_TIMEOUT_S
        try:
            return await self._domains.require(
                name, partial(_take, tag=tag, disks=disks, memory=memory), timeout_s=limit_s
            )
        except GugusError as error:
            with suppress(GugusError):  # it may have ended; whoever asked removes what is left in its disks then
                await self.delete(name, tag, disks)
            raise _in_words(error, f'the snapshot of "{name}" was not taken') from error

    async def delete(self, name: str, tag: str, disks: Sequence[Path]) -> None:
        """Delete a snapshot."""
        try:
            await self._domains.require(name, partial(_delete, tag=tag, disks=disks), timeout_s=SNAPSHOT_TIMEOUT_S)
        except GugusError as error:
            raise _in_words(error, f'the snapshot of "{name}" was not deleted') from error

    async def start_from(
        self,
        name: str,
        generation: int,
        tag: str,
        disks: Sequence[Path],
        machine: bytes,
        revert: Callable[[], Awaitable[None]],
    ) -> None:
        """Start a machine that does not run yet, load its memory, and let it go on."""
        status = await self._status(name)
        if status and status not in _BEFORE_FIRST_RUN:
            return
        if status:
            _log.warning("a start with memory was interrupted; it begins anew", guest=name)
            await self._runner.kill(name)
        xml = renewed(_unpack(machine), generation, await self._runner.mode())
        await revert()
        await self._runner.run_domain(name, xml, generation, paused=True)
        try:
            await self._domains.require(name, partial(_load, tag=tag, disks=disks), timeout_s=MEMORY_TIMEOUT_S)
        except BaseException as error:
            await self._runner.kill(name)
            if isinstance(error, GugusError):
                raise _in_words(error, f'the memory of "{name}" cannot be loaded') from error
            raise
        with suppress(GugusError):  # its clock stands where the snapshot was taken; without a guest agent it stays so
            await self._domains.require(name, lambda domain: domain.setTime(flags=libvirt.VIR_DOMAIN_TIME_SYNC))

    async def _status(self, name: str) -> str:
        """Return what QEMU says of the machine's CPUs; "" when it does not run."""
        try:
            return str(
                (await self._domains.require(name, lambda domain: qmp.command(domain, "query-status")))["status"]
            )
        except GugusError as error:
            if error.reason != "GUEST_NOT_RUNNING":
                raise
            return ""


def settled(xml: str) -> str:
    """Return a live domain's XML without what only tells what libvirt found."""
    domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
    remove_findings(domain, _RUNTIME_PARTS)
    return ET.tostring(domain, encoding="unicode")


def renewed(xml: str, generation: int, mode: str) -> str:
    """Return a machine's XML with our mark for another run of it."""
    domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output, kept by us)
    ET.register_namespace(PREFIX, NAMESPACE)
    mark = domain.find(f"metadata/{{{NAMESPACE}}}guest")
    if mark is None:
        raise internal("SNAPSHOT_FAILED", "the snapshot's machine is none of ours.")
    mark.set("generation", str(generation))
    mark.set("mode", mode)
    return ET.tostring(domain, encoding="unicode")


def _take(domain: Any, *, tag: str, disks: Sequence[Path], memory: bool) -> Taken:
    nodes = qmp.nodes(domain, disks)
    there = qmp.snapshots(domain, nodes)
    if all(tag in known for known in there) and bool(there[0][tag]) == memory:
        return Taken(memory_bytes=there[0][tag])
    _delete(domain, tag=tag, disks=disks)
    if not memory:
        parts = [{"type": "blockdev-snapshot-internal-sync", "data": {"device": node, "name": tag}} for node in nodes]
        qmp.command(domain, "transaction", actions=parts)
        return Taken()
    took_s = qmp.run_job(domain, "snapshot-save", f"save-{tag}", tag=tag, vmstate=nodes[0], devices=nodes)
    memory_bytes = qmp.snapshots(domain, nodes[:1])[0].get(tag, 0)
    return Taken(paused_ms=round(took_s * MS_PER_S), memory_bytes=memory_bytes)


def _delete(domain: Any, *, tag: str, disks: Sequence[Path]) -> None:
    nodes = qmp.nodes(domain, disks)
    for node, known in zip(nodes, qmp.snapshots(domain, nodes), strict=True):
        if tag in known:
            qmp.command(domain, "blockdev-snapshot-delete-internal-sync", device=node, name=tag)


def _load(domain: Any, *, tag: str, disks: Sequence[Path]) -> None:
    nodes = qmp.nodes(domain, disks)
    qmp.run_job(domain, "snapshot-load", f"load-{tag}", tag=tag, vmstate=nodes[0], devices=nodes)
    domain.resume()


def _unpack(machine: bytes) -> str:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(machine, MAX_MACHINE_BYTES).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise internal("SNAPSHOT_FAILED", f"the snapshot's machine cannot be read: {error}.") from error
    if unpacker.unconsumed_tail:
        raise internal("SNAPSHOT_FAILED", f"the snapshot's machine is larger than {MAX_MACHINE_BYTES} bytes.")
    return text


def _in_words(error: GugusError, what: str) -> GugusError:
    """Return an error of QEMU or libvirt as what it means here; others as they are."""
    if error.reason not in (qmp.FAILED, REFUSED, "DISK_NOT_ATTACHED"):
        return error
    remedy = "Read its words; /var/log/libvirt/qemu of the node has more."
    return GugusError(error.code, "SNAPSHOT_FAILED", f"{what}: {error.message}", remedy=remedy)
