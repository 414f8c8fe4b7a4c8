"""The generated configuration of containers."""

from dataclasses import replace
from pathlib import Path

import pytest

from agent.compute.lxc.config import ContainerConfig, Host, Nic, render
from common.errors import GugusError

CONTAINER = ContainerConfig(
    name="c1",
    hostname="db",
    rootfs=Path("/srv/p/c1"),
    console_log=Path("/var/lib/lxc/c1/console.log"),
    cpus=2,
    cpu_limit_milli=0,
    memory_bytes=1 << 28,
    halt_signal="SIGPWR",
)


def test_limits_are_written_for_the_cgroups_that_the_host_has() -> None:
    unified = render(CONTAINER, Host(unified_cgroups=True)).splitlines()
    assert "lxc.cgroup2.memory.max = 268435456" in unified
    assert "lxc.cgroup2.cpu.max = 200000 100000" in unified
    assert not any(line.startswith("lxc.cgroup.") for line in unified)
    legacy = render(replace(CONTAINER, cpu_limit_milli=500), Host(unified_cgroups=False)).splitlines()
    assert "lxc.cgroup.memory.limit_in_bytes = 268435456" in legacy
    assert "lxc.cgroup.cpu.cfs_quota_us = 50000" in legacy
    assert not any(line.startswith("lxc.cgroup2.") for line in legacy)


def test_only_unprivileged_containers_map_ids() -> None:
    host = Host(unified_cgroups=True, includes=(Path("/c.conf"),), userns_includes=(Path("/u.conf"),))
    assert "idmap" not in render(CONTAINER, host)
    lines = render(replace(CONTAINER, idmap=("lxc.idmap = u 0 5 6",)), host).splitlines()
    assert lines[:3] == ["lxc.include = /c.conf", "lxc.include = /u.conf", "lxc.idmap = u 0 5 6"]


def test_each_nic_is_a_veth_pair_in_its_bridge() -> None:
    lines = render(
        replace(CONTAINER, nics=[Nic("eth0", "gv100-0", "br0", "02:00:00:00:00:01")]), Host(True)
    ).splitlines()
    assert "lxc.net.0.link = br0" in lines
    assert "lxc.net.0.veth.pair = gv100-0" in lines
    assert "lxc.net.0.hwaddr = 02:00:00:00:00:01" in lines


def test_a_value_cannot_add_a_line_of_its_own() -> None:
    with pytest.raises(GugusError):
        render(replace(CONTAINER, hostname="x\nlxc.hook.start-host = /bin/evil"), Host(True))
