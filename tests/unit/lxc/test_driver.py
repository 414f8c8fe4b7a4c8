"""The container driver with real containers: a busybox in a folder, privileged and unprivileged."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest
from gugus.agent.v1 import guest_pb2

from agent.compute.idmap import IDMAP
from agent.compute.lxc import processes
from agent.compute.lxc.driver import LxcDriver
from agent.compute.processes import record_of
from common.errors import GugusError
from tests.unit.lxc.containers import NEEDS, RUNNING, STOPPED, define, open_driver, state, until, until_state

pytestmark = NEEDS


async def test_a_container_starts_is_limited_and_powers_off_when_asked(
    driver: LxcDriver, folder: Path, mode: str
) -> None:
    root = await define(driver, folder, mode)
    assert await state(driver) == STOPPED
    await driver.start("c1", 7)
    await driver.start("c1", 7)
    seen = (await driver.observe_all())["c1"]
    assert (seen.state, seen.mode, seen.generation) == (RUNNING, mode, 7)
    assert seen.memory_used_bytes > 0
    assert (root / "etc/hostname").read_text() == "db\n"
    keys = root / "root/.ssh/authorized_keys"
    assert keys.stat().st_uid == (0 if mode == "privileged" else IDMAP.base)
    config = (folder / "lxc/c1/config").read_text()
    assert str(64 << 20) in config
    await until(lambda: b"hello from inside" in (folder / "lxc/c1/console.log").read_bytes())
    assert b"hello" in await driver.console_log("c1", 1000)
    with pytest.raises(GugusError) as caught:
        await driver.undefine("c1")
    assert caught.value.reason == "GUEST_RUNNING"
    await driver.shutdown("c1")
    await until_state(driver, STOPPED)
    await driver.undefine("c1")
    await driver.undefine("c1")
    assert await driver.observe("c1") is None
    assert not (folder / "lxc/c1").exists()


async def test_a_crash_is_told_apart_from_powering_off_and_both_are_watched(
    driver: LxcDriver, folder: Path, mode: str
) -> None:
    changes: list[str] = []
    driver.watch(changes.append)
    await define(driver, folder, mode)
    await driver.start("c1", 1)
    seen = await driver.observe("c1")
    assert seen is not None
    changes.clear()
    os.kill(seen.pid, signal.SIGKILL)
    await until(lambda: changes == ["c1"])
    ended = await driver.observe("c1")
    assert ended is not None
    assert (ended.state, ended.pid) == (guest_pb2.GUEST_STATE_CRASHED, 0)
    assert "signal 9" in ended.reason
    await driver.start("c1", 2)
    again = await driver.observe("c1")
    assert again is not None
    os.kill(again.pid, signal.SIGUSR2)
    await until_state(driver, STOPPED)
    assert "by itself" in (await driver.observe_all())["c1"].reason


async def test_a_reboot_is_followed_to_the_new_init(driver: LxcDriver, folder: Path, mode: str) -> None:
    await define(driver, folder, mode)
    await driver.start("c1", 3)
    first = await driver.observe("c1")
    assert first is not None
    os.kill(first.pid, signal.SIGTERM)  # busybox init: reboot
    async with asyncio.timeout(10):
        while True:
            seen = await driver.observe("c1")
            assert seen is not None
            assert seen.state != guest_pb2.GUEST_STATE_CRASHED
            if seen.state == RUNNING and seen.pid != first.pid:
                break
            await asyncio.sleep(0.01)
    assert seen.generation == 3
    await driver.kill("c1")
    assert await state(driver) == STOPPED
    assert record_of(seen.pid) is None


async def test_a_container_whose_monitor_hangs_is_not_called_stopped_until_nothing_can_reboot_it(
    driver: LxcDriver, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.compute.lxc.lifecycle.SETTLE_TIMEOUT_S", 0.5)
    await define(driver, folder, "privileged")
    await driver.start("c1", 3)
    found = processes.scan(folder / "lxc")["c1"]
    assert found.monitor is not None
    assert found.init is not None
    assert processes.monitor_of(found.init) == found.monitor
    os.kill(found.monitor.pid, signal.SIGSTOP)
    os.kill(found.init.pid, signal.SIGKILL)
    while (now := await state(driver)) != guest_pb2.GUEST_STATE_CRASHED:
        assert now in (RUNNING, guest_pb2.GUEST_STATE_STOPPING)
        await asyncio.sleep(0.01)
    assert record_of(found.monitor.pid) is None


async def test_another_agent_adopts_what_runs_even_without_its_records(driver: LxcDriver, folder: Path) -> None:
    await define(driver, folder, "privileged")
    await driver.start("c1", 5)
    before = await driver.observe("c1")
    assert before is not None
    await driver.close()

    later = open_driver(folder)
    await later.open()
    seen = await later.observe("c1")
    assert seen is not None
    assert (seen.state, seen.pid, seen.generation) == (RUNNING, before.pid, 5)
    await later.close()

    shutil.rmtree(folder / "run")
    last = open_driver(folder)
    changes: list[str] = []
    last.watch(changes.append)
    await last.open()
    assert (await last.observe_all())["c1"].pid == before.pid
    report = await open_driver(folder).emergency_kill(["c1", "nobody"])
    assert report.gone == {"c1", "nobody"}
    assert record_of(before.pid) is None
    await until(lambda: changes == ["c1"])
    await last.close()


async def test_emergency_kill_needs_no_records_at_all(driver: LxcDriver, folder: Path) -> None:
    await define(driver, folder, "privileged")
    await driver.start("c1", 5)
    seen = await driver.observe("c1")
    assert seen is not None
    shutil.rmtree(folder / "run")
    assert (await open_driver(folder).emergency_kill(["c1"])).gone == {"c1"}
    assert record_of(seen.pid) is None
    await until_state(driver, guest_pb2.GUEST_STATE_CRASHED)
    await driver.start("c1", 6)
    assert await state(driver) == RUNNING


async def test_a_start_that_fails_says_why_and_leaves_nothing(driver: LxcDriver, folder: Path) -> None:
    root = await define(driver, folder, "privileged")
    (root / "sbin/init").unlink()
    with pytest.raises(GugusError, match="init") as caught:
        await driver.start("c1", 1)
    assert caught.value.reason == "GUEST_START_FAILED"
    assert await state(driver) == STOPPED
    (root / "sbin/init").symlink_to("/bin/busybox")
    await driver.start("c1", 1)
    assert await state(driver) == RUNNING


async def test_a_container_that_is_not_ours_is_left_alone(driver: LxcDriver, folder: Path) -> None:
    (folder / "lxc/c1").mkdir()
    (folder / "lxc/c1/config").write_text("theirs")
    with pytest.raises(GugusError) as caught:
        await define(driver, folder, "privileged")
    assert caught.value.reason == "CONTAINER_NOT_OURS"
    await driver.undefine("c1")
    assert (folder / "lxc/c1/config").read_text() == "theirs"
