"""Memory of a virtual machine: how much, in which pages, from which nodes, and how it shrinks and grows."""

import xml.etree.ElementTree as ET

from gugus.agent.v1 import machine_pb2

from agent.compute.definitions import Definition
from agent.compute.kvm.xml.run import Run, text

DIMM_SLOTS = 16
DIMM_STEP_BYTES = 128 * 1024 * 1024
"""What a guest's Linux takes as one block of memory at least (x86-64, Documentation/admin-guide/mm/memory-hotplug.rst)."""

BALLOON_PERIOD_S = 10
"""So often the guest's balloon driver tells how much of its memory is in use."""

_PAGES = {machine_pb2.HUGE_PAGES_2M: ("2", "M"), machine_pb2.HUGE_PAGES_1G: ("1", "G")}


def add(domain: ET.Element, definition: Definition) -> None:
    """Add <maxMemory>, <memory>, <currentMemory>, <memoryBacking> and <numatune>."""
    spec = definition.spec
    wanted = spec.virtual_machine.memory
    if wanted.max_bytes:
        text(domain, "maxMemory", str(wanted.max_bytes), slots=str(DIMM_SLOTS), unit="b")
    text(domain, "memory", str(spec.memory_bytes), unit="b")
    if wanted.huge_pages in _PAGES:
        size, unit = _PAGES[wanted.huge_pages]
        pages = ET.SubElement(ET.SubElement(domain, "memoryBacking"), "hugepages")
        ET.SubElement(pages, "page", size=size, unit=unit)
    placed = [(index, node.host_nodes) for index, node in enumerate(spec.virtual_machine.cpu.numa) if node.host_nodes]
    if placed:
        tune = ET.SubElement(domain, "numatune")
        for index, nodes in placed:
            ET.SubElement(tune, "memnode", cellid=str(index), mode="strict", nodeset=nodes)


def add_tuning(domain: ET.Element, definition: Definition, run: Run) -> None:
    """Add the share of the disks, where the host's cgroups know one."""
    weight = definition.spec.resources.io_weight
    if weight and run.cgroup_v2:
        text(ET.SubElement(domain, "blkiotune"), "weight", str(weight))


def add_balloon(devices: ET.Element, definition: Definition) -> None:
    """Add the balloon."""
    if definition.spec.virtual_machine.memory.no_balloon:
        ET.SubElement(devices, "memballoon", model="none")
        return
    balloon = ET.SubElement(devices, "memballoon", model="virtio", freePageReporting="on")
    ET.SubElement(balloon, "stats", period=str(BALLOON_PERIOD_S))


def dimm(size_bytes: int) -> ET.Element:
    """Return a memory module to be plugged in; size: a multiple of DIMM_STEP_BYTES."""
    module = ET.Element("memory", model="dimm")
    target = ET.SubElement(module, "target")
    text(target, "size", str(size_bytes // 1024), unit="KiB")
    text(target, "node", "0")
    return module
