"""The KVM driver on libvirt's test hypervisor; what it makes of a guest; and what it takes for ours."""

import asyncio
import errno
import os
import shutil
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import libvirt
import pytest
import yaml
from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.compute.definitions import Definition, DefinitionStore
from agent.compute.hypervisor import AttachedDisk, Hypervisor
from agent.compute.idmap import IDMAP, allows
from agent.compute.kvm import accelerator, observations, qemu, seed, validity
from agent.compute.kvm.accelerator import Accelerator
from agent.compute.kvm.caching import cache_mode
from agent.compute.kvm.driver import KvmHypervisor
from agent.compute.kvm.xml import mark
from agent.compute.kvm.xml.domain import build
from agent.compute.kvm.xml.run import Run
from common import nocloud
from common.errors import GugusError

MakeGuest = Callable[..., Definition]
SOURCE = Path(accelerator.__file__).with_name("probe.s")


def run_of(tmp_path: Path, **changes: object) -> Run:
    values = {"generation": 7, "mode": "tcg", "domain_type": "qemu", "seed": None, "console": tmp_path / "web.log"}
    return Run(**{**values, **changes})  # type: ignore[arg-type]


async def tcg(_cache: Path) -> Accelerator:
    return Accelerator("tcg", "test", "a test")


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[KvmHypervisor]:
    made = KvmHypervisor("test:///default", tmp_path / "state", tmp_path / "run", tcg)
    await made.open()
    yield made
    await made.close()


@pytest.mark.skipif(shutil.which("genisoimage") is None, reason="genisoimage is not installed")
async def test_a_guest_is_started_adopted_and_ended(
    driver: KvmHypervisor, tmp_path: Path, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    await driver.define(guest.spec, guest.disks, guest.nics)
    await driver.define(guest.spec, guest.disks, guest.nics)
    seen = await driver.observe("web")
    assert seen is not None
    assert seen.state == guest_pb2.GUEST_STATE_STOPPED
    with pytest.raises(GugusError) as caught:
        await driver.start("nope", 1)
    assert caught.value.reason == "GUEST_NOT_FOUND"
    assert set(await driver.observe_all()) == {"web"}, "libvirt's own domain `test` is none of ours"
    await driver.start("web", 7)
    await driver.start("web", 8)
    seen = await driver.observe("web")
    assert seen is not None
    assert (seen.state, seen.generation, seen.mode) == (guest_pb2.GUEST_STATE_RUNNING, 7, "tcg")
    with pytest.raises(GugusError) as caught:
        await driver.undefine("web")
    assert caught.value.reason == "GUEST_RUNNING"
    await driver.kill("web")
    await driver.undefine("web")
    await driver.undefine("web")
    assert await driver.observe("web") is None
    assert list((tmp_path / "state/kvm/seeds").iterdir()) == []


async def test_a_guest_that_ended_is_not_off_before_it_is_known_how(
    driver: KvmHypervisor, make_guest: MakeGuest
) -> None:
    """Or one that is to stay down after a crash would be started again, and its crash be told as an end like any other."""
    guest = make_guest("panics")
    await driver.define(guest.spec, guest.disks, guest.nics)
    driver._ends.began("panics")
    seen = [await driver.observe("panics")]
    driver._on_lifecycle("panics", libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED)
    seen.append(await driver.observe("panics"))
    assert [(one.state, one.ended) for one in seen if one is not None] == [
        (guest_pb2.GUEST_STATE_STOPPING, guest_pb2.GUEST_END_UNSPECIFIED),
        (guest_pb2.GUEST_STATE_CRASHED, guest_pb2.GUEST_END_CRASH),
    ]


async def test_a_foreign_domain_is_never_touched(driver: KvmHypervisor) -> None:
    await driver.kill("test")
    await driver.shutdown("test")
    active = await driver.domains.call(lambda connection: [domain.name() for domain in connection.listAllDomains(1)])
    assert active == ["test"]
    assert (await driver.emergency_kill(["test"])).gone == {"test"}


async def test_a_libvirt_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    made = KvmHypervisor(f"qemu+unix:///system?socket={tmp_path}/none", tmp_path / "state", tmp_path / "run", tcg)
    await made.open()
    try:
        with pytest.raises(GugusError) as caught:
            await made.observe_all()
        assert caught.value.reason == "HYPERVISOR_DOWN"
        assert "systemctl status libvirtd" in str(caught.value)
        facts = await made.probe()
        assert not facts.ready
        assert "does not answer" in facts.reason
    finally:
        await made.close()


class Refusing:
    """A libvirt that answers everything with an error of its own."""

    def getAllDomainStats(self, _stats: int, _flags: int) -> None:
        raise libvirt.libvirtError("internal error: cannot parse process status data")

    def lookupByName(self, _name: str) -> None:
        raise libvirt.libvirtError("Timed out during operation: cannot acquire state change lock")


async def test_what_libvirt_refuses_is_told_in_its_words(driver: KvmHypervisor) -> None:
    connection = driver.domains._connection
    assert connection is not None
    real, connection._connection = connection._connection, Refusing()
    try:
        for call in (driver.observe("web"), driver.observe_all(), driver.shutdown("web"), driver.undefine("web")):
            with pytest.raises(GugusError) as caught:
                await call
            assert caught.value.reason == "LIBVIRT_REFUSED"
        with pytest.raises(GugusError, match="cannot acquire state change lock"):
            await driver.shutdown("web")
    finally:
        connection._connection = real


class Agented:
    """A libvirt whose one domain's agent is asked for as long as `hold` is not set, and then refuses if `refuses`."""

    def __init__(self, *, refuses: bool) -> None:
        self.refuses, self.hold, self.asked = refuses, threading.Event(), list[str]()
        self.number = 1

    def lookupByName(self, _name: str) -> "Agented":
        """Return the domain, which is this, too."""
        return self

    def connect(self) -> "Agented":
        return self

    def name(self) -> str:
        return "web"

    def ID(self) -> int:
        return self.number

    def shutdownFlags(self, _flags: int) -> None:
        self.asked.append("agent")
        self.hold.wait(10)
        if self.refuses:
            raise libvirt.libvirtError("Guest agent is not responding")

    def shutdown(self) -> None:
        self.asked.append("button")


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_shutdown_by_the_agent_holds_nobody_up(
    driver: KvmHypervisor, make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    guest = make_guest()
    guest.spec.virtual_machine.guest_agent = True
    driver.definitions.save(guest.spec, guest.disks, guest.nics)
    fake = Agented(refuses=refuses)
    monkeypatch.setattr(driver.domains.marks, "of", lambda _domain: object())
    connections = [driver.domains._connection, driver.domains._long]
    real = [connection._connection for connection in connections if connection is not None]
    for connection in connections:
        assert connection is not None
        connection._connection = fake
    try:
        async with asyncio.timeout(3):
            await driver.shutdown("web")
            await driver.shutdown("web")
            while not fake.asked:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert fake.asked == ["agent"], "it is asked, once at a time, and the caller waits by itself"
        fake.hold.set()
        async with asyncio.timeout(3):
            while driver._asked:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert fake.asked == (["agent", "button"] if refuses else ["agent"])
    finally:
        fake.hold.set()
        for connection, before in zip(connections, real, strict=True):
            assert connection is not None
            connection._connection = before


async def test_a_guest_that_libvirt_does_not_start_is_told_in_its_words(
    driver: KvmHypervisor, make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = make_guest()
    driver.definitions.save(guest.spec, guest.disks, guest.nics)

    async def no_seed(*_: object) -> None:
        return None

    monkeypatch.setattr(seed, "ensure", no_seed)
    monkeypatch.setattr("agent.compute.kvm.driver.build", lambda *_: "<domain/>")
    with pytest.raises(GugusError, match="missing name information") as caught:
        await driver.start("web", 1)
    assert caught.value.reason == "GUEST_START_FAILED"


async def test_an_agent_starts_although_libvirt_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise libvirt.libvirtError("internal error")

    monkeypatch.setattr("agent.compute.kvm.domains.look", refuse)
    made = KvmHypervisor("test:///default", tmp_path / "state", tmp_path / "run", tcg)
    await made.open()
    await made.close()


def test_no_monitor_is_asked_when_guests_are_looked_at() -> None:
    """libvirt waits for a monitor that hangs in every other group of statistics, and with it everybody else's answer."""
    assert observations.STATS == libvirt.VIR_DOMAIN_STATS_STATE
    assert observations.FLAGS & libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT


def test_what_a_guest_uses_is_read_from_its_process() -> None:
    sum(range(3_000_000))
    cpu_time_ns, memory_bytes = observations.usage(os.getpid())
    assert cpu_time_ns == pytest.approx(time.process_time_ns(), abs=1_000_000_000)
    assert memory_bytes > 1 << 20
    assert observations.usage(0) == (0, 0)


async def test_guests_are_killed_although_a_definition_is_of_another_version(tmp_path: Path) -> None:
    folder = tmp_path / "state/kvm/definitions"
    folder.mkdir(parents=True)
    (folder / "web.json").write_text('{"spec": {"name": "web", "ofALaterVersion": 1}, "disks": [], "bridges": []}')
    made = KvmHypervisor("test:///default", tmp_path / "state", tmp_path / "run", tcg)
    assert (await made.emergency_kill(["web", "db"])).gone == {"web", "db"}


async def test_a_process_that_cannot_be_looked_at_is_not_gone(
    driver: KvmHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many_files(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(qemu, "processes", too_many_files)
    assert (await driver.emergency_kill(["web"])).alive.keys() == {"web"}
    monkeypatch.setattr(qemu, "process_of", too_many_files)
    assert (await driver.emergency_kill(["web"])).alive.keys() == {"web"}
    with pytest.raises(GugusError, match="cannot be looked at"):
        await driver.kill("web")


def test_the_domain_is_what_the_spec_says(tmp_path: Path, make_guest: MakeGuest) -> None:
    guest = make_guest(cpu_limit_milli=1500)
    run = run_of(tmp_path, seed=tmp_path / "seed.iso", caches={guest.disks[0].path: "none"})
    domain = ET.fromstring(build(guest, run))
    assert domain.findtext("name") == "web"
    assert domain.findtext("memory") == str(256 << 20)
    assert domain.findtext("vcpu") == "2"
    assert domain.findtext("cputune/global_quota") == "150000"
    assert domain.findtext("on_poweroff") == "destroy"
    assert [disk.find("target").get("dev") for disk in domain.findall("devices/disk")] == ["vda", "vdz"]  # type: ignore[union-attr]
    assert domain.find("devices/disk/driver").get("cache") == "none"  # type: ignore[union-attr]
    assert domain.find("devices/interface/source").get("bridge") == "br-lan"  # type: ignore[union-attr]
    found = domain.find(f"metadata/{{{mark.NAMESPACE}}}guest")
    assert found is not None
    read = mark.read_mark(ET.tostring(found, encoding="unicode"))
    assert (read.generation, read.mode) == (7, "tcg")
    assert read.running == mark.veiled(guest)


@pytest.mark.parametrize("domain_type", ["kvm", "qemu", "test"])
def test_libvirts_schema_accepts_the_domain(tmp_path: Path, make_guest: MakeGuest, domain_type: str) -> None:
    guest = make_guest(cpu_limit_milli=500)
    xml = build(guest, run_of(tmp_path, domain_type=domain_type, seed=tmp_path / "seed.iso"))
    assert "XML document failed to validate" not in refusal(xml)
    assert "XML document failed to validate" in refusal(xml.replace("<vcpu", "<vpcu").replace("</vcpu", "</vpcu"))


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


def test_a_container_volume_is_no_disk(make_guest: MakeGuest, tmp_path: Path) -> None:
    guest = make_guest()
    folder = AttachedDisk(guest.spec.disks[0], tmp_path, volume_pb2.VOLUME_FORMAT_FILESYSTEM)
    with pytest.raises(GugusError) as caught:
        validity.check(Definition(guest.spec, (folder,), ()))
    assert caught.value.field == "spec.disks[0].volume"


def test_the_seed_carries_name_keys_and_network(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.spec.first_boot.hostname = "shop"
    guest.spec.first_boot.ssh_authorized_keys.append("ssh-ed25519 AAAA me")
    files = nocloud.files(guest.spec)
    assert yaml.safe_load(files["meta-data"])["local-hostname"] == "shop"
    assert files["user-data"].startswith("#cloud-config\n")
    assert yaml.safe_load(files["user-data"])["ssh_authorized_keys"] == ["ssh-ed25519 AAAA me"]
    assert yaml.safe_load(files["network-config"])["ethernets"]["eth0"]["dhcp4"] is True
    guest.spec.first_boot.user_data = "#!/bin/sh\n"
    assert nocloud.files(guest.spec)["user-data"] == "#!/bin/sh\n"


def test_definitions_come_back_as_they_were(tmp_path: Path, make_guest: MakeGuest) -> None:
    guest = make_guest()
    DefinitionStore(tmp_path).save(guest.spec, guest.disks, guest.nics)
    assert DefinitionStore(tmp_path).get("web") == guest
    assert (tmp_path / "web.json").stat().st_mode & 0o077 == 0


def test_a_guests_process_is_told_from_others() -> None:
    ours = ["/usr/bin/qemu-system-x86_64", "-name", "guest=web,debug-threads=on", "-uuid", "u1"]
    assert qemu.guest_of(ours) == "web"
    assert qemu.guest_of(["/usr/bin/qemu-system-x86_64", "-name", "web"]) == ""
    assert qemu.guest_of(["/usr/bin/vim", "-name", "guest=web"]) == ""
    assert qemu.guest_of([]) == ""


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="binutils are not installed")
def test_the_probe_is_what_its_source_says(tmp_path: Path) -> None:
    for argv in (
        ["as", str(SOURCE), "-o", "probe.o"],
        ["ld", "-Ttext", "0x7c00", "--oformat", "binary", "probe.o", "-o", "probe.img"],
    ):
        subprocess.run(argv, cwd=tmp_path, check=True)
    assert (tmp_path / "probe.img").read_bytes() == accelerator.sector()


@pytest.mark.skipif(shutil.which(accelerator.EMULATOR) is None, reason="QEMU is not installed")
async def test_the_accelerator_is_found_once_a_boot_and_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await accelerator.find(tmp_path / "accelerator.json")
    assert (found.mode, found.domain_type) in (("kvm", "kvm"), ("tcg", "qemu"))
    assert found.reason

    async def never() -> Accelerator:
        raise AssertionError("probed again")

    monkeypatch.setattr(accelerator, "probe", never)
    assert await accelerator.find(tmp_path / "accelerator.json") == found


async def test_no_kvm_device_means_tcg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which(accelerator.EMULATOR) is None:
        pytest.skip("QEMU is not installed")
    monkeypatch.setattr(accelerator, "KVM_DEVICE", tmp_path / "none")
    found = await accelerator.find(tmp_path / "accelerator.json")
    assert found.mode == "tcg"
    assert "does not exist" in found.reason


def test_a_file_without_direct_io_is_cached(tmp_path: Path) -> None:
    assert cache_mode(tmp_path / "none") == "writeback"
    (tmp_path / "disk").write_bytes(b"\0" * 8192)
    assert cache_mode(tmp_path / "disk") in ("none", "writeback")


def test_the_drivers_offer_the_whole_interface(tmp_path: Path) -> None:
    kvm: Hypervisor = KvmHypervisor("test:///default", tmp_path, tmp_path)
    assert kvm.name == "kvm"


def test_a_subuid_file_allows_only_whole_ranges() -> None:
    assert allows(f"root:{IDMAP.base}:{IDMAP.size}\n", IDMAP)
    assert allows(f"root:{IDMAP.base - 5}:{IDMAP.size + 10}", IDMAP)
    assert not allows(f"root:{IDMAP.base}:{IDMAP.size - 1}", IDMAP)
    assert not allows(f"anna:{IDMAP.base}:{IDMAP.size}", IDMAP)
    assert not allows("nonsense", IDMAP)
