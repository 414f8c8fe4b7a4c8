"""Changes of a running domain's shares, limits and numbers. Each runs in a thread of libvirt's pool.

All raise libvirtError, and Refused for what libvirt need not be asked.
"""

import libvirt

from agent.compute.kvm.changes import Change
from agent.compute.kvm.validity import cpu_set
from agent.compute.kvm.work import Refused, Work
from agent.compute.kvm.xml import cpu, disks, nics
from agent.compute.kvm.xml.run import to_text

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE


def cpus(work: Work, group: list[Change]) -> None:
    """Plug CPUs in, or take out those that were plugged in."""
    most = cpu.most_cpus(work.running)
    if work.wanted.spec.cpus > most:
        raise Refused(f"it was started with at most {most} CPUs")
    if work.mark.mode == "tcg" and work.wanted.spec.cpus < work.running.spec.cpus:
        # QEMU 7.2 frees an emulated CPU that its other threads still use: its heap is broken, and it hangs for ever.
        raise Refused("an emulated CPU cannot be taken out while the guest runs")
    work.domain.setVcpusFlags(work.wanted.spec.cpus, LIVE)


def cpu_share(work: Work, group: list[Change]) -> None:
    """Set weight and quota."""
    spec = work.wanted.spec
    values = {
        "cpu_shares": cpu.shares(spec.resources.cpu_weight, cgroup_v2=work.cgroup_v2),
        "global_period": cpu.PERIOD_US,
        "global_quota": cpu.quota(spec.cpu_limit_milli),
    }
    work.domain.setSchedulerParametersFlags(values, LIVE)


def cpu_pins(work: Work, group: list[Change]) -> None:
    """Bind each CPU that is plugged in to its CPUs of the host, and QEMU's own threads to the guest's set."""
    spec = work.wanted.spec
    host = work.connection.getCPUMap()[0]
    every = set(range(host))
    allowed = cpu_set(spec.resources.cpuset) if spec.resources.cpuset else every
    present = work.domain.vcpusFlags(LIVE)
    for number in range(present):
        pin = spec.virtual_machine.cpu.pins.get(number, "")
        work.domain.pinVcpuFlags(number, _map(cpu_set(pin) if pin else allowed, host), LIVE)
    work.domain.pinEmulator(_map(allowed, host), LIVE)


def io_share(work: Work, group: list[Change]) -> None:
    """Set the weight of the disks."""
    if not work.cgroup_v2:
        raise Refused("this node's kernel has no weights of disks (cgroup version 2)")
    work.domain.setBlkioParameters({"weight": work.wanted.spec.resources.io_weight or cpu.DEFAULT_WEIGHT}, LIVE)


def disk_size(work: Work, group: list[Change]) -> None:
    """Let one disk grow; a smaller size changes nothing."""
    name = group[0].item
    device = work.look().named("disk").get(name)
    wanted = next(disk.spec.size_bytes for disk in work.wanted.disks if disk.spec.name == name)
    if device is None:
        raise Refused("the running guest does not have this disk")
    if wanted > work.domain.blockInfo(device.target)[0]:
        work.domain.blockResize(device.target, wanted, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def disk_limits(work: Work, group: list[Change]) -> None:
    """Set the limits of one disk."""
    name = group[0].item
    device = work.look().named("disk").get(name)
    disk = next(disk for disk in work.wanted.disks if disk.spec.name == name)
    if device is None:
        raise Refused("the running guest does not have this disk")
    values = disks.tuning(disk.spec.settings.limits)
    lengths = [key for key in values if key.endswith("_length")]
    for key in lengths:  # QEMU refuses a length without a burst
        if not values[key]:
            del values[key]
    work.domain.setBlockIoTune(device.target, values, LIVE)


def nic(work: Work, group: list[Change]) -> None:
    """Set the rates of one interface, pull or plug its cable, or move it to another network."""
    name = group[0].item
    device = work.look().named("nic").get(name)
    attached = next(nic for nic in work.wanted.nics if nic.spec.name == name)
    if device is None:
        raise Refused("the running guest does not have this interface")
    element = device.element
    for old in element.findall("link"):
        element.remove(old)
    element.extend(nics.nic_element(attached, device.target).findall("link"))
    source = element.find("source")
    if source is not None and source.get("bridge") != attached.bridge:
        source.attrib.clear()
        source.set("bridge", attached.bridge)
    work.domain.updateDeviceFlags(to_text(element), LIVE)
    work.shape(device.target, attached.spec.settings)


def _map(chosen: set[int], host: int) -> tuple[bool, ...]:
    beyond = sorted(number for number in chosen if number >= host)
    if beyond:
        raise Refused(f"this node has no CPU {beyond[0]}")
    return tuple(number in chosen for number in range(host))
