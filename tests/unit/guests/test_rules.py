"""Every field of a guest's spec: what is wrong is told with its field, all of it at once, and what is right passes."""

from collections.abc import Callable

import pytest
from gugus.agent.v1.boot_pb2 import FirstBoot, NicAddress
from gugus.agent.v1.container_pb2 import BindMount, ContainerDevice, ContainerFeatures, ContainerSpec
from gugus.agent.v1.machine_pb2 import (
    FIRMWARE_KIND_UEFI,
    HUGE_PAGES_1G,
    HUGE_PAGES_2M,
    WATCHDOG_ACTION_RESET,
    CdromSpec,
    CpuSpec,
    DisplaySpec,
    FirmwareSpec,
    MemorySpec,
    NumaNode,
    PciDevice,
    UsbDevice,
    VirtualMachineSpec,
    WatchdogSpec,
)
from gugus.agent.v1.resources_pb2 import (
    DISK_BUS_IDE,
    DISK_BUS_SATA,
    DISK_BUS_SCSI,
    NIC_MODEL_E1000,
    DiskSettings,
    IoLimits,
    NicSettings,
    Policies,
    Resources,
)
from gugus.cluster.v1.guest_pb2 import BootSpec, CreateGuestRequest, DiskSpec, GuestSpec, HaSpec, NicSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import GugusError
from manager.guests.complete import complete
from tests.unit.guests.world import GIB, MIB, container, known, vm

CPU, MEMORY = "spec.virtual_machine.cpu", "spec.virtual_machine.memory"
MACHINE, CONTAINER, BOOT = "spec.virtual_machine", "spec.container", "spec.first_boot"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@home"


def machine(**changes: object) -> GuestSpec:
    return vm(virtual_machine=VirtualMachineSpec(**changes))  # type: ignore[arg-type]


def cpu(**changes: object) -> GuestSpec:
    return machine(cpu=CpuSpec(**changes))  # type: ignore[arg-type]


def disk(**settings_: object) -> GuestSpec:
    spec = vm()
    spec.disks[0].settings.CopyFrom(DiskSettings(**settings_))  # type: ignore[arg-type]
    return spec


def nic(**settings_: object) -> GuestSpec:
    spec = vm()
    spec.nics[0].settings.CopyFrom(NicSettings(**settings_))  # type: ignore[arg-type]
    return spec


def inside(**changes: object) -> GuestSpec:
    return container(container=ContainerSpec(**changes))  # type: ignore[arg-type]


def second_disk(spec: GuestSpec, **fields: object) -> GuestSpec:
    spec.disks.append(DiskSpec(**{"name": "data", "pool": "shared", "size_bytes": GIB} | fields))  # type: ignore[arg-type]
    return spec


def changed(spec: GuestSpec, change: Callable[[GuestSpec], object]) -> GuestSpec:
    change(spec)
    return spec


PINNED = {"pinned_node": "n1"}

WRONG: dict[str, tuple[GuestSpec, set[str]]] = {
    "no kind": (changed(vm(), lambda s: s.ClearField("kind")), {"spec.kind"}),
    "kind of another release": (vm(kind=9), {"spec.kind"}),
    "container with a VM's settings": (container(virtual_machine=VirtualMachineSpec(tpm=True)), {MACHINE}),
    "VM with a container's settings": (vm(container=ContainerSpec(privileged=True)), {CONTAINER}),
    "too many cpus": (vm(cpus=513), {"spec.cpus"}),
    "limit beyond its CPUs": (vm(cpu_limit_milli=4001), {"spec.cpu_limit_milli"}),
    "limit below the kernel's": (vm(cpu_limit_milli=9), {"spec.cpu_limit_milli"}),
    "too little memory": (vm(memory_bytes=MIB), {"spec.memory_bytes"}),
    "id below 100": (vm(id=7), {"spec.id"}),
    "long notes": (vm(notes="x" * 8193), {"spec.notes"}),
    "all too long together": (
        container(container=ContainerSpec(environment={f"V{i}": "x" * 1000 for i in range(30)})),
        {"spec", f"{CONTAINER}.environment"},
    ),
    "tag with a space": (vm(tags=["a b"]), {"spec.tags[0]"}),
    "tag twice": (vm(tags=["a", "a"]), {"spec.tags[1]"}),
    "topology that is not the CPUs": (cpu(sockets=2, cores=3), {f"{CPU}.cores"}),
    "sockets that do not divide": (cpu(sockets=3), {f"{CPU}.sockets"}),
    "fewer CPUs at most than at first": (cpu(max_cpus=2), {f"{CPU}.max_cpus"}),
    "flag without a sign": (cpu(flags=["aes"]), {f"{CPU}.flags[0]"}),
    "flag for and against": (cpu(flags=["+aes", "-aes"]), {f"{CPU}.flags[1]"}),
    "model with a space": (cpu(model="my cpu"), {f"{CPU}.model"}),
    "NUMA memory that does not sum up": (
        cpu(numa=[NumaNode(cpus="0-3", memory_bytes=GIB // 2)]),
        {f"{CPU}.numa"},
    ),
    "CPU in no NUMA node": (cpu(numa=[NumaNode(cpus="0-2", memory_bytes=GIB)]), {f"{CPU}.numa"}),
    "CPU in two NUMA nodes": (
        cpu(numa=[NumaNode(cpus="0-3", memory_bytes=GIB // 2), NumaNode(cpus="3", memory_bytes=GIB // 2)]),
        {f"{CPU}.numa[1].cpus"},
    ),
    "NUMA set that is none": (cpu(numa=[NumaNode(cpus="a", memory_bytes=GIB)]), {f"{CPU}.numa[0].cpus", f"{CPU}.numa"}),
    "pin of a CPU that is not there": (cpu(pins={4: "0"}), {f"{CPU}.pins[4]"}),
    "pin outside of the cpuset": (
        vm(resources=Resources(cpuset="0-1"), virtual_machine=VirtualMachineSpec(cpu=CpuSpec(pins={0: "2"}))),
        {f"{CPU}.pins[0]"},
    ),
    "cpuset beyond the node's": (vm(resources=Resources(cpuset="0-8"), **PINNED), {"spec.resources.cpuset"}),
    "memory that is no multiple of its pages": (
        vm(memory_bytes=MIB, virtual_machine=VirtualMachineSpec(memory=MemorySpec(huge_pages=HUGE_PAGES_2M))),
        {"spec.memory_bytes"},
    ),
    "growth to less": (machine(memory=MemorySpec(max_bytes=MIB)), {f"{MEMORY}.max_bytes"}),
    "growth in odd steps": (machine(memory=MemorySpec(max_bytes=GIB + MIB)), {f"{MEMORY}.max_bytes"}),
    "ballooning without a balloon": (
        vm(
            resources=Resources(memory_reserved_bytes=MIB),
            virtual_machine=VirtualMachineSpec(memory=MemorySpec(no_balloon=True)),
        ),
        {"spec.resources.memory_reserved_bytes"},
    ),
    "ballooning of huge pages": (
        vm(
            resources=Resources(memory_reserved_bytes=MIB),
            virtual_machine=VirtualMachineSpec(memory=MemorySpec(huge_pages=HUGE_PAGES_1G)),
        ),
        {"spec.resources.memory_reserved_bytes"},
    ),
    "more reserved than there is": (
        vm(resources=Resources(memory_reserved_bytes=2 * GIB)),
        {"spec.resources.memory_reserved_bytes"},
    ),
    "weights": (
        vm(resources=Resources(cpu_weight=10_001, io_weight=10_001, memory_weight=50_001)),
        {"spec.resources.cpu_weight", "spec.resources.io_weight", "spec.resources.memory_weight"},
    ),
    "VM with swap and pids": (
        vm(resources=Resources(swap_bytes=MIB, pids=5)),
        {"spec.resources.swap_bytes", "spec.resources.pids"},
    ),
    "no disk": (changed(vm(), lambda s: s.ClearField("disks")), {"spec.disks"}),
    "disk name twice": (second_disk(vm(), name="root"), {"spec.disks[1].name"}),
    "disk without anything": (second_disk(vm(), size_bytes=0), {"spec.disks[1].image"}),
    "disk of odd size": (second_disk(vm(), size_bytes=GIB + 1), {"spec.disks[1].size_bytes"}),
    "disk smaller than its image": (second_disk(vm(), image="debian"), {"spec.disks[1].size_bytes"}),
    "disk from an archive": (second_disk(vm(), image="root"), {"spec.disks[1].image"}),
    "disk from an ISO image": (second_disk(vm(), image="installer"), {"spec.disks[1].image"}),
    "IDE on q35": (disk(bus=DISK_BUS_IDE), {"spec.disks[0].settings.bus"}),
    "I/O thread on SATA": (disk(bus=DISK_BUS_SATA, io_thread=True), {"spec.disks[0].settings.io_thread"}),
    "SSD on virtio": (disk(ssd=True), {"spec.disks[0].settings.ssd"}),
    "WWN on virtio": (disk(wwn="5000c50015ea71ac"), {"spec.disks[0].settings.wwn"}),
    "short WWN": (disk(bus=DISK_BUS_SATA, wwn="5000"), {"spec.disks[0].settings.wwn"}),
    "bus of another release": (disk(bus=77), {"spec.disks[0].settings.bus"}),
    "long serial": (disk(serial="x" * 21), {"spec.disks[0].settings.serial"}),
    "mount path in a VM": (disk(mount_path="/data"), {"spec.disks[0].settings.mount_path"}),
    "burst below the limit": (
        disk(limits=IoLimits(read_iops=100, read_burst_iops=50)),
        {"spec.disks[0].settings.limits.read_burst_iops"},
    ),
    "burst without a limit": (
        disk(limits=IoLimits(write_burst_iops=50)),
        {"spec.disks[0].settings.limits.write_burst_iops"},
    ),
    "two devices at one place of the boot order": (
        changed(disk(boot_order=1), lambda s: setattr(s.nics[0].settings, "boot_order", 1)),
        {"spec.nics[0].settings.boot_order"},
    ),
    "container's disk with a bus": (
        changed(container(), lambda s: setattr(s.disks[0].settings, "bus", DISK_BUS_SCSI)),
        {"spec.disks[0].settings.bus"},
    ),
    "container without an image": (
        changed(container(), lambda s: setattr(s.disks[0], "image", "")),
        {"spec.disks[0].image"},
    ),
    "container's second disk without a path": (second_disk(container()), {"spec.disks[1].settings.mount_path"}),
    "container's disk on /proc": (
        second_disk(container(), settings=DiskSettings(mount_path="/proc/x")),
        {"spec.disks[1].settings.mount_path"},
    ),
    "interface name twice": (
        changed(vm(), lambda s: s.nics.add(name="eth0", network="lan")),
        {"spec.nics[1].name"},
    ),
    "group MAC": (vm(nics=[NicSpec(name="b", network="lan", mac="01:00:00:00:00:01")]), {"spec.nics[1].mac"}),
    "queues of an e1000": (nic(model=NIC_MODEL_E1000, queues=2), {"spec.nics[0].settings.queues"}),
    "more queues than CPUs": (nic(queues=5), {"spec.nics[0].settings.queues"}),
    "tiny MTU": (nic(mtu=500), {"spec.nics[0].settings.mtu"}),
    "burst without a rate": (nic(burst_bytes=5), {"spec.nics[0].settings.burst_bytes"}),
    "container's interface with a long name": (
        container(nics=[NicSpec(name="a" * 16, network="lan")]),
        {"spec.nics[1].name"},
    ),
    "machine type of another architecture": (machine(machine="virt-7.2"), {f"{MACHINE}.machine"}),
    "Secure Boot of a BIOS": (machine(firmware=FirmwareSpec(secure_boot=True)), {f"{MACHINE}.firmware.secure_boot"}),
    "Secure Boot of a pc": (
        machine(machine="pc-i440fx-7.2", firmware=FirmwareSpec(kind=FIRMWARE_KIND_UEFI, secure_boot=True)),
        {f"{MACHINE}.firmware.secure_boot"},
    ),
    "set-up of a BIOS": (machine(boot_into_setup=True), {f"{MACHINE}.boot_into_setup"}),
    "unknown screen": (machine(display=DisplaySpec(model="cga")), {f"{MACHINE}.display.model"}),
    "SPICE without a screen": (machine(display=DisplaySpec(spice=True)), {f"{MACHINE}.display.spice"}),
    "sound without SPICE": (machine(audio="ich9"), {f"{MACHINE}.audio"}),
    "disc without a pool": (machine(cdroms=[CdromSpec(name="cd", image="installer")]), {f"{MACHINE}.cdroms[0].pool"}),
    "disc that is a disk": (
        machine(cdroms=[CdromSpec(name="cd", pool="shared", image="debian")]),
        {f"{MACHINE}.cdroms[0].image"},
    ),
    "drive named as a disk": (machine(cdroms=[CdromSpec(name="root")]), {f"{MACHINE}.cdroms[0].name"}),
    "USB by two ways": (
        vm(virtual_machine=VirtualMachineSpec(usb_devices=[UsbDevice(id="046d:c52b", port="1-2")]), **PINNED),
        {f"{MACHINE}.usb_devices[0].id"},
    ),
    "USB and PCI without a node": (
        machine(usb_devices=[UsbDevice(port="1-2")], pci_devices=[PciDevice(address="0000:01:00.0")]),
        {"spec.pinned_node"},
    ),
    "PCI under HA": (
        vm(
            virtual_machine=VirtualMachineSpec(pci_devices=[PciDevice(address="0000:01:00.0")]), ha=HaSpec(enabled=True)
        ),
        {"spec.pinned_node", "spec.ha.enabled"},
    ),
    "PCI address of another form": (
        vm(virtual_machine=VirtualMachineSpec(pci_devices=[PciDevice(address="01:00.0")]), **PINNED),
        {f"{MACHINE}.pci_devices[0].address"},
    ),
    "watchdog action without a watchdog": (
        machine(watchdog=WatchdogSpec(action=WATCHDOG_ACTION_RESET)),
        {f"{MACHINE}.watchdog.action"},
    ),
    "unknown SMBIOS key": (machine(smbios={"colour": "red"}), {f"{MACHINE}.smbios[colour]"}),
    "generation id that is no UUID": (machine(vm_generation_id="1"), {f"{MACHINE}.vm_generation_id"}),
    "serial ports": (machine(serial_ports=4), {f"{MACHINE}.serial_ports"}),
    "bind mount with dots": (
        container(container=ContainerSpec(mounts=[BindMount(source="/srv/../etc", target="/data", shared=True)])),
        {f"{CONTAINER}.mounts[0].source"},
    ),
    "bind mount without a node": (
        inside(mounts=[BindMount(source="/srv/data", target="/data")]),
        {"spec.pinned_node"},
    ),
    "device outside of /dev": (
        container(container=ContainerSpec(devices=[ContainerDevice(path="/etc/passwd")]), **PINNED),
        {f"{CONTAINER}.devices[0].path"},
    ),
    "unknown capability": (inside(drop_capabilities=["fly"]), {f"{CONTAINER}.drop_capabilities[0]"}),
    "file system type": (
        inside(features=ContainerFeatures(mount_types=["ext 4"])),
        {f"{CONTAINER}.features.mount_types[0]"},
    ),
    "variable with a line break": (inside(environment={"A": "b\nc"}), {f"{CONTAINER}.environment[A]"}),
    "variable without a name": (inside(environment={"1A": "b"}), {f"{CONTAINER}.environment[1A]"}),
    "empty program": (inside(init=[""]), {f"{CONTAINER}.init[0]"}),
    "device nodes without privilege": (inside(features=ContainerFeatures(mknod=True)), {f"{CONTAINER}.features.mknod"}),
    "container's disk with a burst": (
        changed(container(), lambda s: s.disks[0].settings.limits.CopyFrom(IoLimits(read_iops=10, read_burst_iops=20))),
        {"spec.disks[0].settings.limits.read_burst_iops"},
    ),
    "container's host name with a domain": (
        container(first_boot=FirstBoot(hostname="x.y")),
        {f"{BOOT}.hostname"},
    ),
    "address with a netmask": (
        container(first_boot=FirstBoot(addresses=[NicAddress(nic="eth0", ipv4="10.0.0.5/255.255.255.0")])),
        {f"{BOOT}.addresses[0].ipv4"},
    ),
    "mount path that cannot be shown": (
        second_disk(container(), settings=DiskSettings(mount_path="/srv/a\x7f")),
        {"spec.disks[1].settings.mount_path"},
    ),
    "model that no node's CPU can be": (cpu(model="pentium9"), {f"{CPU}.model"}),
    "growth of a guest with far too little memory": (
        vm(memory_bytes=1, virtual_machine=VirtualMachineSpec(memory=MemorySpec(max_bytes=GIB))),
        {"spec.memory_bytes"},
    ),
    "growth of a guest with far too much": (
        vm(
            cpus=100_000,
            memory_bytes=2**60,
            virtual_machine=VirtualMachineSpec(cpu=CpuSpec(max_cpus=1), memory=MemorySpec(max_bytes=GIB)),
        ),
        {"spec.cpus", "spec.memory_bytes"},
    ),
    "VM from an archive": (
        changed(vm(), lambda s: setattr(s.disks[0], "image", "root")),
        {"spec.disks[0].image"},
    ),
    "host name": (vm(first_boot=FirstBoot(hostname="-web")), {f"{BOOT}.hostname"}),
    "key that is none": (vm(first_boot=FirstBoot(ssh_authorized_keys=["my key"])), {f"{BOOT}.ssh_authorized_keys[0]"}),
    "long user-data": (vm(first_boot=FirstBoot(user_data="#" * 16385)), {f"{BOOT}.user_data"}),
    "user-data and a user": (
        vm(first_boot=FirstBoot(user_data="#cloud-config", user="me", packages=["vim"])),
        {f"{BOOT}.user", f"{BOOT}.packages"},
    ),
    "user-data in a container": (container(first_boot=FirstBoot(user_data="#!/bin/sh")), {f"{BOOT}.user_data"}),
    "password in the clear": (vm(first_boot=FirstBoot(password_hash="secret")), {f"{BOOT}.password_hash"}),
    "address of no interface": (
        vm(first_boot=FirstBoot(addresses=[NicAddress(nic="eth9")])),
        {f"{BOOT}.addresses[0].nic"},
    ),
    "address without a prefix": (
        vm(first_boot=FirstBoot(addresses=[NicAddress(nic="eth0", ipv4="10.0.0.5")])),
        {f"{BOOT}.addresses[0].ipv4"},
    ),
    "gateway beside DHCP": (
        vm(first_boot=FirstBoot(addresses=[NicAddress(nic="eth0", ipv4_gateway="10.0.0.1")])),
        {f"{BOOT}.addresses[0].ipv4_gateway"},
    ),
    "IPv6 gateway that is IPv4": (
        vm(first_boot=FirstBoot(addresses=[NicAddress(nic="eth0", ipv6="fd00::5/64", ipv6_gateway="10.0.0.1")])),
        {f"{BOOT}.addresses[0].ipv6_gateway"},
    ),
    "DNS and time": (
        vm(first_boot=FirstBoot(dns_servers=["one"], dns_search=["a b"], timezone="/etc")),
        {f"{BOOT}.dns_servers[0]", f"{BOOT}.dns_search[0]", f"{BOOT}.timezone"},
    ),
    "boot order and delay": (vm(boot=BootSpec(order=10_001, delay_s=3601)), {"spec.boot.order", "spec.boot.delay_s"}),
    "policy of another release": (
        changed(vm(policies=Policies()), lambda s: setattr(s.policies, "on_crash", 9)),
        {"spec.policies.on_crash"},
    ),
    "endless shutdown": (vm(shutdown_timeout_ms=2**31), {"spec.shutdown_timeout_ms"}),
    "pinned under HA": (vm(ha=HaSpec(enabled=True), **PINNED), {"spec.pinned_node"}),
    "much at once": (
        vm(cpus=600, tags=["?"], boot=BootSpec(order=99_999)),
        {"spec.cpus", "spec.tags[0]", "spec.boot.order"},
    ),
}


def refusal(spec: GuestSpec) -> GugusError | None:
    """Return why a creation is refused, None when it is not."""
    try:
        complete(CreateGuestRequest(name="web", spec=spec), known())
    except GugusError as error:
        return error
    return None


def fields(spec: GuestSpec) -> set[str]:
    """Return the fields that a creation finds wrong; empty when it passes."""
    error = refusal(spec)
    if error is None:
        return set()
    assert error.violations, error
    assert all(violation.message for violation in error.violations)
    return {violation.field for violation in error.violations}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_field(case: str) -> None:
    spec, expected = WRONG[case]
    assert expected <= fields(spec)
    if case not in ("all too long together", "too little memory", "memory that is no multiple of its pages"):
        assert fields(spec) == expected


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            vm(memory_bytes=1000 * MIB, virtual_machine=VirtualMachineSpec(memory=MemorySpec(max_bytes=GIB))),
            "1GiB is not 1000MiB plus a multiple of 128MiB; 1128MiB would be.",
        ),
        (machine(firmware=FirmwareSpec(secure_boot=True)), "needs UEFI firmware (--uefi)."),
        (machine(boot_into_setup=True), "needs UEFI firmware (--uefi); a BIOS has no such setup."),
        (cpu(model="pentium9"), '"cluster", "host", or one of: Haswell, Nehalem, qemu64.'),
    ],
)
def test_fault_says_what_would_be_right(spec: GuestSpec, words: str) -> None:
    error = refusal(spec)
    assert error is not None
    assert words in error.message


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("spec.disks[0].pool", lambda s: setattr(s.disks[0], "pool", "no")),
        ("spec.disks[0].image", lambda s: setattr(s.disks[0], "image", "no")),
        ("spec.nics[0].network", lambda s: setattr(s.nics[0], "network", "no")),
        ("spec.pinned_node", lambda s: setattr(s, "pinned_node", "no")),
        ("spec.project", lambda s: setattr(s, "project", "no")),
    ],
)
def test_what_is_not_there_is_told_with_what_is(field: str, change: Callable[[GuestSpec], None]) -> None:
    spec = vm()
    change(spec)
    with pytest.raises(GugusError) as caught:
        complete(CreateGuestRequest(name="web", spec=spec), known())
    assert caught.value.reason.endswith("_NOT_FOUND")
    assert caught.value.field == field
    assert "one of" in caught.value.remedy


RIGHT: dict[str, GuestSpec] = {
    "plain VM": vm(),
    "plain container": container(),
    "everything of a CPU": cpu(
        sockets=2, cores=2, threads=1, model="Haswell", flags=["+aes", "-vmx"], pins={0: "0-1", 3: "7"},
        numa=[NumaNode(cpus="0-1", memory_bytes=GIB // 2), NumaNode(cpus="2,3", memory_bytes=GIB // 2, host_nodes="0")],
    ),
    "hotplug": machine(cpu=CpuSpec(max_cpus=8), memory=MemorySpec(max_bytes=2 * GIB)),
    "UEFI, Secure Boot, TPM, screen, sound": machine(
        firmware=FirmwareSpec(kind=FIRMWARE_KIND_UEFI, secure_boot=True), tpm=True, audio="ich9",
        display=DisplaySpec(model="qxl", spice=True, memory_mib=64), watchdog=WatchdogSpec(model="i6300esb", action=WATCHDOG_ACTION_RESET),
        cdroms=[CdromSpec(pool="shared", image="installer", boot_order=1), CdromSpec()], smbios={"serial": "1"},
    ),
    "IDE on a pc": changed(disk(bus=DISK_BUS_IDE), lambda s: setattr(s.virtual_machine, "machine", "pc")),
    "limits with bursts": disk(limits=IoLimits(read_iops=100, read_burst_iops=500, burst_s=5), bus=DISK_BUS_SCSI, ssd=True),
    "interface with everything": nic(rate_bytes_per_s=10**6, burst_bytes=10**5, queues=4, mtu=9000, boot_order=2),
    "device of a node": vm(virtual_machine=VirtualMachineSpec(pci_devices=[PciDevice(address="0000:01:00.0")]), **PINNED),
    "container with a second disk, mounts and devices": second_disk(
        inside(
            mounts=[BindMount(source="/srv/data", target="/data", shared=True)], devices=[ContainerDevice(path="/dev/net/tun")],
            init=["/bin/app", "--all"], environment={"LANG": "C.UTF-8"}, drop_capabilities=["net_raw"], ttys=4,
        ),
        settings=DiskSettings(mount_path="/var/lib/app"),
    ),
    "first boot": vm(
        first_boot=FirstBoot(
            hostname="web.example.org", ssh_authorized_keys=[KEY], user="debian", password_hash="$y$j9T$abcdefgh$ijklmnop",
            addresses=[NicAddress(nic="eth0", ipv4="10.0.0.5/24", ipv4_gateway="10.0.0.1", ipv6="auto")],
            dns_servers=["10.0.0.1", "fd00::1"], dns_search=["example.org"], packages=["nginx"], timezone="Europe/Vienna",
        ),
    ),
    "shares": container(resources=Resources(cpu_weight=500, cpuset="0-3", memory_reserved_bytes=64 * MIB, swap_bytes=MIB, pids=99)),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_passes(case: str) -> None:
    assert fields(RIGHT[case]) == set()


TEXT = st.text(max_size=12)
NUMBER = st.sampled_from([0, 1, 2, 3, 64, 100, 4096, 2**20, 2**30, 2**32 - 1])
SETTINGS = st.builds(
    DiskSettings, bus=st.integers(0, 6), cache=st.integers(0, 7), io_thread=st.booleans(), ssd=st.booleans(), serial=TEXT,
    mount_path=TEXT, boot_order=NUMBER, limits=st.builds(IoLimits, read_iops=NUMBER, read_burst_iops=NUMBER, burst_s=NUMBER),
)  # fmt: skip
DISKS = st.builds(
    DiskSpec, name=TEXT, pool=st.sampled_from(["shared", "local", "no"]), image=st.sampled_from(["", "debian", "root", "no"]),
    size_bytes=NUMBER, settings=SETTINGS,
)  # fmt: skip
NICS = st.builds(
    NicSpec, name=TEXT, network=st.sampled_from(["lan", "no"]), mac=TEXT,
    settings=st.builds(NicSettings, model=st.integers(0, 7), queues=NUMBER, mtu=NUMBER, rate_bytes_per_s=NUMBER),
)  # fmt: skip
MACHINES = st.builds(
    VirtualMachineSpec,
    machine=st.one_of(TEXT, st.sampled_from(["pc", "q35"])), audio=TEXT, tpm=st.booleans(), serial_ports=NUMBER,
    cpu=st.builds(
        CpuSpec, sockets=NUMBER, cores=NUMBER, threads=NUMBER, model=TEXT, max_cpus=NUMBER, flags=st.lists(TEXT, max_size=2),
        pins=st.dictionaries(st.integers(0, 9), TEXT, max_size=2),
        numa=st.lists(st.builds(NumaNode, cpus=TEXT, memory_bytes=NUMBER), max_size=2),
    ),
    memory=st.builds(MemorySpec, huge_pages=st.integers(0, 4), max_bytes=NUMBER),
    cdroms=st.lists(st.builds(CdromSpec, name=TEXT, pool=TEXT, image=TEXT), max_size=2),
    usb_devices=st.lists(st.builds(UsbDevice, id=TEXT, port=TEXT), max_size=2),
    smbios=st.dictionaries(TEXT, TEXT, max_size=2),
)  # fmt: skip
CONTAINERS = st.builds(
    ContainerSpec, init=st.lists(TEXT, max_size=2), environment=st.dictionaries(TEXT, TEXT, max_size=2), ttys=NUMBER,
    mounts=st.lists(st.builds(BindMount, source=TEXT, target=TEXT), max_size=2),
    devices=st.lists(st.builds(ContainerDevice, path=TEXT, mode=NUMBER), max_size=2),
)  # fmt: skip
FIRST_BOOTS = st.builds(
    FirstBoot, hostname=TEXT, user_data=TEXT, user=TEXT, password_hash=TEXT, timezone=TEXT, dns_servers=st.lists(TEXT, max_size=2),
    addresses=st.lists(st.builds(NicAddress, nic=TEXT, ipv4=TEXT, ipv6=TEXT, ipv4_gateway=TEXT), max_size=2),
)  # fmt: skip
SPECS = st.builds(
    GuestSpec,
    kind=st.integers(0, 3), id=NUMBER, cpus=NUMBER, cpu_limit_milli=NUMBER, memory_bytes=NUMBER, notes=TEXT,
    disks=st.lists(DISKS, max_size=3), nics=st.lists(NICS, max_size=3), tags=st.lists(TEXT, max_size=3),
    power=st.integers(0, 5), pinned_node=st.sampled_from(["", "n1", "no"]), project=st.sampled_from(["", "no"]),
    first_boot=FIRST_BOOTS, virtual_machine=MACHINES, container=CONTAINERS,
    resources=st.builds(Resources, cpu_weight=NUMBER, cpuset=TEXT, memory_reserved_bytes=NUMBER, swap_bytes=NUMBER),
    boot=st.builds(BootSpec, policy=st.integers(0, 4), order=NUMBER, delay_s=NUMBER),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(spec=SPECS)
def test_any_spec_passes_or_every_fault_names_a_field(spec: GuestSpec) -> None:
    error = refusal(spec)
    if error is not None:
        assert all(violation.field and violation.message for violation in error.violations), error
        assert error.violations or error.reason in ("POOL_NOT_SHARED", "IMAGE_ELSEWHERE")
