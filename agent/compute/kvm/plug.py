"""Devices that come into and leave a running domain. Each function runs in a thread of libvirt's pool.

All raise libvirtError, and Refused. What is there already, or gone already, is left alone: a change may be made twice.
"""

import time
from collections.abc import Callable

import libvirt
from gugus.agent.v1 import machine_pb2

from agent.compute.hypervisor import AttachedDisk
from agent.compute.kvm import host_devices
from agent.compute.kvm.caching import cache_mode
from agent.compute.kvm.changes import Change
from agent.compute.kvm.devices import Device, Live
from agent.compute.kvm.ownership import give
from agent.compute.kvm.work import Refused, Work
from agent.compute.kvm.xml import devices, disks, nics
from agent.compute.kvm.xml import memory as memory_xml
from agent.compute.kvm.xml.ownership import settled_files
from agent.compute.kvm.xml.run import to_text
from common.errors import GugusError
from common.units import format_size

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
DETACH_TIMEOUT_S = 10.0
"""How long a guest may take to let a device go; its kernel has to agree."""

_POLL_S = 0.1
_HOT_BUSES = ("virtio", "scsi")
_KIB = 1024


def disk(work: Work, group: list[Change]) -> None:
    """Plug a disk in or take it out; one whose volume was replaced must read from the new one already."""
    name = group[0].item
    live = work.look()
    present = live.named("disk").get(name)
    wanted = next((disk for disk in work.wanted.disks if disk.spec.name == name), None)
    if wanted is None:
        if present is not None:
            _detach(work, present, lambda now: name not in now.named("disk"))
    elif present is not None and present.source != str(wanted.path):
        raise Refused(f"the running guest has {present.source}")
    elif present is None:
        _attach_disk(work, live, wanted)


def _attach_disk(work: Work, live: Live, wanted: AttachedDisk) -> None:
    bus = disks.bus_of(wanted)
    if bus not in _HOT_BUSES:
        raise Refused(f"a disk on the {bus} bus cannot be plugged in while the guest runs")
    target = disks.free_target(bus, live.targets)
    thread = 0
    if wanted.spec.settings.io_thread:
        taken = {*live.io_threads, *(index for kind, index in live.controllers if kind == "scsi")}
        thread = max([0, *taken]) + 1
        work.domain.addIOThread(thread, LIVE)
    if bus == "scsi" and ("scsi", thread) not in live.controllers:
        work.domain.attachDeviceFlags(to_text(disks.scsi_controller(thread, thread)), LIVE)
    element = disks.disk_element(wanted, target, cache_mode(wanted.path), thread, 0)
    give(work.domain.connect(), settled_files(element))
    work.domain.attachDeviceFlags(to_text(element), LIVE)


def nic(work: Work, group: list[Change]) -> None:
    """Plug an interface in or take it out."""
    name = group[0].item
    live = work.look()
    present = live.named("nic").get(name)
    wanted = next((nic for nic in work.wanted.nics if nic.spec.name == name), None)
    if wanted is None and present is not None:
        _detach(work, present, lambda now: name not in now.named("nic"))
    elif wanted is not None and present is None:
        tap = nics.free_tap(work.wanted.spec.id, live.targets)
        element = nics.nic_element(wanted, tap)
        for boot in element.findall("boot"):
            element.remove(boot)
        work.domain.attachDeviceFlags(to_text(element), LIVE)
        if wanted.spec.settings.rate_bytes_per_s:
            work.shape(tap, wanted.spec.settings)


def disc(work: Work, group: list[Change]) -> None:
    """Change the disc in a CD-ROM drive, or take it out; a drive that the guest has locked is opened all the same."""
    name = group[0].item
    present = work.look().named("cd").get(name)
    drive = next((drive for drive in work.wanted.spec.virtual_machine.cdroms if drive.name == name), None)
    if present is None or drive is None:
        raise Refused("the running guest does not have this drive")
    path = work.wanted.files.discs.get(name)
    if present.source == ("" if path is None else str(path)):
        return
    element = disks.cdrom_element(drive, present.target, path)
    work.domain.updateDeviceFlags(to_text(element), LIVE | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)


def memory(work: Work, group: list[Change]) -> None:
    """Plug memory in; or have the balloon take some, which the next start makes final."""
    wanted, present = work.wanted.spec.memory_bytes, work.running.spec.memory_bytes
    if wanted < present:
        if not work.running.spec.virtual_machine.memory.no_balloon:
            work.domain.setMemoryFlags(wanted // _KIB, LIVE)
        raise Refused("the balloon takes what is more; the machine itself shrinks when it is started anew")
    most = work.running.spec.virtual_machine.memory.max_bytes
    if wanted > most:
        grown = f"it was started to grow to {format_size(most)} at most"
        raise Refused(grown if most else "it was started without memory to grow; set --max-memory")
    if (wanted - present) % memory_xml.DIMM_STEP_BYTES:
        raise Refused("memory is plugged in by 128 MiB")
    there = work.domain.maxMemory() * _KIB
    if there < wanted:  # else it was plugged in before, and only not noted
        work.domain.attachDeviceFlags(to_text(memory_xml.dimm(wanted - there)), LIVE)
    if not work.running.spec.virtual_machine.memory.no_balloon:
        work.domain.setMemoryFlags(wanted // _KIB, LIVE)


def usb(work: Work, group: list[Change]) -> None:
    """Plug USB devices in and take others out."""
    live = work.look()
    if ("usb", 0) not in live.controllers:
        raise Refused("it was started without a USB controller")
    wanted = work.wanted.spec.virtual_machine.usb_devices
    for each in wanted:
        if each.port and each.port not in work.usb_places:
            raise Refused(f"this node has no USB device at {each.port}")
    elements = {devices.usb_name(each): to_text(devices.usb_element(each, work.usb_places)) for each in wanted}
    _exchange(work, "usb", elements)


def pci(work: Work, group: list[Change]) -> None:
    """Plug PCI devices in and take others out."""
    if any(p.primary_gpu for p in work.wanted.spec.virtual_machine.pci_devices):
        raise Refused("a primary screen is fixed while the guest runs")
    wanted = machine_pb2.VirtualMachineSpec(pci_devices=work.wanted.spec.virtual_machine.pci_devices)
    try:
        host_devices.check(wanted)
    except GugusError as error:
        raise Refused(error.message) from error
    elements = {devices.pci_name(each): to_text(devices.pci_element(each)) for each in wanted.pci_devices}
    _exchange(work, "pci", elements)


def _exchange(work: Work, kind: str, wanted: dict[str, str]) -> None:
    present = work.look().named(kind)
    for name in present.keys() - wanted.keys():
        _detach(work, present[name], lambda now, name=name: name not in now.named(kind))  # type: ignore[misc]
    for name in wanted.keys() - present.keys():
        work.domain.attachDeviceFlags(wanted[name], LIVE)


def _detach(work: Work, device: Device, gone: Callable[[Live], bool]) -> None:
    """Ask the guest to let a device go, and wait until it did."""
    work.domain.detachDeviceAlias(device.alias, LIVE)
    began_s = time.monotonic()
    end = min(began_s + DETACH_TIMEOUT_S, work.patient_until_s)
    while not gone(work.look()):
        if time.monotonic() >= end:
            raise Refused(f"the guest has not let it go within {max(0.0, end - began_s):.0f} s; it may still do")
        time.sleep(_POLL_S)
