"""Changes of a running machine, on a domain that notes what it is asked: made twice, refused, and never half."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest
from google.protobuf import text_format
from gugus.agent.v1 import guest_pb2, resources_pb2, volume_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import AttachedDisk, AttachedNic, MachineFiles
from agent.compute.kvm import changes, live, plug
from agent.compute.kvm.work import Work
from agent.compute.kvm.xml.domain import build
from agent.compute.kvm.xml.mark import Mark, read_mark
from agent.compute.kvm.xml.run import Run

MakeGuest = Callable[..., Definition]
MIB = 1 << 20


class Domain:
    """A running domain: its XML changes with what is plugged; `refuses` names what libvirt does not do."""

    def __init__(self, xml: str) -> None:
        self.xml = ET.fromstring(xml)
        self.asked: list[str] = []
        self.refuses: set[str] = set()
        self.keeps_devices = False
        self.mark: Mark | None = None
        self.memory_kib = 0

    def connect(self) -> "Domain":
        return self

    def getCapabilities(self) -> str:
        return "<capabilities/>"

    def XMLDesc(self, _flags: int) -> str:
        return ET.tostring(self.xml, encoding="unicode")

    def attachDeviceFlags(self, xml: str, _flags: int) -> None:
        self._ask("attach")
        element = ET.fromstring(xml)
        if element.tag == "memory":
            self.memory_kib += int(element.findtext("target/size") or 0)
        self.xml.find("devices").append(element)  # type: ignore[union-attr]

    def detachDeviceAlias(self, alias: str, _flags: int) -> None:
        self._ask("detach")
        devices = self.xml.find("devices")
        assert devices is not None
        for element in devices:
            found = element.find("alias")
            if found is not None and found.get("name") == alias and not self.keeps_devices:
                devices.remove(element)

    def setMetadata(self, _kind: int, xml: str, _key: str, _uri: str, _flags: int) -> None:
        self.mark = read_mark(xml)

    def maxMemory(self) -> int:
        return self.memory_kib

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_: self._ask(name)

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.refuses:
            raise libvirt.libvirtError(f"{what} is refused")


def merged(guest: Definition, tmp_path: Path, words: str) -> Definition:
    spec = guest_pb2.GuestSpec.FromString(guest.spec.SerializeToString())
    text_format.Parse(words, more := guest_pb2.GuestSpec())
    spec.MergeFrom(more)
    kind = volume_pb2.VOLUME_FORMAT_QCOW2
    disks = tuple(AttachedDisk(disk, tmp_path / f"{disk.name}.qcow2", kind) for disk in spec.disks)
    nics = tuple(AttachedNic(nic, f"br-{nic.network}") for nic in spec.nics)
    discs = {drive.name: tmp_path / drive.image for drive in spec.virtual_machine.cdroms if drive.image}
    return Definition(spec, disks, nics, MachineFiles(discs))


@pytest.fixture
def running(make_guest: MakeGuest, tmp_path: Path) -> Definition:
    words = 'virtual_machine { cpu { max_cpus: 4 } memory { max_bytes: 1073741824 } cdroms { name: "cd0" pool: "p" image: "a" } }'
    return merged(make_guest(), tmp_path, words)


def work_of(running: Definition, wanted: Definition) -> tuple[Work, Domain, list[str]]:
    run = Run(generation=1, mode="tcg", domain_type="qemu", seed=None, console=Path("/log"))
    domain, shaped = Domain(build(running, run)), list[str]()
    domain.memory_kib = running.spec.memory_bytes // 1024

    def shape(interface: str, settings: resources_pb2.NicSettings) -> None:
        shaped.append(f"{interface} {settings.rate_bytes_per_s}")

    mark = Mark(running.spec.uid, 1, "tcg", running)
    return Work(None, domain, mark, running, wanted, cgroup_v2=True, shape=shape), domain, shaped


def left(work: Work) -> list[str]:
    return [each.field for each in changes.pending(changes.plan(work.running, work.wanted), {})]


def test_everything_that_can_be_plugged_is_and_the_mark_says_so(running: Definition, tmp_path: Path) -> None:
    words = """cpus: 1 memory_bytes: 134217728 disks { name: "data" pool: "p" settings { bus: DISK_BUS_SCSI io_thread: true } }
        nics { name: "eth1" network: "wan" mac: "52:54:00:00:00:02" settings { rate_bytes_per_s: 5 } } tpm: true"""
    wanted = merged(running, tmp_path, words.replace("tpm: true", "virtual_machine { tpm: true }"))
    wanted.spec.cpus, wanted.spec.memory_bytes = 3, 384 * MIB
    work, domain, shaped = work_of(running, wanted)
    assert live._apply_all(work) == {}
    assert left(work) == ["virtual_machine.tpm"]
    assert domain.mark is not None
    assert domain.mark.running == work.running
    assert [disk.spec.name for disk in work.running.disks] == ["root", "data"]
    assert work.running.nics[1].bridge == "br-wan"
    assert shaped == ["gg100-1 5"]
    assert domain.asked == [
        "setVcpusFlags",
        "attach",
        "setMemoryFlags",
        "addIOThread",
        "attach",
        "attach",
        "attach",
        "setLifecycleAction",
    ]


def test_what_was_done_before_the_agent_died_is_noted_and_not_done_twice(running: Definition, tmp_path: Path) -> None:
    wanted = merged(
        running,
        tmp_path,
        'disks { name: "data" pool: "p" } nics { name: "eth1" network: "wan" mac: "52:54:00:00:00:02" }',
    )
    wanted.spec.memory_bytes = 384 * MIB
    first, domain, _ = work_of(running, wanted)
    live._apply_all(first)
    again = replace_running(first, running)
    domain.asked.clear()
    assert live._apply_all(again) == {}
    assert "attach" not in domain.asked
    assert left(again) == []


def replace_running(work: Work, running: Definition) -> Work:
    return Work(None, work.domain, work.mark, running, work.wanted, work.cgroup_v2, work.shape)


def test_what_libvirt_refuses_waits_with_its_words(running: Definition, tmp_path: Path) -> None:
    wanted = merged(running, tmp_path, 'disks { name: "data" pool: "p" }')
    wanted.spec.cpus = 3
    work, domain, _ = work_of(running, wanted)
    domain.refuses = {"attach"}
    assert live._apply_all(work) == {"disks[data]": "attach is refused"}
    assert left(work) == ["disks[data]"]
    assert work.running.spec.cpus == 3, "the rest is done all the same"


def test_what_cannot_be_now_is_not_even_asked(running: Definition, tmp_path: Path) -> None:
    wanted = merged(running, tmp_path, 'disks { name: "data" pool: "p" settings { bus: DISK_BUS_SATA } }')
    wanted.spec.cpus, wanted.spec.memory_bytes = 9, 100 * MIB
    work, domain, _ = work_of(running, wanted)
    reasons = live._apply_all(work)
    assert reasons.keys() == {"cpus", "memory_bytes", "disks[data]"}
    assert "at most 4 CPUs" in reasons["cpus"]
    assert domain.asked == ["setMemoryFlags", "setLifecycleAction"], "the balloon takes what it can"
    wanted.spec.memory_bytes = 300 * MIB
    assert "by 128 MiB" in live._apply_all(work)["memory_bytes"]
    wanted.spec.memory_bytes = 2048 * MIB
    assert "grow to 1GiB at most" in live._apply_all(work)["memory_bytes"]
    work.running.spec.virtual_machine.memory.max_bytes = 0
    assert live._apply_all(work)["memory_bytes"].endswith("without memory to grow; set --max-memory")


def test_a_guest_that_keeps_a_device_is_told(
    running: Definition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plug, "DETACH_TIMEOUT_S", 0.0)
    work, domain, _ = work_of(running, replace(running, spec=without_nic(running), nics=()))
    domain.keeps_devices = True
    assert "has not let it go" in live._apply_all(work)["nics[eth0]"]
    domain.keeps_devices = False
    assert live._apply_all(work) == {}
    assert work.running.nics == ()


def test_guests_that_let_nothing_go_are_not_waited_for_one_device_after_another(
    running: Definition, tmp_path: Path
) -> None:
    work, domain, _ = work_of(running, replace(running, spec=without_nic(running), nics=()))
    work.patient_until_s = 0.0
    domain.keeps_devices = True
    assert "has not let it go within 0 s" in live._apply_all(work)["nics[eth0]"]


def test_emulated_cpus_are_not_taken_out(running: Definition, tmp_path: Path) -> None:
    """QEMU's heap breaks, and it hangs for ever."""
    fewer = merged(running, tmp_path, "")
    running.spec.cpus, fewer.spec.cpus = 3, 2
    work, domain, _ = work_of(running, fewer)
    assert live._apply_all(work) == {"cpus": "an emulated CPU cannot be taken out while the guest runs"}
    assert "setVcpusFlags" not in domain.asked
    work.mark = replace(work.mark, mode="kvm")
    assert live._apply_all(work) == {}


def without_nic(guest: Definition) -> guest_pb2.GuestSpec:
    spec = guest_pb2.GuestSpec.FromString(guest.spec.SerializeToString())
    del spec.nics[:]
    return spec


def test_a_disc_is_changed_and_taken_out(running: Definition, tmp_path: Path) -> None:
    other = merged(running, tmp_path, "")
    other.spec.virtual_machine.cdroms[0].image = "b"
    wanted = replace(other, files=MachineFiles({"cd0": tmp_path / "b"}))
    work, domain, _ = work_of(running, wanted)
    assert live._apply_all(work) == {}
    assert domain.asked == ["updateDeviceFlags", "setLifecycleAction"]
    assert work.running.files.discs == {"cd0": tmp_path / "b"}


def test_a_disk_that_was_replaced_must_be_in_use_already(running: Definition, tmp_path: Path) -> None:
    other = merged(running, tmp_path, "")
    other.spec.disks[0].volume = "moved"
    work, domain, _ = work_of(running, replace(other, disks=(replace(running.disks[0], path=tmp_path / "moved"),)))
    assert "the running guest has" in live._apply_all(work)["disks[root].volume"]
    source = domain.xml.find("devices/disk/source")
    assert source is not None
    source.set("file", str(tmp_path / "moved"))
    assert live._apply_all(work) == {}
    assert work.running.disks[0].path == tmp_path / "moved"


def test_limits_and_cables_are_set(running: Definition, tmp_path: Path) -> None:
    other = merged(running, tmp_path, "resources { cpu_weight: 50 io_weight: 20 } cpu_limit_milli: 100")
    other.spec.disks[0].settings.limits.read_iops = 7
    other.spec.nics[0].settings.link_down = True
    work, domain, shaped = work_of(running, other)
    assert live._apply_all(work) == {}
    asked = [
        "setSchedulerParametersFlags",
        "setBlkioParameters",
        "setBlockIoTune",
        "updateDeviceFlags",
        "setLifecycleAction",
    ]
    assert domain.asked == asked
    assert shaped == ["gg100-0 0"]
