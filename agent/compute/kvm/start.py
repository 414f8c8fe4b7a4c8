"""What is done on the host before a virtual machine starts, right after, and once it has ended."""

import asyncio
from pathlib import Path

import grpc

from agent.compute.definitions import Definition
from agent.compute.kvm import devices, firmware, host_devices, seed
from agent.compute.kvm.accelerator import Accelerator
from agent.compute.kvm.caching import cache_mode
from agent.compute.kvm.domains import Domains
from agent.compute.kvm.folders import Folders
from agent.compute.kvm.xml.nics import tap_name
from agent.compute.kvm.xml.run import Run
from agent.leases.claim import QEMU_LOCKED
from agent.leases.refusals import IN_USE, IN_USE_REMEDY
from agent.network import shaping
from common.errors import GugusError, precondition
from common.logs import get_logger

CGROUP_V2 = Path("/sys/fs/cgroup/cgroup.controllers")
"""A file that is there when the host's cgroups are of version 2 (cgroups(7))."""

REMEDY = "Read its words above; `journalctl -u libvirtd` and /var/log/libvirt/qemu have more."
_log = get_logger("kvm.start")


async def prepare(definition: Definition, generation: int, accelerator: Accelerator, folders: Folders) -> Run:
    """Find out, and make, everything on the host that a run needs.

    Raises GUEST_START_FAILED, FIRMWARE_MISSING, TPM_MISSING, and what `host_devices.check` raises.
    """
    name = definition.spec.name
    if not accelerator.mode:
        raise failed(name, accelerator.reason, "Install it.")
    places = await asyncio.to_thread(host_devices.check, definition.spec.virtual_machine)
    uefi = await asyncio.to_thread(firmware.find, definition)
    try:
        await asyncio.to_thread(firmware.make_folder, definition)
        await firmware.mount_tpm(definition)
    except OSError as error:
        raise failed(name, f"its machine folder: {error}", "Look at the pool of its first disk.") from error
    return Run(
        generation=generation,
        mode=accelerator.mode,
        domain_type=accelerator.domain_type,
        seed=await seed.ensure(definition.spec, folders.seeds(name)),
        console=folders.console(name),
        caches=await asyncio.to_thread(lambda: {disk.path: cache_mode(disk.path) for disk in definition.disks}),
        firmware=uefi,
        cgroup_v2=await asyncio.to_thread(CGROUP_V2.exists),
        usb_places=places,
    )


async def shape(domains: Domains, definition: Definition) -> None:
    """Set the rates of a guest's interfaces, which libvirt has just made. Never raises for what fails."""
    limited = {nic.spec.name: nic.spec.settings for nic in definition.nics if nic.spec.settings.rate_bytes_per_s}
    if not limited:
        return
    try:
        xml = await domains.require(definition.spec.name, lambda domain: str(domain.XMLDesc(0)))
        for nic, device in devices.read(xml).named("nic").items():
            if nic in limited:
                await shaping.limit(device.target, limited[nic])
    except GugusError as error:  # the guest runs, and is worth more than its limits
        _log.error("rates of interfaces are not set", guest=definition.spec.name, error=str(error))


async def clean(definition: Definition) -> None:
    """Take away what a run leaves on the host."""
    await firmware.unmount_tpm(definition.spec.uid)
    limited = [index for index, nic in enumerate(definition.nics) if nic.spec.settings.rate_bytes_per_s]
    await shaping.forget(tap_name(definition.spec.id, index) for index in limited)


def failed(name: str, why: str, remedy: str = REMEDY) -> GugusError:
    """Return the error for a guest that does not start."""
    return GugusError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "GUEST_START_FAILED",
        f'guest "{name}" does not start: {why.rstrip(".")}.',
        remedy=remedy,
        metadata={"subject": name},
    )


def refused(name: str, words: str) -> GugusError:
    """Return the error for a guest that libvirt did not start: also QEMU finds disks locked, of pools that only this host has, too."""
    if any(text in words for text in QEMU_LOCKED):
        what = f'a disk of guest "{name}" is in use: {words.rstrip(".")}.'
        return precondition(IN_USE, what, remedy=IN_USE_REMEDY, subject=f"guest/{name}")
    return failed(name, words)
