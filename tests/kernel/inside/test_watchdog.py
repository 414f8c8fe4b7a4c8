"""`gugus-watchdog` on watchdog drivers of the kernel: when the device is armed and fed, and when it fires.

softdog is told to say that it would reset the machine, and not to do it. That it does is shown by test_reset.py.
"""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.compute.processes import record_of
from agent.watchdog.core import MAX_TIMEOUT_S, WANTED_TIMEOUT_S
from common.clock import boottime_ns
from common.leases import NS_PER_MS
from tests.kernel.inside.watchdogs import HARDWARE, SOFTDOG, Agent, Daemon, Driver, Guests, until, victim

pytestmark = pytest.mark.kernel

NO_RESET = (SOFTDOG, "soft_noboot=1")
PAST_TIMEOUT_S = WANTED_TIMEOUT_S + 1.5
NONE, SOME = Guests(), Guests(starting=("web",))


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    made = Driver(*getattr(request, "param", NO_RESET))
    yield made
    made.unload()


@pytest.fixture
def daemon(driver: Driver, tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def agent(daemon: Daemon, tmp_path: Path) -> Agent:
    return Agent(tmp_path, daemon)


@pytest.mark.parametrize("driver", [NO_RESET, (HARDWARE,)], indirect=True, ids=[SOFTDOG, HARDWARE])
def test_the_device_is_armed_only_while_ha_guests_may_run(driver: Driver, agent: Agent) -> None:
    agent.renew(NONE)
    time.sleep(0.5)
    assert not driver.armed
    agent.renew(SOME)
    until(lambda: driver.armed)
    agent.renew(NONE)
    until(lambda: not driver.armed)
    time.sleep(PAST_TIMEOUT_S)
    assert not driver.fired


def test_a_lease_that_is_renewed_keeps_the_device_fed(driver: Driver, agent: Agent) -> None:
    agent.renew_for(2 * WANTED_TIMEOUT_S, SOME)
    assert driver.armed
    assert not driver.fired


def test_guests_that_are_killed_and_seen_dead_at_lease_end_need_no_reset(driver: Driver, agent: Agent) -> None:
    with victim() as process:
        record = record_of(process.pid)
        assert record is not None
        lease = agent.renew(Guests({"web": record}), WANTED_TIMEOUT_S * 1000)
        until(lambda: driver.armed)
        assert process.wait(2 * WANTED_TIMEOUT_S) == -signal.SIGKILL
        assert boottime_ns() >= lease.deadline_ns
        until(lambda: not driver.armed)
        time.sleep(PAST_TIMEOUT_S)
        assert not driver.fired


def test_a_killed_watchdog_that_is_restarted_in_time_goes_on_feeding(
    driver: Driver, daemon: Daemon, agent: Agent
) -> None:
    agent.renew(SOME)
    until(lambda: driver.armed)
    daemon.kill()
    assert driver.armed
    daemon.start()
    agent.renew_for(2 * WANTED_TIMEOUT_S, SOME)
    assert driver.armed
    assert not driver.fired


@pytest.mark.parametrize(("end", "within_s"), [(signal.SIGKILL, WANTED_TIMEOUT_S), (signal.SIGTERM, MAX_TIMEOUT_S)])
def test_a_watchdog_that_ends_and_is_not_restarted_leaves_the_device_to_fire(
    driver: Driver, daemon: Daemon, agent: Agent, end: signal.Signals, within_s: int
) -> None:
    """One that was told to end leaves time for the next one: longer than after a crash, and never beyond the lease."""
    agent.renew(SOME)
    until(lambda: driver.armed)
    ended_ns = boottime_ns()
    daemon.process.send_signal(end)
    until(lambda: driver.fired, within_s + 2)
    took_ms = (boottime_ns() - ended_ns) / NS_PER_MS
    assert took_ms <= within_s * 1000 + 500


@pytest.mark.parametrize("driver", [(*NO_RESET, "nowayout=1")], indirect=True, ids=["nowayout"])
def test_a_device_that_cannot_be_disarmed_is_fed_when_no_ha_guest_is_left(driver: Driver, agent: Agent) -> None:
    agent.renew(SOME)
    until(lambda: driver.armed)
    agent.renew(NONE)
    time.sleep(PAST_TIMEOUT_S)
    assert agent.status.reason == "/dev/watchdog (Software Watchdog)"
    assert driver.armed
    assert not driver.fired
