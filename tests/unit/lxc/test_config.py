"""The generated configuration of containers, and what holds them back."""

from dataclasses import replace
from pathlib import Path

import pytest
from gugus.agent.v1 import container_pb2, guest_pb2, resources_pb2

from agent.compute.lxc import limits, security
from agent.compute.lxc.config import ContainerConfig, Host, Init, Mount, Nic, render
from agent.compute.lxc.security import DeviceAccess
from common.errors import GugusError

CONTAINER = ContainerConfig(
    name="c1",
    hostname="db",
    rootfs=Path("/srv/p/c1"),
    console_log=Path("/var/lib/lxc/c1/console.log"),
    seccomp=Path("/var/lib/lxc/c1/seccomp"),
    halt_signal="SIGPWR",
)
UNIFIED, LEGACY = Host(unified_cgroups=True), Host(unified_cgroups=False)
IDMAP = ("lxc.idmap = u 0 5 6",)
FEATURES = container_pb2.ContainerFeatures


def spec(**fields: object) -> guest_pb2.GuestSpec:
    return guest_pb2.GuestSpec(**{"cpus": 2, "memory_bytes": 1 << 28, **fields})  # type: ignore[arg-type]


def limited(guest: guest_pb2.GuestSpec, host: Host) -> list[str]:
    found = limits.essential(guest, unified=host.unified_cgroups)
    return render(replace(CONTAINER, limits=found), host).splitlines()


def with_features(**features: object) -> ContainerConfig:
    return replace(CONTAINER, spec=container_pb2.ContainerSpec(features=FEATURES(**features)))  # type: ignore[arg-type]


def test_limits_are_written_for_the_cgroups_that_the_host_has() -> None:
    unified = limited(spec(), UNIFIED)
    assert "lxc.cgroup2.memory.max = 268435456" in unified
    assert "lxc.cgroup2.memory.swap.max = 0" in unified
    assert "lxc.cgroup2.cpu.max = 200000 100000" in unified
    assert "lxc.cgroup2.cpu.weight = 100" in unified
    assert not any(line.startswith("lxc.cgroup.") for line in unified)
    given = resources_pb2.Resources(cpu_weight=200, cpuset="0-1", swap_bytes=1 << 20, pids=7)
    legacy = limited(spec(cpu_limit_milli=500, resources=given), LEGACY)
    assert "lxc.cgroup.memory.limit_in_bytes = 268435456" in legacy
    assert f"lxc.cgroup.memory.memsw.limit_in_bytes = {(1 << 28) + (1 << 20)}" in legacy
    assert "lxc.cgroup.cpu.cfs_quota_us = 50000" in legacy
    assert "lxc.cgroup.cpu.shares = 2048" in legacy
    assert "lxc.cgroup.pids.max = 7" in legacy
    assert "lxc.cgroup.cpuset.cpus = 0-1" in legacy
    assert not any(line.startswith("lxc.cgroup2.") for line in legacy)


def test_limits_of_disks_on_one_disk_of_the_host_add_up_and_one_without_lifts_them() -> None:
    def disk(name: str, **words: int) -> guest_pb2.GuestDisk:
        settings = resources_pb2.DiskSettings(limits=resources_pb2.IoLimits(**words))
        return guest_pb2.GuestDisk(name=name, settings=settings)

    guest = spec(disks=[disk("a", read_iops=10, write_iops=5), disk("b", read_iops=20), disk("c", read_iops=3)])
    devices = {"a": (8, 0), "b": (8, 0), "c": (8, 16)}
    unified = [limit.value for limit in limits.further(guest, devices, unified=True) if limit.file == "io.max"]
    assert unified == [
        "8:0 rbps=max wbps=max riops=30 wiops=max",
        "8:16 rbps=max wbps=max riops=3 wiops=max",
    ]
    legacy = {limit.file: limit.value for limit in limits.further(guest, {"c": (8, 16)}, unified=False)}
    assert legacy["blkio.throttle.read_iops_device"] == "8:16 3"
    assert legacy["blkio.throttle.write_bps_device"] == "8:16 0"


def test_only_unprivileged_containers_map_ids_and_mounts_are_translated_to_their_range() -> None:
    host = Host(unified_cgroups=True, includes=(Path("/c.conf"),), userns_includes=(Path("/u.conf"),))
    assert "idmap" not in render(CONTAINER, host)
    own = replace(CONTAINER, idmap=IDMAP, userns=Path("/run/ids/5"), mounts=[Mount(Path("/srv/a b"), "/data")])
    lines = render(own, host).splitlines()
    assert lines[:3] == ["lxc.include = /c.conf", "lxc.include = /u.conf", *IDMAP]
    assert "lxc.rootfs.options = idmap=/run/ids/5" in lines
    entry = r"lxc.mount.entry = /srv/a\040b data none bind,create=dir,nodev,idmap=/run/ids/5 0 0"
    assert entry in lines


def test_each_nic_is_a_veth_pair_in_its_bridge() -> None:
    nic = Nic("eth0", "gv100-0", "br0", "02:00:00:00:00:01", 1400, ("10.0.0.5/24", "fd00::5/64"), ("10.0.0.1",))
    lines = render(replace(CONTAINER, nics=[nic]), UNIFIED).splitlines()
    assert "lxc.net.0.link = br0" in lines
    assert "lxc.net.0.veth.pair = gv100-0" in lines
    assert "lxc.net.0.hwaddr = 02:00:00:00:00:01" in lines
    assert "lxc.net.0.mtu = 1400" in lines
    assert "lxc.net.0.ipv4.address = 10.0.0.5/24" in lines
    assert "lxc.net.0.ipv6.address = fd00::5/64" in lines
    assert "lxc.net.0.ipv4.gateway = 10.0.0.1" in lines


@pytest.mark.parametrize(
    "bad",
    [
        {"hostname": "x\nlxc.hook.start-host = /bin/evil"},
        {"init": Init(environment={"A": "1\nlxc.hook.start-host = /bin/evil"})},
        {"mounts": [Mount(Path("/x"), "/y\x07")]},
    ],
)
def test_a_value_cannot_add_a_line_of_its_own(bad: dict[str, object]) -> None:
    with pytest.raises(GugusError):
        render(replace(CONTAINER, **bad), UNIFIED)  # type: ignore[arg-type]


def test_the_defaults_are_as_strict_as_incus_and_features_loosen_only_their_own_part() -> None:
    policy = security.seccomp_policy(FEATURES(), privileged=False)
    for call in ("kexec_load", "open_by_handle_at", "init_module", "finit_module", "delete_module", "keyctl"):
        assert f"{call} errno 38" in policy.splitlines()
    assert "reject_force_umount" in policy
    loose = security.seccomp_policy(FEATURES(keyctl=True), privileged=False)
    assert set(policy.split()) - set(loose.split()) == {"keyctl", "add_key", "request_key"}
    assert "bpf errno 38" in security.seccomp_policy(FEATURES(), privileged=True)
    privileged = container_pb2.ContainerSpec(privileged=True, drop_capabilities=["net_raw"])
    dropped = security.dropped(privileged, privileged=True)
    assert {"mac_admin", "mac_override", "sys_module", "sys_rawio", "sys_time", "mknod", "net_raw"} == set(dropped)
    privileged.features.mknod = True
    assert "mknod" not in security.dropped(privileged, privileged=True)
    assert security.dropped(container_pb2.ContainerSpec(), privileged=False) == []


def test_devices_are_denied_but_for_the_harmless_and_the_given_ones() -> None:
    given = replace(CONTAINER, devices=[DeviceAccess("c", 10, 232), DeviceAccess("b", 7, 1, read_only=True)])
    lines = render(given, LEGACY).splitlines()
    assert lines.index("lxc.cgroup.devices.deny = a") < lines.index("lxc.cgroup.devices.allow = c 1:3 rwm")
    assert "lxc.cgroup.devices.allow = c 10:232 rw" in lines
    assert "lxc.cgroup.devices.allow = b 7:1 r" in lines
    assert not any("10:229" in line for line in lines)
    assert "lxc.cgroup.devices.allow = c 10:229 rwm" in render(with_features(fuse=True), LEGACY).splitlines()


def test_features_choose_the_apparmor_profile_where_there_is_apparmor() -> None:
    armed = replace(UNIFIED, apparmor=True)
    assert "apparmor" not in render(CONTAINER, armed)  # Debian's own default stands
    assert "lxc.apparmor.profile = unconfined" in render(CONTAINER, UNIFIED)
    nesting = render(with_features(nesting=True), armed)
    assert "lxc.apparmor.profile = lxc-container-default-with-nesting" in nesting
    assert "proc dev/.lxc/proc proc" in nesting
    mounting = render(with_features(mount_types=["ext4"], fuse=True), armed).splitlines()
    assert "lxc.apparmor.profile = generated" in mounting
    assert "lxc.apparmor.raw = mount fstype=ext4," in mounting
    assert "lxc.apparmor.allow_nesting = 0" in mounting
