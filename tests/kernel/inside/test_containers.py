"""Containers where there is cgroup v2 only, as on Debian's hosts: their limits, and that a kill leaves nothing."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from gugus.agent.v1 import guest_pb2, resources_pb2

from agent.compute.access import Command
from agent.compute.lxc import processes
from agent.compute.lxc.driver import LxcDriver
from agent.compute.processes import record_of
from tests.unit.lxc.containers import Guest, define, open_driver

pytestmark = pytest.mark.kernel


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that containers may reach: pytest's own is closed to all but its user."""
    with tempfile.TemporaryDirectory(prefix="gugus-lxc-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def driver(folder: Path) -> AsyncIterator[LxcDriver]:
    made = open_driver(folder)
    await made.open()
    yield made
    await made.emergency_kill(["c1"])
    await made.undefine("c1")
    await made.close()


def written(folder: str, file: str) -> str:
    return (Path(folder) / file).read_text().strip()


def members(group: Path) -> set[int]:
    return {int(pid) for file in group.rglob("cgroup.procs") for pid in file.read_text().split()}


@pytest.mark.parametrize("mode", ["privileged", "unprivileged"])
async def test_limits_hold_in_cgroup_v2_and_an_emergency_kill_leaves_no_process(
    driver: LxcDriver, folder: Path, mode: str
) -> None:
    assert [names for names, _, _ in processes._cgroup_mounts()] == [{"unified"}]
    facts = await driver.probe()
    assert facts.ready
    assert facts.mode == "unprivileged", facts.reason
    await define(driver, folder, mode)
    await driver.start("c1", 7)
    seen = await driver.observe("c1")
    assert seen is not None
    assert seen.mode == mode
    groups = processes.cgroups_of(seen.pid, "c1")
    assert written(groups.memory, "memory.max") == str(64 << 20)
    assert written(groups.cpu, "cpu.max") == "50000 100000"
    assert written(groups.cpu, "cpu.weight") == "100"
    assert written(groups.cpu, "pids.max") == "4096"
    assert 0 < seen.memory_used_bytes <= 64 << 20
    assert seen.cpu_time_ns > 0

    found = processes.scan(folder / "lxc")["c1"]
    inside = members(Path(groups.cpu))
    assert seen.pid in inside
    assert len(inside) > 1
    report = await driver.emergency_kill(["c1"])
    assert report.gone == {"c1"}
    assert found.monitor is not None
    assert [pid for pid in (*inside, found.monitor.pid) if record_of(pid)] == []
    assert processes.scan(folder / "lxc") == {}


async def test_containers_start_where_apparmor_is_on_without_a_profile_for_them(
    driver: LxcDriver, folder: Path
) -> None:
    await define(driver, folder, "privileged")
    await driver.start("c1", 1)


async def test_limits_are_changed_live_in_cgroup_v2_and_a_held_container_goes_on_or_dies(
    driver: LxcDriver, folder: Path
) -> None:
    guest = Guest(driver, folder, "unprivileged")
    await guest.define()
    await driver.start("c1", 7)
    resources = resources_pb2.Resources(cpu_weight=300, pids=50, io_weight=200, memory_reserved_bytes=1 << 20)
    resources.swap_bytes, resources.cpuset = 2 << 20, "0"
    guest.spec.resources.CopyFrom(resources)
    guest.spec.memory_bytes = 96 << 20
    waiting = await guest.change()
    assert set(waiting) <= {"resources.io_weight"}, waiting  # it depends on the disks' scheduler
    seen = await driver.observe("c1")
    assert seen is not None
    group = processes.cgroups_of(seen.pid, "c1").memory
    assert written(group, "cpu.weight") == "300"
    assert written(group, "pids.max") == "50"
    assert written(group, "memory.max") == str(96 << 20)
    assert written(group, "memory.low") == str(1 << 20)
    assert written(group, "memory.swap.max") == str(2 << 20)
    assert written(group, "cpuset.cpus") == "0"
    assert seen.usage is not None
    assert not seen.usage.HasField("memory_pressure") or seen.usage.memory_pressure.some_us >= 0

    await driver.suspend("c1")
    held = await driver.observe("c1")
    assert held is not None
    assert held.state == guest_pb2.GUEST_STATE_PAUSED
    await driver.resume("c1")
    program = await driver.access.execute("c1", Command(("sh", "-c", "exit 5")))
    assert (await program.wait()).code == 5
    await program.close()
    await driver.suspend("c1")
    assert (await driver.emergency_kill(["c1"])).gone == {"c1"}


async def test_a_device_rule_holds_in_cgroup_v2(driver: LxcDriver, folder: Path) -> None:
    await define(driver, folder, "privileged")
    await driver.start("c1", 7)
    program = await driver.access.execute("c1", Command(("sh", "-c", "mknod /tmp/kmsg c 1 11; cat < /tmp/kmsg")))
    assert (await program.wait()).code != 0
    await program.close()
