"""Every device of a virtual machine: libvirt's schema accepts it, and it is what the spec says."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from google.protobuf import text_format
from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import AttachedDisk, AttachedNic, MachineFiles
from agent.compute.kvm import devices, validity
from agent.compute.kvm.xml import disks, mark
from agent.compute.kvm.xml.domain import build
from agent.compute.kvm.xml.run import Firmware, Run
from common.errors import GugusError

MakeGuest = Callable[..., Definition]
GIB = 1 << 30

MACHINES = {
    "topology": 'cpus: 2 virtual_machine { cpu { cores: 2 threads: 2 max_cpus: 4 model: "EPYC" flags: "-svm" } }',
    "cluster": 'cluster_cpu { model: "Nehalem" features: "ssse3" }',
    "numa": """virtual_machine { cpu { numa { cpus: "0" memory_bytes: 134217728 }
        numa { cpus: "1" memory_bytes: 134217728 host_nodes: "0" } } }""",
    "pins": 'virtual_machine { cpu { pins { key: 1 value: "0-1" } } } resources { cpuset: "0-1" cpu_weight: 200 }',
    "memory": "virtual_machine { memory { max_bytes: 1073741824 huge_pages: HUGE_PAGES_2M } } cpu_limit_milli: 500",
    "bare": "virtual_machine { memory { no_balloon: true } no_rng: true no_hotplug: true }",
    "disks": """disks { name: "a" settings { bus: DISK_BUS_SCSI ssd: true serial: "abc" } }
        disks { name: "b" settings { bus: DISK_BUS_SCSI io_thread: true cache: DISK_CACHE_WRITETHROUGH } }
        disks { name: "c" settings { bus: DISK_BUS_SATA discard: DISK_DISCARD_IGNORE } }
        disks { name: "d" settings { io_thread: true read_only: true limits {
            read_bytes_per_s: 1000 read_burst_bytes_per_s: 5000 write_iops: 9 burst_s: 3 } } }""",
    "old": 'virtual_machine { machine: "pc-i440fx-7.2" cdroms { name: "cd0" } } disks { name: "a" settings { bus: DISK_BUS_IDE } }',
    "nics": """nics { name: "e1" mac: "52:54:00:00:00:22" settings { model: NIC_MODEL_E1000 link_down: true } }
        nics { name: "e2" mac: "52:54:00:00:00:23" settings { queues: 2 mtu: 1400 boot_order: 2 } }""",
    "screen": 'virtual_machine { display { model: "qxl" spice: true memory_mib: 32 } audio: "ich9" }',
    "ports": """virtual_machine { serial_ports: 3 virtio_console: true guest_agent: true local_time: true
        smbios { key: "family" value: "f & < g" } boot_into_setup: true
        watchdog { model: "i6300esb" action: WATCHDOG_ACTION_PAUSE } }""",
    "uefi": "virtual_machine { firmware { kind: FIRMWARE_KIND_UEFI secure_boot: true } tpm: true }",
    "given": """virtual_machine { usb_devices { id: "046d:c52b" } usb_devices { port: "1-2.3" }
        pci_devices { address: "0000:01:00.0" no_rom: true } }""",
    "order": """disks { name: "a" settings { boot_order: 3 } } virtual_machine { cdroms { name: "cd0" boot_order: 1 } }""",
}


def machine(make_guest: MakeGuest, tmp_path: Path, words: str) -> Definition:
    """A guest with more in its spec, everything found."""
    guest = make_guest()
    text_format.Parse(words, spec := guest_pb2.GuestSpec())
    guest.spec.MergeFrom(spec)
    kind = volume_pb2.VOLUME_FORMAT_QCOW2
    found = tuple(AttachedDisk(disk, tmp_path / f"{disk.name}.qcow2", kind) for disk in guest.spec.disks)
    nics = tuple(AttachedNic(nic, "br-lan") for nic in guest.spec.nics)
    return Definition(guest.spec, found, nics, MachineFiles({}, None, tmp_path / "machine"))


def domain_of(guest: Definition, tmp_path: Path, domain_type: str = "qemu") -> ET.Element:
    validity.check(guest)
    return ET.fromstring(build(guest, run_of(guest, tmp_path, domain_type)))


def run_of(guest: Definition, tmp_path: Path, domain_type: str) -> Run:
    secure = guest.spec.virtual_machine.firmware.secure_boot
    uefi = Firmware(code=tmp_path / "code", template=tmp_path / "vars", variables=tmp_path / "own", secure=True)
    return Run(
        generation=7,
        mode="tcg",
        domain_type=domain_type,
        seed=tmp_path / "seed.iso",
        console=tmp_path / "console.log",
        firmware=uefi if secure else None,
        usb_places={"1-2.3": (1, 5)},
    )


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("domain_type", ["kvm", "qemu"])
def test_libvirts_schema_accepts_it(make_guest: MakeGuest, tmp_path: Path, name: str, domain_type: str) -> None:
    guest = machine(make_guest, tmp_path, MACHINES[name])
    xml = ET.tostring(domain_of(guest, tmp_path, domain_type), encoding="unicode")
    assert "XML document failed to validate" not in refusal(xml), xml


def refusal(xml: str) -> str:
    """What libvirt says against an XML; its test hypervisor has other complaints, after the schema's."""
    connection = libvirt.open("test:///default")
    try:
        connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    except libvirt.libvirtError as error:
        return str(error)
    finally:
        connection.close()
    return ""


def test_cpus_are_as_wanted(make_guest: MakeGuest, tmp_path: Path) -> None:
    domain = domain_of(machine(make_guest, tmp_path, MACHINES["topology"]), tmp_path)
    vcpu, topology = domain.find("vcpu"), domain.find("cpu/topology")
    assert vcpu is not None
    assert topology is not None
    assert (vcpu.text, vcpu.get("current")) == ("4", "2")
    assert (topology.get("sockets"), topology.get("cores"), topology.get("threads")) == ("1", "2", "2")
    assert domain.findtext("cpu/model") == "EPYC"
    assert [(f.get("name"), f.get("policy")) for f in domain.findall("cpu/feature")] == [("svm", "disable")]


def test_the_cluster_model_is_what_the_manager_chose(make_guest: MakeGuest, tmp_path: Path) -> None:
    guest = machine(make_guest, tmp_path, MACHINES["cluster"])
    assert domain_of(guest, tmp_path).findtext("cpu/model") == "Nehalem"
    guest.spec.virtual_machine.cpu.model = "host"
    host = domain_of(guest, tmp_path, "kvm").find("cpu")
    assert host is not None
    assert host.get("mode") == "host-passthrough"
    guest.spec.virtual_machine.cpu.model = "cluster"
    guest.spec.cluster_cpu.Clear()
    emulated = domain_of(guest, tmp_path).find("cpu")
    assert emulated is not None
    assert emulated.get("mode") == "maximum"


def test_disks_are_attached_as_wanted(make_guest: MakeGuest, tmp_path: Path) -> None:
    domain = domain_of(machine(make_guest, tmp_path, MACHINES["disks"]), tmp_path)
    live = devices.read(ET.tostring(domain, encoding="unicode")).named("disk")
    assert {name: live[name].target for name in live} == {"root": "vda", "a": "sda", "b": "sdb", "c": "sdc", "d": "vdb"}
    drivers = {name: each.element.find("driver") for name, each in live.items()}
    assert drivers["c"].get("discard") == "ignore"  # type: ignore[union-attr]
    assert drivers["d"].get("iothread") == "2"  # type: ignore[union-attr]
    assert domain.findtext("iothreads") == "2"
    assert live["d"].element.findtext("iotune/read_bytes_sec_max_length") == "3"
    assert live["d"].element.find("readonly") is not None
    scsi = [c.get("index") for c in domain.findall("devices/controller[@type='scsi']")]
    assert scsi == ["0", "1"], "a disk with a thread of its own has a controller of its own"


def test_what_is_booted_first(make_guest: MakeGuest, tmp_path: Path) -> None:
    guest = machine(make_guest, tmp_path, MACHINES["order"])
    assert disks.boot_order(guest) == {"a": 3}
    guest.disks[1].spec.settings.boot_order = 0
    assert disks.boot_order(guest) == {"root": 2}, "after the CD-ROM that says so"


def test_no_port_of_the_host_is_opened(make_guest: MakeGuest, tmp_path: Path) -> None:
    domain = domain_of(machine(make_guest, tmp_path, MACHINES["screen"]), tmp_path)
    listens = [(g.get("type"), listen.get("type")) for g in domain.findall("devices/graphics") for listen in g]
    assert listens == [("vnc", "socket"), ("spice", "socket")]


def test_a_machine_has_room_for_what_is_plugged_in_later(make_guest: MakeGuest, tmp_path: Path) -> None:
    ports = "devices/controller[@model='pcie-root-port']"
    assert len(domain_of(machine(make_guest, tmp_path, ""), tmp_path).findall(ports)) > 8
    assert not domain_of(machine(make_guest, tmp_path, MACHINES["bare"]), tmp_path).findall(ports)
    assert not domain_of(machine(make_guest, tmp_path, MACHINES["old"]), tmp_path).findall(ports)


def test_a_reboot_may_be_the_end(make_guest: MakeGuest, tmp_path: Path) -> None:
    assert domain_of(machine(make_guest, tmp_path, ""), tmp_path).findtext("on_reboot") == "restart"
    stops = machine(make_guest, tmp_path, "policies { on_reboot: END_POLICY_STOP }")
    assert domain_of(stops, tmp_path).findtext("on_reboot") == "destroy"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ('virtual_machine { machine: "vax" }', "machine"),
        ("virtual_machine { cpu { sockets: 3 cores: 1 } }", "cpu.cores"),
        ('virtual_machine { cpu { flags: "avx" } }', "cpu.flags[0]"),
        ('virtual_machine { cpu { pins { key: 9 value: "0" } } }', "cpu.pins[9]"),
        ('virtual_machine { cpu { numa { cpus: "0" memory_bytes: 268435456 } } }', "cpu.numa"),
        ("virtual_machine { memory { max_bytes: 134217728 } }", "memory.max_bytes"),
        ("virtual_machine { firmware { secure_boot: true } }", "firmware.secure_boot"),
        ('virtual_machine { display { model: "hercules" } }', "display.model"),
        ("virtual_machine { display { spice: true } }", "display.spice"),
        ('virtual_machine { watchdog { model: "cerberus" } }', "watchdog.model"),
        ("virtual_machine { serial_ports: 4 }", "serial_ports"),
        ('virtual_machine { audio: "organ" }', "audio"),
        ('virtual_machine { smbios { key: "colour" value: "red" } }', "smbios[colour]"),
        ('virtual_machine { cdroms { name: "a" } cdroms { name: "a" } }', "cdroms"),
        ("virtual_machine { usb_devices { } }", "usb_devices[0]"),
        ('virtual_machine { usb_devices { id: "mouse" } }', "usb_devices[0].id"),
        ('virtual_machine { pci_devices { address: "01:00.0" } }', "pci_devices[0].address"),
    ],
)
def test_what_can_never_run_is_refused_by_its_field(
    make_guest: MakeGuest, tmp_path: Path, words: str, field: str
) -> None:
    with pytest.raises(GugusError) as caught:
        validity.check(machine(make_guest, tmp_path, words))
    assert caught.value.field == f"spec.virtual_machine.{field}"


def test_all_faults_are_told_at_once(make_guest: MakeGuest, tmp_path: Path) -> None:
    words = 'virtual_machine { serial_ports: 4 audio: "organ" } disks { name: "a" settings { bus: DISK_BUS_IDE } }'
    with pytest.raises(GugusError) as caught:
        validity.check(machine(make_guest, tmp_path, words))
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"spec.virtual_machine.serial_ports", "spec.virtual_machine.audio", "spec.disks[1].settings.bus"}


def test_a_mark_shows_no_secrets(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.spec.first_boot.password_hash = "$6$salt$hash"
    words = ET.tostring(mark.element(mark.Mark("u", 1, "tcg", guest)), encoding="unicode")
    assert "hash" not in words.replace("passwordHash", "")
    read = mark.read_mark(words).running
    assert read == mark.veiled(guest) == mark.veiled(mark.veiled(guest))
    other = replace(guest, spec=guest_pb2.GuestSpec.FromString(guest.spec.SerializeToString()))
    other.spec.first_boot.password_hash = "$6$salt$other"
    assert read != mark.veiled(other), "that it was changed is seen all the same"
