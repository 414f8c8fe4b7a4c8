"""Containers where there is cgroup v2 only, as on Debian's hosts: their limits, and that a kill leaves nothing."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.compute.lxc import processes
from agent.compute.lxc.driver import LxcDriver
from agent.compute.processes import record_of
from tests.unit.lxc.test_driver import define, open_driver

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
    groups = processes.cgroups_of(seen.pid)
    assert written(groups.memory, "memory.max") == str(64 << 20)
    assert written(groups.cpu, "cpu.max") == "50000 100000"
    assert written(groups.cpu, "cpu.weight") == "50"
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
