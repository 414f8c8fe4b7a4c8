"""What a virtual machine must be to be run by this driver; all that is wrong is told at once. Pure."""

import re
from collections.abc import Iterator

from gugus.agent.v1 import guest_pb2, machine_pb2, resources_pb2, volume_pb2

from agent.compute.definitions import Definition
from agent.compute.kvm.xml import cpu, disks, display, memory, system
from agent.compute.kvm.xml.run import pc
from common.errors import GugusError, invalid, several

MAX_SERIAL_PORTS = 3
WATCHDOGS = ("i6300esb", "ib700")
_MACHINE = re.compile(r"q35|pc|i440fx|pc-(q35|i440fx)-[0-9]+\.[0-9]+")
_CPU_MODEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_FLAG = re.compile(r"[+-][a-z0-9][a-z0-9_.-]*")
_CPUS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_USB_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_USB_PORT = re.compile(r"\d+-\d+(\.\d+)*")
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]")


def check(definition: Definition) -> None:
    """Raise INVALID_ARGUMENT for a spec that this driver can never run."""
    errors = list(_errors(definition))
    if errors:
        raise several(errors)


def cpu_set(words: str) -> set[int]:
    """Return the numbers of a set like "0-3,8"."""
    numbers: set[int] = set()
    for part in words.split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _errors(definition: Definition) -> Iterator[GugusError]:
    spec, machine = definition.spec, definition.spec.virtual_machine
    yield from _disks(definition)
    if spec.cpus < 1:
        yield invalid("spec.cpus", "a virtual machine needs at least 1 CPU.")
    if machine.machine and not _MACHINE.fullmatch(machine.machine):
        yield invalid(_vm("machine"), f'"{machine.machine}" is no machine type; for example "pc-q35-7.2".')
    yield from _cpu(definition)
    yield from _memory(spec)
    yield from _firmware(definition)
    yield from _fittings(machine, definition)
    yield from _host_devices(machine, definition)


def _disks(definition: Definition) -> Iterator[GugusError]:
    count = len(definition.disks)
    if not 1 <= count <= disks.MAX_DISKS:
        what = f"a virtual machine has 1 to {disks.MAX_DISKS} disks, this one {count}."
        yield invalid("spec.disks", what, remedy="Give it a boot disk.")
    for index, disk in enumerate(definition.disks):
        if disk.format not in disks.FORMATS:
            what = f'volume "{disk.spec.volume}" is no disk but {volume_pb2.VolumeFormat.Name(disk.format)}.'
            yield invalid(f"spec.disks[{index}].volume", what, remedy="Virtual machines need QCOW2 or RAW volumes.")
        if disk.spec.settings.bus == resources_pb2.DISK_BUS_IDE and not pc(definition):
            yield invalid(f"spec.disks[{index}].settings.bus", "IDE is there on machines of the type pc (i440fx) only.")
        if disk.spec.settings.io_thread and disks.bus_of(disk) not in ("virtio", "scsi"):
            yield invalid(f"spec.disks[{index}].settings.io_thread", "is for disks on the virtio and scsi bus only.")


def _cpu(definition: Definition) -> Iterator[GugusError]:
    wanted, most = definition.spec.virtual_machine.cpu, cpu.most_cpus(definition)
    shape = [wanted.sockets or 1, wanted.threads or 1]
    if wanted.sockets or wanted.cores or wanted.threads:
        cores = wanted.cores or most // (shape[0] * shape[1])
        if shape[0] * shape[1] * cores != most:
            what = f"{shape[0]} sockets x {cores} cores x {shape[1]} threads are not the {most} CPUs it can have."
            yield invalid(_vm("cpu.cores"), what)
    if wanted.model and not _CPU_MODEL.fullmatch(wanted.model):
        yield invalid(_vm("cpu.model"), f'"{wanted.model}" is no CPU model; for example "host" or "EPYC".')
    for index, flag in enumerate(wanted.flags):
        if not _FLAG.fullmatch(flag):
            yield invalid(_vm(f"cpu.flags[{index}]"), f'"{flag}" is neither "+name" nor "-name".')
    for number, cpus in wanted.pins.items():
        if number >= most or not _CPUS.fullmatch(cpus):
            yield invalid(_vm(f"cpu.pins[{number}]"), f'"{cpus}" for CPU {number} of {most} is no binding.')
    cpuset = definition.spec.resources.cpuset
    if cpuset and not _CPUS.fullmatch(cpuset):
        yield invalid("spec.resources.cpuset", f'"{cpuset}" is no set of CPUs; for example "0-3,8".')
    yield from _numa(definition, most)


def _numa(definition: Definition, most: int) -> Iterator[GugusError]:
    nodes = definition.spec.virtual_machine.cpu.numa
    if not nodes:
        return
    bad = [index for index, node in enumerate(nodes) if not _CPUS.fullmatch(node.cpus)]
    for index in bad:
        yield invalid(_vm(f"cpu.numa[{index}].cpus"), f'"{nodes[index].cpus}" is no set of CPUs.')
    for index, node in enumerate(nodes):
        if node.host_nodes and not _CPUS.fullmatch(node.host_nodes):
            yield invalid(_vm(f"cpu.numa[{index}].host_nodes"), f'"{node.host_nodes}" is no set of nodes.')
    if bad:
        return
    held = [number for node in nodes for number in cpu_set(node.cpus)]
    if sorted(held) != list(range(most)):
        yield invalid(_vm("cpu.numa"), f"its nodes do not hold each of the CPUs 0 to {most - 1} once.")
    total = sum(node.memory_bytes for node in nodes)
    if total != definition.spec.memory_bytes:
        yield invalid(_vm("cpu.numa"), f"its nodes have {total} bytes, the guest {definition.spec.memory_bytes}.")


def _memory(spec: guest_pb2.GuestSpec) -> Iterator[GugusError]:
    wanted = spec.virtual_machine.memory
    if wanted.max_bytes and wanted.max_bytes < spec.memory_bytes:
        yield invalid(_vm("memory.max_bytes"), f"is {wanted.max_bytes}, less than the memory of {spec.memory_bytes}.")
    if wanted.max_bytes % memory.DIMM_STEP_BYTES:
        yield invalid(_vm("memory.max_bytes"), "is no multiple of 128 MiB, the least that can be added.")


def _firmware(definition: Definition) -> Iterator[GugusError]:
    wanted = definition.spec.virtual_machine.firmware
    uefi = wanted.kind == machine_pb2.FIRMWARE_KIND_UEFI
    if wanted.secure_boot and (not uefi or pc(definition)):
        yield invalid(_vm("firmware.secure_boot"), "is for UEFI on machines of the type q35 only.")
    if (uefi or definition.spec.virtual_machine.tpm) and definition.files.state is None:
        yield invalid(_vm("firmware"), "its first disk is in a pool that has no place for a machine's own state.")


def _fittings(machine: machine_pb2.VirtualMachineSpec, definition: Definition) -> Iterator[GugusError]:
    models = ("", display.NONE, *display.MODELS)
    if machine.display.model not in models:
        yield invalid(_vm("display.model"), f'"{machine.display.model}" is none of {", ".join(models[1:])}.')
    if machine.display.spice and machine.display.model in ("", display.NONE):
        yield invalid(_vm("display.spice"), "there is no screen to serve; set display.model.")
    if machine.watchdog.model and machine.watchdog.model not in WATCHDOGS:
        yield invalid(_vm("watchdog.model"), f'"{machine.watchdog.model}" is none of {", ".join(WATCHDOGS)}.')
    if machine.serial_ports > MAX_SERIAL_PORTS:
        yield invalid(_vm("serial_ports"), f"is {machine.serial_ports}; at most {MAX_SERIAL_PORTS} beside the first.")
    if machine.audio and machine.audio not in display.SOUNDS:
        yield invalid(_vm("audio"), f'"{machine.audio}" is none of {", ".join(display.SOUNDS)}.')
    for name in machine.smbios:
        if name not in system.SMBIOS_FIELDS:
            yield invalid(_vm(f"smbios[{name}]"), f"is none of {', '.join(system.SMBIOS_FIELDS)}.")
    names = [drive.name for drive in machine.cdroms]
    if len(set(names)) != len(names) or "" in names:
        yield invalid(_vm("cdroms"), "each drive needs a name of its own.")


def _host_devices(machine: machine_pb2.VirtualMachineSpec, definition: Definition) -> Iterator[GugusError]:
    for index, usb in enumerate(machine.usb_devices):
        if bool(usb.id) == bool(usb.port):
            yield invalid(_vm(f"usb_devices[{index}]"), "has either an id or a port.")
        elif usb.id and not _USB_ID.fullmatch(usb.id):
            yield invalid(_vm(f"usb_devices[{index}].id"), f'"{usb.id}" is not like "046d:c52b".')
        elif usb.port and not _USB_PORT.fullmatch(usb.port):
            yield invalid(_vm(f"usb_devices[{index}].port"), f'"{usb.port}" is not like "1-2.3".')
    for index, pci in enumerate(machine.pci_devices):
        if not _PCI.fullmatch(pci.address):
            yield invalid(_vm(f"pci_devices[{index}].address"), f'"{pci.address}" is not like "0000:01:00.0".')
        if pci.pcie and pc(definition):
            yield invalid(_vm(f"pci_devices[{index}].pcie"), "is for machines of the type q35 only.")


def _vm(field: str) -> str:
    return f"spec.virtual_machine.{field}"
