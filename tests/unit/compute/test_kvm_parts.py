"""Parts of the KVM driver that need no libvirt: ends, balloons, host devices, seeds, counters, abilities, memories."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
import yaml
from google.protobuf import text_format
from gugus.agent.v1 import boot_pb2, guest_pb2, machine_pb2
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.definitions import Definition
from agent.compute.hypervisor import MachineFiles
from agent.compute.kvm import abilities, addresses, ballooning, devices, firmware, host_devices, power, usage
from agent.compute.kvm.ballooning import Balloon, Host, goals, share_out
from agent.compute.kvm.balloons import host_memory
from agent.compute.kvm.ends import NEWS_S, Ends
from agent.compute.kvm.observations import Seen
from agent.compute.kvm.xml.mark import Mark
from common import nocloud
from common.errors import GugusError

MakeGuest = Callable[..., Definition]
GIB, MIB = 1 << 30, 1 << 20

# How runs end


@pytest.mark.parametrize(
    ("detail", "reason", "end"),
    [
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, "guest-shutdown", guest_pb2.GUEST_END_POWEROFF),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, "guest-reset", guest_pb2.GUEST_END_REBOOT),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, "guest-panic", guest_pb2.GUEST_END_CRASH),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED, "", guest_pb2.GUEST_END_CRASH),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED, "", guest_pb2.GUEST_END_UNSPECIFIED),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED, "", guest_pb2.GUEST_END_UNSPECIFIED),
    ],
)
def test_how_a_run_ended_is_told_and_kept(
    tmp_path: Path, detail: int, reason: str, end: guest_pb2.GuestEnd.ValueType
) -> None:
    ends = Ends(tmp_path, "boot-1")
    ends.began("web")
    ends.reboots("web", reason)
    ends.stopped("web", detail, ordered=False)
    again = Ends(tmp_path, "boot-1")
    again.load(frozenset())
    told = again.of("web")
    assert told is not None
    assert (told.end, told.runs) == (end, False)
    ends.began("web")
    ends.stopped("web", detail, ordered=True)
    told = ends.of("web")
    assert told is not None
    assert told.end == guest_pb2.GUEST_END_UNSPECIFIED, "it was ended by order"


@pytest.mark.parametrize(
    ("word", "boot", "end"),
    [
        ("shutdown", "boot-1", guest_pb2.GUEST_END_POWEROFF),
        ("crashed", "boot-1", guest_pb2.GUEST_END_CRASH),
        ("", "boot-1", guest_pb2.GUEST_END_CRASH),
        ("destroyed", "boot-1", guest_pb2.GUEST_END_UNSPECIFIED),
        ("shutdown", "boot-2", guest_pb2.GUEST_END_HOST),
    ],
)
def test_what_happened_while_no_agent_listened_is_found_out(
    tmp_path: Path, word: str, boot: str, end: guest_pb2.GuestEnd.ValueType
) -> None:
    Ends(tmp_path / "ends", "boot-1", tmp_path).began("web")
    (tmp_path / "web.log").write_text(f"qemu: hello\n2026-01-01 00:00:00.000+0000: shutting down, reason={word}\n")
    after = Ends(tmp_path / "ends", boot, tmp_path)
    after.load(frozenset())
    told = after.of("web")
    assert told is not None
    assert told.end == end
    still = Ends(tmp_path / "ends", boot, tmp_path)
    still.began("web")
    still.load(frozenset({"web"}))
    told = still.of("web")
    assert told is not None
    assert told.runs


def test_a_damaged_note_of_an_end_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "web.json").write_text("nonsense")
    (tmp_path / "db.json").write_text(json.dumps({"of": "another version"}))
    ends = Ends(tmp_path, "boot-1")
    ends.load(frozenset())
    assert ends.of("web") is ends.of("db") is None


def test_an_end_of_which_nothing_is_heard_is_found_out_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    ends = Ends(tmp_path / "ends", "boot-1", tmp_path)
    assert not ends.awaits_news("web"), "it never ran"
    ends.began("web")
    assert ends.awaits_news("web")
    ends.runs("web")
    now_s += NEWS_S
    assert ends.awaits_news("web"), "it was seen since"
    ends.stopped("web", libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, ordered=False)
    assert not ends.awaits_news("web")
    ends.began("web")
    (tmp_path / "web.log").write_text("shutting down, reason=shutdown\n")
    assert ends.awaits_news("web")
    now_s += NEWS_S
    assert not ends.awaits_news("web")
    told = ends.of("web")
    assert told is not None
    assert (told.runs, told.end) == (False, guest_pb2.GUEST_END_POWEROFF)


# Balloons


def test_balloons_rest_while_the_host_has_memory() -> None:
    full = {"web": Balloon(2 * GIB, GIB, 2 * GIB)}
    assert goals(Host(16 * GIB, 8 * GIB), full) == {}


def test_pressure_takes_from_those_that_may_give() -> None:
    guests = {"web": Balloon(2 * GIB, GIB, 2 * GIB), "db": Balloon(2 * GIB, 2 * GIB, 2 * GIB)}
    assert goals(Host(16 * GIB, 16 * GIB // 5 - GIB // 2), guests) == {"web": 2 * GIB - GIB // 2 - 1}


def test_weights_decide_who_keeps_more() -> None:
    guests = {"heavy": Balloon(4 * GIB, GIB, 4 * GIB, 3000), "light": Balloon(4 * GIB, GIB, 4 * GIB, 1000)}
    found = goals(Host(20 * GIB, 0), guests)
    assert found["heavy"] - GIB == pytest.approx(3 * (found["light"] - GIB), abs=4)
    grown = {name: Balloon(size, GIB, 4 * GIB, guests[name].weight) for name, size in found.items()}
    assert goals(Host(20 * GIB, 20 * GIB), grown) == {"heavy": 4 * GIB, "light": 4 * GIB}


@given(
    st.integers(1, 64),
    st.integers(0, 100),
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(1, 64), st.integers(0, 64), st.integers(0, 50_000)), max_size=8
    ),
)
def test_goals_stay_in_range(total_gib: int, free_percent: int, guests: list[tuple[int, int, int, int]]) -> None:
    balloons = {}
    for number, (present, floor, more, weight) in enumerate(guests):
        given_bytes = (floor + more) * GIB
        balloons[str(number)] = Balloon(min(present * GIB, given_bytes), floor * GIB, given_bytes, weight)
    host = Host(total_gib * GIB, total_gib * GIB * free_percent // 100)
    for name, goal in goals(host, balloons).items():
        assert balloons[name].floor_bytes <= goal <= balloons[name].given_bytes


@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(0, 300), st.integers(1, 10)), max_size=6))
def test_nothing_is_lost_in_sharing(amount: int, shares: list[tuple[int, int]]) -> None:
    limits, weights = [limit for limit, _ in shares], [weight for _, weight in shares]
    parts = share_out(amount, limits, weights)
    assert all(0 <= part <= limit for part, limit in zip(parts, limits, strict=True))
    assert min(amount, sum(limits)) - len(shares) <= sum(parts) <= amount


def test_the_hosts_memory_is_read(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1024 kB\nMemAvailable:   512 kB\nHugePages_Total: 0\n")
    assert host_memory(tmp_path / "meminfo") == Host(MIB, MIB // 2)
    assert ballooning.HOST_GOAL == 0.8


# Devices of the host


def sysfs(root: Path, group: tuple[str, ...]) -> Path:
    """A /sys with PCI devices in one IOMMU group, and one USB device."""
    pci = root / "bus/pci/devices"
    for address in group:
        (pci / address).mkdir(parents=True)
        (pci / address / "class").write_text("0x060400\n" if address.endswith("00.0") else "0x030000\n")
        members = pci / address / "iommu_group/devices"
        for member in group:
            (members / member).mkdir(parents=True)
    driver = root / "bus/pci/drivers/nouveau"
    driver.mkdir(parents=True)
    (pci / group[-1] / "driver").symlink_to(driver)
    usb = root / "bus/usb/devices/1-2.3"
    usb.mkdir(parents=True)
    for name, value in {"idVendor": "046d", "idProduct": "c52b", "busnum": "1", "devnum": "5"}.items():
        (usb / name).write_text(f"{value}\n")
    return root


def test_a_pci_device_goes_with_its_group_or_not_at_all(tmp_path: Path) -> None:
    bridge, gpu, sound = "0000:00:00.0", "0000:01:00.1", "0000:01:00.2"
    sys = sysfs(tmp_path, (bridge, gpu, sound))
    alone = machine_pb2.VirtualMachineSpec(pci_devices=[{"address": gpu}])  # type: ignore[list-item]
    with pytest.raises(GugusError, match=r"0000:01:00.2 \(nouveau\)") as caught:
        host_devices.check(alone, sys)
    assert caught.value.reason == "IOMMU_GROUP"
    both = machine_pb2.VirtualMachineSpec(pci_devices=[{"address": gpu}, {"address": sound}])  # type: ignore[list-item]
    assert host_devices.check(both, sys) == {}


def test_what_the_host_does_not_have_is_said(tmp_path: Path) -> None:
    sys = sysfs(tmp_path, ("0000:01:00.1",))
    (tmp_path / "bus/pci/devices/0000:02:00.1").mkdir()
    wanted = machine_pb2.VirtualMachineSpec()
    for address in ("0000:02:00.1", "0000:09:00.0"):
        wanted.pci_devices.add(address=address)
    wanted.usb_devices.add(id="dead:beef")
    with pytest.raises(GugusError) as caught:
        host_devices.check(wanted, sys)
    words = str(caught.value)
    assert "no IOMMU" in words
    assert "no PCI device 0000:09:00.0" in words
    assert "046d:c52b at 1-2.3" in words
    found = machine_pb2.VirtualMachineSpec()
    found.usb_devices.add(port="1-2.3")
    assert host_devices.check(found, sys) == {"1-2.3": (1, 5)}


# First boot


def test_first_boot_in_full(make_guest: MakeGuest) -> None:
    spec = make_guest().spec
    words = """hostname: "shop" ssh_authorized_keys: "ssh-ed25519 A me" user: "anna" password_hash: "$6$x$y" again: 2
        packages: "nginx" upgrade_packages: true timezone: "Europe/Vienna" dns_servers: "10.0.0.1" dns_search: "lan"
        vendor_data: "#cloud-config\\n"
        addresses { nic: "eth0" ipv4: "10.0.0.5/24" ipv4_gateway: "10.0.0.1" ipv6: "fd00::5/64" ipv6_gateway: "fd00::1" }"""
    text_format.Parse(words, spec.first_boot)
    files = nocloud.files(spec)
    assert yaml.safe_load(files["meta-data"])["instance-id"] == f"{spec.uid}-2"
    data = yaml.safe_load(files["user-data"])
    assert data["users"] == [
        {
            "name": "anna",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "shell": "/bin/bash",
            "lock_passwd": False,
            "ssh_authorized_keys": ["ssh-ed25519 A me"],
            "passwd": "$6$x$y",
        }
    ]
    assert (data["hostname"], data["timezone"], data["packages"]) == ("shop", "Europe/Vienna", ["nginx"])
    assert data["package_update"]
    assert data["package_upgrade"]
    eth0 = yaml.safe_load(files["network-config"])["ethernets"]["eth0"]
    assert eth0["match"] == {"macaddress": "52:54:00:00:00:01"}
    assert eth0["addresses"] == ["10.0.0.5/24", "fd00::5/64"]
    assert eth0["dhcp4"] is False
    assert eth0["routes"] == [{"to": "0.0.0.0/0", "via": "10.0.0.1"}, {"to": "::/0", "via": "fd00::1"}]
    assert eth0["nameservers"] == {"addresses": ["10.0.0.1"], "search": ["lan"]}
    assert files["vendor-data"] == "#cloud-config\n"


def test_the_default_user_gets_keys_and_password(make_guest: MakeGuest) -> None:
    spec = make_guest().spec
    spec.first_boot.password_hash = "$6$x$y"
    data = nocloud.user_data(spec)
    assert "users" not in data
    assert data["user"] == {"lock_passwd": False, "passwd": "$6$x$y"}
    spec.first_boot.network_config = "version: 1\n"
    assert nocloud.files(spec)["network-config"] == "version: 1\n"


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ({"ipv4": "dhcp"}, {"dhcp4": True}),
        ({"ipv4": "none", "ipv6": "dhcp"}, {"dhcp4": False, "dhcp6": True}),
        ({"ipv6": "none"}, {"dhcp4": True, "accept-ra": False, "link-local": []}),
    ],
)
def test_addresses_of_one_interface(make_guest: MakeGuest, told: dict[str, str], settings: dict[str, object]) -> None:
    spec = make_guest().spec
    spec.first_boot.addresses.append(boot_pb2.NicAddress(nic="eth0", **told))
    made = nocloud.network_config(spec)["ethernets"]["eth0"]
    assert {key: value for key, value in made.items() if key not in ("match", "set-name")} == settings


# What libvirt says


def test_counters_are_told_by_the_names_of_the_spec() -> None:
    stats = {
        "balloon.current": 1024,
        "balloon.available": 1000,
        "balloon.usable": 400,
        "block.count": 2,
        "block.0.name": "vda",
        "block.0.rd.bytes": 5,
        "block.0.wr.reqs": 2,
        "block.1.name": "vdz",
        "net.count": 1,
        "net.0.name": "gg100-0",
        "net.0.rx.bytes": 7,
        "net.0.tx.drop": 1,
    }
    told = usage.read(stats, {"vda": "root", "gg100-0": "eth0"})
    assert (told.balloon_bytes, told.memory_guest_used_bytes) == (MIB, 600 * 1024)
    assert [(d.name, d.read_bytes, d.writes) for d in told.disks] == [("root", 5, 2)]
    assert [(n.name, n.received_bytes, n.sent_drops) for n in told.nics] == [("eth0", 7, 1)]


def test_machine_types_and_models_are_read() -> None:
    capabilities = """<capabilities><guest><arch name='x86_64'><machine canonical='pc-q35-7.2'>q35</machine>
        <machine>pc-q35-6.10</machine><machine>pc-i440fx-7.2</machine><machine>microvm</machine></arch></guest></capabilities>"""
    assert abilities.machines(capabilities) == ("pc-q35-7.2", "pc-q35-6.10", "pc-i440fx-7.2")
    text = """<domainCapabilities><cpu><mode name='host-model' supported='yes'><model fallback='forbid'>EPYC</model>
        <feature policy='require' name='x2apic'/><feature policy='disable' name='svm'/></mode>
        <mode name='custom'><model usable='yes'>EPYC</model><model usable='no'>Cooperlake</model></mode></cpu>
        </domainCapabilities>"""
    models, host = abilities.cpus(text)
    assert models == ("EPYC",)
    assert host == '<cpu><model>EPYC</model>\n        <feature name="x2apic" /></cpu>'


def test_places_to_connect_to_are_found() -> None:
    xml = """<domain><devices><graphics type='vnc'><listen type='socket' socket='/run/vnc.sock'/></graphics>
        <serial type='pty'><source path='/dev/pts/3'/><target port='0'/></serial>
        <console type='pty'><source path='/dev/pts/4'/><target type='virtio' port='1'/></console>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
        </devices></domain>"""
    assert devices.displays(xml) == {"vnc": Path("/run/vnc.sock")}
    assert devices.ptys(xml) == {"serial0": Path("/dev/pts/3"), "hvc0": Path("/dev/pts/4")}
    assert addresses.listens(xml)
    assert not addresses.listens(xml.replace("connected", "disconnected"))


def test_addresses_that_lead_nowhere_are_left_out() -> None:
    told = {
        "lo": {"addrs": [{"addr": "127.0.0.1"}, {"addr": "::1"}]},
        "eth0": {"addrs": [{"addr": "fe80::1%eth0"}, {"addr": "fd00::5"}, {"addr": "10.0.0.5"}]},
        "eth1": {"addrs": None},
    }
    assert addresses.usable(told) == ("10.0.0.5", "fd00::5")


# Files


def test_a_memory_counts_only_when_it_is_complete(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    assert not power.is_complete(memory)
    memory.write_bytes(b"LibvirtQemudPart" + b"\0" * 100)
    assert not power.is_complete(memory)
    memory.write_bytes(power.COMPLETE + b"\0" * 100)
    assert power.is_complete(memory)
    power._take(memory)
    assert not power.is_complete(memory), "it is taken up once"
    assert memory.stat().st_size == 116


def test_firmware_that_is_not_installed_is_said(make_guest: MakeGuest, tmp_path: Path) -> None:
    guest = make_guest()
    assert firmware.find(guest, tmp_path) is None
    guest.spec.virtual_machine.firmware.kind = machine_pb2.FIRMWARE_KIND_UEFI
    guest = replace(guest, files=MachineFiles(state=tmp_path / "machine"))
    with pytest.raises(GugusError) as caught:
        firmware.find(guest, tmp_path)
    assert caught.value.reason == "FIRMWARE_MISSING"
    for name in (firmware.CODE, firmware.VARIABLES):
        (tmp_path / name).touch()
    found = firmware.find(guest, tmp_path)
    assert found is not None
    assert found.variables == tmp_path / "machine" / firmware.VARIABLES_FILE
    firmware.make_folder(guest)
    assert (tmp_path / "machine").stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (guest_pb2.GUEST_STATE_CRASHED, guest_pb2.GUEST_END_CRASH),
        (guest_pb2.GUEST_STATE_RUNNING, guest_pb2.GUEST_END_UNSPECIFIED),
    ],
)
def test_a_kernel_that_panicked_is_told_as_a_crash_before_its_machine_is_gone(
    state: guest_pb2.GuestState.ValueType, end: guest_pb2.GuestEnd.ValueType
) -> None:
    assert Seen("web", Mark("uid", 1, "tcg", None), state, "").observation(0).ended == end
