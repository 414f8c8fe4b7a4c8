"""Leases of real containers: held by a process beside liblxc's monitor, for as long as the container lives."""

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from gugus.agent.v1 import volume_pb2

from agent.compute.hypervisor import AttachedDisk
from agent.compute.lxc import lifecycle
from agent.compute.lxc.driver import LxcDriver
from agent.leases import lease
from agent.leases.lease import Record
from agent.leases.refusals import IN_USE
from common.errors import GugusError
from tests.unit.leases.test_lease import holder_of
from tests.unit.lxc.conftest import driver, folder  # noqa: F401  (fixtures)
from tests.unit.lxc.containers import NEEDS, STOPPED, Guest, open_driver, until, until_state

pytestmark = NEEDS


class Leased(Guest):
    """The container c1, with a lease of its disk."""

    @property
    def lease(self) -> Path:
        return self.folder / "lease"

    @property
    def held(self) -> bool:
        return self.lease.exists() and lease.is_held(str(self.lease))

    async def define(self) -> None:
        kind = volume_pb2.VOLUME_FORMAT_FILESYSTEM
        disks = [AttachedDisk(d, self.volume(d.name), kind, lease=self.lease_of(d.name)) for d in self.spec.disks]
        await self.driver.define(self.spec, disks, [])

    def lease_of(self, disk: str) -> Path:
        return self.lease if disk == "root" else self.folder / f"lease of {disk}"

    async def start(self, generation: int = 1) -> None:
        await self.define()
        await self.driver.start("c1", generation)


@pytest.fixture
async def guest(driver: LxcDriver, folder: Path) -> AsyncIterator[Leased]:  # noqa: F811
    made = Leased(driver, folder, "privileged")
    yield made
    await driver.emergency_kill(["c1"])
    await until(lambda: not made.held)


async def test_is_held_from_the_start_to_the_end(guest: Leased) -> None:
    await guest.start(7)
    assert guest.held
    known = lease.read(str(guest.lease))
    assert known is not None
    assert (known["guest"], known["uid"], known["generation"]) == ("c1", "uid-1", 7)
    await guest.driver.kill("c1")
    began_s = time.monotonic()
    await guest.driver.start("c1", 7)  # needs no wait of anybody
    assert time.monotonic() - began_s < 5
    assert guest.held


@pytest.mark.parametrize("victim", ["monitor", "init", "all"])
async def test_is_given_back_however_the_container_ends(guest: Leased, victim: str) -> None:
    await guest.start()
    run = guest.driver._life.runs["c1"]
    if victim == "all":
        await guest.driver.emergency_kill(["c1"])
    elif (record := getattr(run, victim)) is not None:
        os.kill(record.pid, signal.SIGKILL)
    await until(lambda: not guest.held)
    await until_state(guest.driver, STOPPED) if victim == "all" else None
    assert not run.alive


async def test_stays_with_the_container_when_the_agent_goes(guest: Leased, folder: Path) -> None:  # noqa: F811
    await guest.start()
    await guest.driver.close()
    assert guest.held
    guest.driver = open_driver(folder)
    await guest.driver.open()
    assert guest.held
    await guest.driver.kill("c1")
    await until(lambda: not guest.held)
    await guest.driver.close()


async def test_holder_that_was_killed_is_replaced(guest: Leased, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "HOLD_PERIOD_S", 0.05)
    await guest.driver.close()
    await guest.driver.open()
    await guest.start()
    for _ in range(2):
        first = holder_of(guest.lease)
        assert first
        os.kill(first, signal.SIGKILL)
        await until(lambda gone=first: guest.held and holder_of(guest.lease) not in (0, gone))  # type: ignore[misc]
    assert lease.is_held(str(guest.lease))


@pytest.fixture
def elsewhere(guest: Leased) -> Iterator[int]:
    """Another host has the disk."""
    handle = lease.take(str(guest.lease), Record(guest="c1", uid="uid-1", generation=3, host="n2", boot_id="b"))
    yield handle
    os.close(handle)


async def test_starts_once_the_other_host_has_let_go(guest: Leased, elsewhere: int) -> None:
    with pytest.raises(GugusError) as error:
        await guest.start(4)
    assert error.value.reason == IN_USE
    assert error.value.message == (
        'disk "root" of guest "c1" is in use on host n2 (generation 3): the storage has it locked for a process that lives.'
    )
    assert "c1" not in guest.driver._life.runs, "nothing was begun"
    os.dup2(os.open(os.devnull, os.O_RDONLY), elsewhere)  # closes it
    await guest.driver.start("c1", 4)
    assert guest.held


async def test_old_grant_starts_nothing(guest: Leased, elsewhere: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), elsewhere)
    with pytest.raises(GugusError) as error:
        await guest.start(2)
    assert error.value.reason == "STALE_GENERATION"


async def test_reboot_in_place_keeps_it(guest: Leased) -> None:
    await guest.start()
    holder, init = holder_of(guest.lease), guest.driver._life.runs["c1"].init
    assert init is not None
    os.kill(init.pid, signal.SIGTERM)  # busybox: reboot
    await until(lambda: guest.driver._life.runs["c1"].init not in (init, None) and guest.driver._life.runs["c1"].alive)
    assert guest.held
    assert holder_of(guest.lease) == holder


async def test_disk_that_comes_and_goes_while_it_runs_is_held_meanwhile(
    guest: Leased, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "HOLD_PERIOD_S", 0.05)
    await guest.driver.close()
    await guest.driver.open()
    await guest.start()
    data = guest.lease_of("data")
    guest.spec.disks.add(name="data", pool="p", volume="w").settings.mount_path = "/data"
    await guest.define()
    assert not await guest.driver.apply("c1")
    await until(lambda: data.exists() and lease.is_held(str(data)))
    del guest.spec.disks[1]
    await guest.define()
    assert not await guest.driver.apply("c1")
    os.close(lease.take(str(data), Record(guest="c2", uid="uid-2", generation=1, host="n2", boot_id="b"), 5.0))
    assert guest.held
