"""The watchdog: the device fires, or HA guests are proven dead, within the kill budget; and never while all is well."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.processes import ProcessRecord, is_alive, record_of
from agent.fencing.record import FILE_NAME, LeaseRecord, write
from agent.watchdog.core import FEED_GRACE_MS, MAX_TIMEOUT_S, TICK_S, WANTED_TIMEOUT_S, Actions, WatchdogCore
from agent.watchdog.settings import Settings
from common.clock import boottime_ns
from common.config import AgentConfig
from common.leases import KILL_BUDGET_MS

S = 1_000_000_000
TICK_NS = int(TICK_S * S)
BUDGET_NS = KILL_BUDGET_MS * 1_000_000
WEB = {"web": ProcessRecord(42, 1)}


class Timer:
    """The device: fires `timeout` after the last feed. least_s: what it makes of every timeout that is shorter."""

    def __init__(self, least_s: int = 1) -> None:
        self.timeout_ns, self.fires_ns, self.least_s, self.told_ns = 0, 0, least_s, 0

    def apply(self, core: WatchdogCore, now: int, *, dead: bool = False) -> None:
        actions = core.tick(now)
        if actions.kill:
            core.killed(actions.kill, dead=dead)
            actions = core.tick(now)
        if actions.arm_s:
            timeout_s = max(actions.arm_s, self.least_s)
            self.timeout_ns, self.fires_ns = timeout_s * S, now + timeout_s * S
            core.armed(actions.arm_s, timeout_s, now)
        if actions.feed:
            self.fires_ns = now + self.timeout_ns
            core.fed(now)
        if actions.disarm:
            self.fires_ns = 0
            core.disarmed()

    def check(self, core: WatchdogCore, now: int) -> bool:
        """Check the promise; return whether the host was reset.

        A device counts whole seconds, some of them more at least: of a lease that it is told of with less left than
        that it may fire later, by no more than that.
        """
        slack_ns = S if self.least_s > 1 else 0
        fire_by = max(core.lease.deadline_ns + BUDGET_NS, self.told_ns + self.least_s * S + TICK_NS + slack_ns)
        if core.guarding and now > fire_by:
            assert self.fires_ns
            assert self.fires_ns <= fire_by
        return bool(self.fires_ns) and now >= self.fires_ns


LEAST_S = st.integers(1, MAX_TIMEOUT_S)
RENEWALS = st.lists(st.tuples(st.integers(1, 45), st.integers(0, 10_000)), min_size=1, max_size=30)


@settings(max_examples=400)
@given(RENEWALS, st.booleans(), st.lists(st.sampled_from([0, 1 * S, 6 * S]), max_size=30), LEAST_S)
def test_device_fires_or_death_is_proven_by_lease_end_plus_budget(
    renewals: list[tuple[int, int]], dead: bool, hangs: list[int], least_s: int
) -> None:
    """renewals: after so many ticks the agent, alive till then, tells a lease that ends so many ms later. Then it dies."""
    core, device, now = WatchdogCore(device=True), Timer(least_s), 1_000 * S
    pauses = iter(hangs)
    for ticks, lease_ms in [*renewals, (400, 0)]:
        if ticks < 400:  # the last round is the agent's death
            core.heard(LeaseRecord(now + lease_ms * 1_000_000, WEB))
            device.told_ns = now
        for _ in range(ticks):
            device.apply(core, now, dead=dead)
            now += TICK_NS
            if device.check(core, now):
                return
        now += next(pauses, 0)
        if device.check(core, now):
            return


@given(st.lists(st.integers(0, 6_000), min_size=5, max_size=60), LEAST_S)
def test_device_never_fires_while_the_lease_is_renewed(delays_ms: list[int], least_s: int) -> None:
    """Each renewal of a 10 s lease comes at most 6 s after the one before."""
    core, device, now = WatchdogCore(device=True), Timer(least_s), 1_000 * S
    for delay_ms in delays_ms:
        core.heard(LeaseRecord(now + 10 * S, WEB))
        end = now + delay_ms * 1_000_000
        while now <= end:
            device.apply(core, now)
            assert device.fires_ns > now
            now += TICK_NS


@given(st.integers(0, 12_000), LEAST_S)
def test_a_device_fires_late_only_where_it_cannot_fire_sooner(heard_ms: int, least_s: int) -> None:
    """The record of a lease that ends at 10 s is first heard at `heard_ms`, and never again."""
    core, device, now = WatchdogCore(device=True), Timer(least_s), heard_ms * 1_000_000
    core.heard(LeaseRecord(10 * S, WEB))
    device.told_ns = now
    device.apply(core, now)
    in_time_ns = 10 * S + BUDGET_NS - FEED_GRACE_MS * 1_000_000
    sooner_ns = max(in_time_ns, now + least_s * S)
    while not device.check(core, now):
        assert device.fires_ns <= sooner_ns
        now += TICK_NS
        device.apply(core, now)


def test_pause_before_lease_end_is_over_once_it_is_renewed() -> None:
    core, device = WatchdogCore(device=True), Timer()
    core.heard(LeaseRecord(10 * S, WEB))
    device.apply(core, 0)
    device.apply(core, 9 * S)
    assert device.fires_ns == WANTED_TIMEOUT_S * S
    core.heard(LeaseRecord(19 * S, WEB))
    device.apply(core, 9 * S)
    assert device.fires_ns == (9 + WANTED_TIMEOUT_S) * S


def test_host_without_ha_guests_is_not_armed_and_the_end_of_the_last_one_disarms() -> None:
    core, device = WatchdogCore(device=True), Timer()
    device.apply(core, 0)
    assert not device.fires_ns
    core.heard(LeaseRecord(10 * S, WEB))
    device.apply(core, 0)
    assert device.fires_ns
    core.heard(LeaseRecord(0))
    device.apply(core, 1)
    assert not device.fires_ns


def test_a_device_that_does_not_stop_when_told_is_fed_and_told_again() -> None:
    core, device = WatchdogCore(device=True), Timer()
    core.heard(LeaseRecord(10 * S, WEB))
    device.apply(core, 0)
    core.heard(LeaseRecord(0))
    for now in (1, 2):
        assert core.tick(now) == Actions(feed=True, disarm=True)


def test_stop_leaves_the_device_armed_while_ha_guests_may_run() -> None:
    core, device = WatchdogCore(device=True), Timer()
    core.heard(LeaseRecord(10 * S, WEB))
    device.apply(core, 0)
    assert not core.stop(0).disarm
    core.heard(LeaseRecord(0))
    assert core.stop(0).disarm


def test_an_armed_device_of_which_nothing_is_known_is_left_alone() -> None:
    """Whoever armed it knew of guests; a record that cannot be read is no word that they are gone."""
    core = WatchdogCore(device=True, inherited=True)
    assert core.tick(0) == core.stop(0) == Actions()


@given(st.integers(0, 13_000), st.lists(st.integers(1, 30), min_size=3, max_size=3))
def test_a_stop_leaves_the_device_as_long_as_the_lease_allows(stop_ms: int, makes_s: list[int]) -> None:
    """makes_s: what the device makes of the timeouts that it is given at the end; it may make more of them."""
    core, device, now = WatchdogCore(device=True), Timer(), 0
    core.heard(LeaseRecord(10 * S, WEB))
    while now < stop_ms * 1_000_000:
        device.apply(core, now)
        if device.check(core, now):
            return
        now += TICK_NS
    for makes in makes_s:
        if not (asked_s := core.stop(now).arm_s):
            break
        timeout_s = max(makes, asked_s) if asked_s > WANTED_TIMEOUT_S else asked_s
        core.armed(asked_s, timeout_s, now)
        device.fires_ns, device.timeout_ns = now + timeout_s * S, timeout_s * S
    if core.stop(now).feed:
        device.fires_ns = now + device.timeout_ns
    assert device.fires_ns <= 10 * S + BUDGET_NS


def test_a_stop_with_a_fresh_lease_leaves_twice_the_usual_time() -> None:
    core, device = WatchdogCore(device=True), Timer()
    core.heard(LeaseRecord(10 * S, WEB))
    device.apply(core, 0)
    assert core.stop(S) == Actions(arm_s=MAX_TIMEOUT_S)
    core.armed(MAX_TIMEOUT_S, MAX_TIMEOUT_S, S)
    assert core.stop(S) == Actions(feed=True)


def test_a_start_of_unknown_outcome_is_never_proven_dead() -> None:
    core = WatchdogCore(device=True)
    core.heard(LeaseRecord(10 * S, WEB, ("db",)))
    core.killed(core.lease, dead=True)
    assert core.guarding


def test_guests_without_a_lease_get_the_whole_budget_from_when_they_are_first_heard_of_and_no_more() -> None:
    core, device, now = WatchdogCore(device=True), Timer(), 1_000 * S
    while now < 1_002 * S:
        core.heard(LeaseRecord(0, WEB, (str(now),)))  # another record each time, always without a lease
        device.apply(core, now)
        if now < 1_000 * S + BUDGET_NS - S:
            assert device.fires_ns > now + S // 2
        now += TICK_NS
    assert 1_001 * S <= device.fires_ns <= 1_000 * S + BUDGET_NS


def test_a_device_that_an_earlier_process_left_armed_is_stopped_when_no_ha_guest_runs() -> None:
    core, device = WatchdogCore(device=True, inherited=True), Timer()
    device.fires_ns = 4 * S
    core.heard(LeaseRecord())
    device.apply(core, 0)
    assert not device.fires_ns
    assert core.tick(S) == Actions()


def test_a_device_that_an_earlier_process_left_armed_is_left_alone_when_feeding_is_over() -> None:
    core = WatchdogCore(device=True, inherited=True)
    core.heard(LeaseRecord(10 * S, WEB, ("db",)))
    core.killed(core.lease, dead=True)
    assert core.tick(11 * S) == Actions()
    core.heard(LeaseRecord(20 * S, WEB))
    assert core.tick(11 * S) == Actions(arm_s=WANTED_TIMEOUT_S)


def test_defaults_are_those_of_the_agent() -> None:
    agent, mine = AgentConfig(name="a", cluster_id="b", address="c"), Settings()
    assert (agent.watchdog_device, agent.watchdog_socket, agent.run_dir) == (
        mine.watchdog_device,
        mine.watchdog_socket,
        mine.run_dir,
    )


class Dog:
    """The real process, on a pipe in the part of the device."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket, pipe = folder, folder / "watchdog.sock", folder / "watchdog"
        os.mkfifo(pipe)
        self._reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        config = {"watchdog_device": str(pipe), "watchdog_socket": str(self.socket), "run_dir": str(folder)}
        (folder / "agent.yaml").write_text(json.dumps(config))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, stderr: int | None = None) -> None:
        command = [sys.executable, "-m", "agent.watchdog.main", "--config", str(self.folder / "agent.yaml")]
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(command, stderr=stderr)
        _wait(self.socket.exists)

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(5)

    def tell(self, lease: LeaseRecord) -> None:
        """Do as the agent does."""
        write(self.folder, lease)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(lease.to_bytes(), str(self.socket))

    def said(self) -> list[bytes]:
        """What the device was told since the last look."""
        with suppress(BlockingIOError):
            return os.read(self._reader, 65536).split(b"\n")[:-1]
        return []

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        os.close(self._reader)


@pytest.fixture
def dog(tmp_path: Path) -> Iterator[Dog]:
    made = Dog(tmp_path)
    yield made
    made.close()


@pytest.fixture
def guest() -> Iterator[ProcessRecord]:
    with subprocess.Popen(["sleep", "60"]) as process:
        record = record_of(process.pid)
        assert record is not None
        yield record
        process.kill()


def test_real_process_arms_feeds_kills_at_lease_end_and_disarms(dog: Dog, guest: ProcessRecord) -> None:
    dog.start()
    assert dog.socket.stat().st_mode & 0o777 == 0o600
    lease = LeaseRecord(boottime_ns() + 3 * S, {"web": guest})
    dog.tell(lease)
    _wait(lambda: not is_alive(guest), 6)
    assert boottime_ns() >= lease.deadline_ns
    time.sleep(2 * TICK_S)
    said = dog.said()
    assert said[0] == b"timeout 4"
    assert b"feed" in said
    assert said[-1] == b"V"
    assert dog.end() == 0


def test_a_restart_after_the_guests_were_seen_dead_arms_nothing(dog: Dog, guest: ProcessRecord) -> None:
    """The agent is stopped, and its last record tells of guests for ever."""
    dog.start()
    dog.tell(LeaseRecord(boottime_ns(), {"web": guest}))
    _wait(lambda: not is_alive(guest))
    assert dog.end() == 0
    dog.said()
    dog.start()
    time.sleep(4 * TICK_S)
    assert dog.said() == []


def test_guests_that_ended_by_themselves_before_the_lease_need_no_reset(dog: Dog, guest: ProcessRecord) -> None:
    """The agent is stopped, and the last HA guest powers off."""
    dog.start()
    dog.tell(LeaseRecord(boottime_ns() + 2 * S, {"web": guest}))
    os.kill(guest.pid, signal.SIGKILL)
    _wait(lambda: b"V" in dog.said())


def test_a_restart_takes_over_a_device_that_was_left_armed_and_stops_it_without_ha_guests(dog: Dog) -> None:
    dog.start()
    dog.tell(LeaseRecord(boottime_ns() + 10 * S, {}, ("web",)))
    _wait(lambda: b"feed" in dog.said())
    dog.end(signal.SIGKILL)
    write(dog.folder, LeaseRecord())
    dog.start()
    _wait(lambda: b"V" in dog.said())


def test_a_stop_gives_the_process_that_comes_next_more_time_than_a_crash(dog: Dog) -> None:
    dog.start()
    dog.tell(LeaseRecord(boottime_ns() + 10 * S, {}, ("web",)))
    _wait(lambda: b"feed" in dog.said())
    dog.end()
    assert dog.said()[-2:] == [b"timeout 8", b"feed"]
    dog.start()
    _wait(lambda: b"timeout 4" in dog.said())


def test_a_restart_that_cannot_read_the_record_does_not_stop_an_armed_device(dog: Dog) -> None:
    """Found on hosts that are containers themselves: the unit saw another boot id than the agent."""
    dog.start()
    dog.tell(LeaseRecord(boottime_ns() + 10 * S, {}, ("web",)))
    _wait(lambda: b"feed" in dog.said())
    dog.end()
    write(dog.folder, LeaseRecord(boottime_ns() + 10 * S, {}, ("web",), boot="another"))
    dog.said()
    dog.start()
    time.sleep(4 * TICK_S)
    assert dog.said() == []


def test_a_log_that_hangs_stops_neither_feeding_nor_the_kill(dog: Dog, guest: ProcessRecord) -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writes, b"x" * 4096)
    os.set_blocking(writes, True)
    dog.start(stderr=writes)
    dog.tell(LeaseRecord(boottime_ns() + 3 * S, {"web": guest}))
    _wait(lambda: b"feed" in dog.said())
    _wait(lambda: not is_alive(guest), 8)
    _wait(lambda: b"V" in dog.said())
    assert dog.end() == 0
    for end in (reads, writes):
        os.close(end)


@pytest.mark.parametrize("text", ["{", ""])
def test_a_damaged_record_leaves_what_was_known_before(dog: Dog, text: str) -> None:
    """A process that starts on one knows nothing, and arms nothing; the agent writes another record within a second."""
    (dog.folder / FILE_NAME).write_text(text)
    dog.start()
    time.sleep(2 * TICK_S)
    assert dog.said() == []
    dog.tell(LeaseRecord(boottime_ns() + 10 * S, {}, ("web",)))
    _wait(lambda: b"feed" in dog.said())


def test_the_process_imports_neither_grpc_nor_libvirt() -> None:
    check = "import sys, agent.watchdog.main; print([m for m in ('grpc', 'libvirt', 'google') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"


def _wait(condition: object, timeout_s: float = 5) -> None:
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)
