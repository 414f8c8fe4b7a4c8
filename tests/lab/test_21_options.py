"""Nearly every option of a virtual machine at once, each seen where it matters: inside the guest, by QEMU's own word, or on the host."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from gugus.agent.v1.machine_pb2 import HUGE_PAGES_2M
from gugus.cluster.v1.guest_pb2 import GuestSpec

from lab import demo_guests
from tests.lab.conftest import Room
from tests.lab.test_22_hardware import virsh
from tests.lab.test_25_snapshots import boots, types

MIB = 1 << 20
SECTOR = 512
SECONDS = 30.0

OPTIONS = """
resources { cpuset: "0-1" cpu_weight: 300 }
disks { name: "blank" pool: "shared" size_bytes: 15728640 }
disks { name: "boot" pool: "shared" image: "demo-vm" settings { boot_order: 1 } }
disks { name: "a" pool: "shared" size_bytes: 16777216
    settings { bus: DISK_BUS_SCSI ssd: true serial: "SER-A" wwn: "5000c50015ea71ac" cache: DISK_CACHE_WRITETHROUGH detect_zeroes: true } }
disks { name: "b" pool: "shared" size_bytes: 17825792 settings { bus: DISK_BUS_SCSI io_thread: true read_only: true } }
disks { name: "c" pool: "shared" size_bytes: 18874368
    settings { bus: DISK_BUS_SATA discard: DISK_DISCARD_IGNORE cache: DISK_CACHE_NONE no_snapshot: true } }
disks { name: "d" pool: "shared" size_bytes: 19922944 settings { io_thread: true read_only: true serial: "SER-D" limits {
    read_bytes_per_s: 1048576 read_burst_bytes_per_s: 5242880 write_iops: 9 burst_s: 3 } } }
nics { name: "eth0" network: "lan" }
nics { name: "eth1" network: "lan" settings { model: NIC_MODEL_E1000 } }
nics { name: "eth2" network: "lan" settings { queues: 2 mtu: 1400 link_down: true } }
virtual_machine {
    cpu { sockets: 2 cores: 1 threads: 2 max_cpus: 4 model: "Nehalem" flags: "+aes" flags: "-nx" pins { key: 0 value: "1" }
        numa { cpus: "0-1" memory_bytes: 134217728 } numa { cpus: "2-3" memory_bytes: 134217728 host_nodes: "0" } }
    display { model: "qxl" spice: true memory_mib: 32 }  audio: "ich9"
    serial_ports: 2  virtio_console: true  guest_agent: true  local_time: true
    smbios { key: "family" value: "stars & dust" } smbios { key: "serial" value: "SN-77" }
    watchdog { model: "i6300esb" action: WATCHDOG_ACTION_PAUSE }
    cdroms { name: "cd0" boot_order: 2 }
}
"""


def machine() -> GuestSpec:
    """The demo's machine with all of that, and its disk with the system on the second place."""
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.ClearField("disks")
    spec.ClearField("nics")
    text_format.Merge(OPTIONS, spec)
    spec.cpus, spec.memory_bytes = 2, 256 * MIB
    return spec


FACTS = {
    "cpu": "grep -m 1 ^model.name /proc/cpuinfo",
    "flags": "grep -m 1 -o -w -e aes -e nx /proc/cpuinfo",
    "threads": "cat /sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
    "nodes": "cat /sys/devices/system/node/possible /sys/devices/system/node/node0/cpulist",
    "smbios": "cat /sys/class/dmi/id/product_family /sys/class/dmi/id/product_serial",
    "ports": "grep -c uart:16550A /proc/tty/driver/serial",
    "pci": "for d in /sys/bus/pci/devices/*; do cat $d/vendor $d/device; done",
    "macs": "for n in /sys/class/net/*; do cat $n/address; echo ${n##*/}; done",
}
"""What is asked inside the guest, each by a line in its shell."""

DISKS = """for d in /sys/block/[sv]d*; do echo $(cat $d/size $d/ro $d/queue/rotational; tr ' ' - <$d/queue/write_cache) ${d##*/} \
$(cat $d/serial $d/device/wwid $d/device/vpd_pg80 2>/dev/null | tr -cd A-Za-z0-9.-); done"""


def inside(room: Room, script: str) -> str:
    """Run lines in the shell of `web`, and return what was on its console meanwhile."""
    before = len(room.operator.console_log("web"))
    types(room, "web", f"{script}\necho @the''-end")
    room.operator.wait("the end", lambda: "@the-end" in room.operator.console_log("web")[before:], SECONDS)
    return room.operator.console_log("web")[before:]


def tells(room: Room, facts: dict[str, str]) -> dict[str, str]:
    """Return what lines say inside the guest, with all whitespace as one blank."""
    said = inside(room, "\n".join(f'echo "@""{name}=$(echo $({line}))@"' for name, line in facts.items()))
    return {name: re.findall(rf"@{name}=(.*?)@", said.replace("\r\n", ""))[-1] for name in facts}


def qmp(room: Room, command: str) -> Any:
    """Return QEMU's answer."""
    words = virsh(room, "qemu-monitor-command", "web", json.dumps({"execute": command}))
    return json.loads(words)["return"]


def file_of(room: Room, name: str) -> str:
    """Where the pool has a disk of `web`, as nodes see it."""
    volume = next(disk.volume for disk in room.operator.guest("web").spec.disks if disk.name == name)
    return f"/srv/shared/pool/gugus/disks/{volume}.qcow2"


def allocated(room: Room, name: str) -> int:
    """Bytes that a disk of `web` takes in its pool."""
    return int(room.shell("n1", "stat", "--format=%b", file_of(room, name))) * SECTOR


def has_snapshots(room: Room, name: str) -> bool:
    return "kept" in room.shell("n1", "qemu-img", "snapshot", "-U", "-l", file_of(room, name))


def test_cpus_disks_and_devices_are_as_wanted_inside_the_guest(room: Room) -> None:
    room.create("web", machine())
    boots(room, "web")  # from the second disk: the first one is blank
    facts = tells(room, FACTS)
    look_at_cpus(room, facts)
    look_at_devices(room, facts)
    look_at_interfaces(room, facts["macs"])
    look_at_disks(room)


def look_at_cpus(room: Room, facts: dict[str, str]) -> None:
    assert "Nehalem" in facts["cpu"]
    assert facts["flags"] == "aes", "which it has not by itself, and no nx, which it has"
    assert (facts["threads"], facts["nodes"]) == ("0-1", "0-1 0-1")
    threads = {cpu["cpu-index"]: cpu["thread-id"] for cpu in qmp(room, "query-cpus-fast")}
    allowed = [room.shell("n1", "grep", "Cpus_allowed_list", f"/proc/{threads[number]}/status") for number in (0, 1)]
    assert [words.split()[1] for words in allowed] == ["1", "0-1"]
    places = {(c["props"]["socket-id"], c["props"]["thread-id"]) for c in qmp(room, "query-hotpluggable-cpus")}
    assert places == {(0, 0), (0, 1), (1, 0), (1, 1)}, "it can grow to two sockets with two threads each"
    assert "3072" in virsh(room, "schedinfo", "web"), "three times the 1,024 of weight 100"
    memory = {backend["id"]: backend for backend in qmp(room, "query-memdev")}
    assert [memory[f"ram-node{node}"]["size"] for node in (0, 1)] == [128 * MIB] * 2
    assert memory["ram-node1"]["host-nodes"] == [0]


def look_at_devices(room: Room, facts: dict[str, str]) -> None:
    assert facts["smbios"] == "stars & dust SN-77"
    assert facts["ports"] == "3"
    devices = {
        "e1000": "8086:100e",
        "watchdog": "8086:25ab",
        "sound": "8086:293e",
        "qxl": "1b36:0100",
        "rng": "1af4:1044",
    }
    found = re.findall(r"0x(\w{4}) 0x(\w{4})", facts["pci"])
    assert [name for name, ids in devices.items() if tuple(ids.split(":")) not in found] == []
    tree = virsh(room, "qemu-monitor-command", "web", "--hmp", "info qtree")
    assert [
        w for w in ("vgamem_mb = 32", "dev: usb-tablet", "dev: virtconsole", "guest_agent.0") if w not in tree
    ] == []
    assert qmp(room, "query-spice")["enabled"]
    command = room.shell("n1", "cat", f"/proc/{room.shell('n1', 'pgrep', '-f', 'guest=web,').strip()}/cmdline")
    for words in ("-rtc\0base=localtime", "-watchdog-action\0pause"):
        assert words in command


def look_at_interfaces(room: Room, named: str) -> None:
    names = {nic.name: re.findall(rf"{nic.mac} (\w+)", named) for nic in room.operator.guest("web").spec.nics}
    assert names["eth1"] == [], "that needs a driver, which this guest has not"
    pulled, plugged = (f"/sys/class/net/{names[nic][0]}" for nic in ("eth2", "eth0"))
    cables = f"ip link set {names['eth2'][0]} up; cat {pulled}/mtu {pulled}/carrier {plugged}/carrier"
    told = tells(room, {"cables": cables, "queues": f"ls {pulled}/queues"})
    assert told == {"cables": "1400 0 1", "queues": "rx-0 rx-1 tx-0 tx-1"}


def look_at_disks(room: Room) -> None:
    lines = re.findall(r"^(\d{5}) (\d) (\d) write-(\w+) (\w+) ?(\S*)\r?$", inside(room, DISKS), re.MULTILINE)
    disks = {int(size) * SECTOR // MIB: rest for size, *rest in lines}
    assert disks[16][:3] == ["0", "0", "through"], "may be written, does not turn, writes through"
    assert all(word in disks[16][4] for word in ("naa.5000c50015ea71ac", "SER-A"))
    assert (disks[17][0], disks[17][3][:2]) == ("1", "sd"), "read-only, on scsi"
    assert (disks[18][3][:2], "ATA" in disks[18][4]) == ("sd", True)
    assert (disks[19][0], disks[19][3][:2], disks[19][4]) == ("1", "vd", "SER-D")
    assert len(qmp(room, "query-iothreads")) == 2
    drives = [drive for drive in qmp(room, "query-block") if "inserted" in drive]
    known = {
        drive["qdev"].removeprefix("/machine/peripheral/").partition("/")[0]: drive["inserted"] for drive in drives
    }
    limits = {"bps_rd": MIB, "bps_rd_max": 5 * MIB, "bps_rd_max_length": 3, "iops_wr": 9}
    assert {name: known["ua-disk-d"][name] for name in limits} == limits
    assert [known[f"ua-disk-{name}"]["cache"]["direct"] for name in "ac"] == [False, True]
    look_at_holes(room, disks[16][3], disks[18][3])
    room.operator.do(room.gugus.snapshots.create("web", "kept"))
    assert [has_snapshots(room, name) for name in ("a", "c")] == [True, False]


def look_at_holes(room: Room, thin: str, fat: str) -> None:
    """One disk gives back what is discarded, and makes holes of zeros; the other one keeps both."""

    def both(line: str) -> tuple[bool, bool]:
        inside(room, f"for d in {thin} {fat}; do {line}; done; sync")
        return allocated(room, "a") >= 8 * MIB, allocated(room, "c") >= 8 * MIB

    assert both("dd bs=1M count=8 if=/dev/zero of=/dev/$d") == (False, True)
    assert both("dd bs=1M count=8 if=/dev/urandom of=/dev/$d") == (True, True)
    assert both("blkdiscard /dev/$d") == (False, True)


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """Have the machine reserve pages of 2 MiB meanwhile."""
    reserved = Path("/proc/sys/vm/nr_hugepages")
    before = reserved.read_text()
    reserved.write_text(str(int(before) + count))
    try:
        yield
    finally:
        reserved.write_text(before)


def test_memory_comes_from_huge_pages(room: Room) -> None:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.virtual_machine.memory.huge_pages = HUGE_PAGES_2M
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    with huge_pages(demo_guests.VM_MEMORY_BYTES // (2 * MIB)):
        reserved = int(free.read_text())
        known = lambda: room.operator.node("n1").status.facts.huge_pages_2m_bytes  # noqa: E731
        room.operator.wait("its node to tell of them", known, SECONDS)
        room.create("web", spec)
        boots(room, "web")
        assert int(free.read_text()) < reserved
        room.operator.do(room.gugus.guests.delete("web", force=True))
