"""The watchdog: the device fires, or HA guests are proven dead, within the kill budget; and never while all is well."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.processes import ProcessRecord, is_alive, record_of
from agent.fencing.record import LeaseRecord, write
from agent.watchdog.core import TICK_S, WANTED_TIMEOUT_S, KillOutcome, WatchdogCore
from agent.watchdog.kill import kill
from agent.watchdog.settings import Settings
from common.clock import boottime_ns
from common.config import AgentConfig
from common.leases import KILL_BUDGET_MS

S = 1_000_000_000
TICK_NS = int(TICK_S * S)
WEB = {"web": ProcessRecord(42, 1)}


class Timer:
    """The device: fires `timeout` after the last feed."""

    def __init__(self) -> None:
        self.timeout_ns, self.fires_ns, self.late = 0, 0, False

    def apply(self, core: WatchdogCore, now: int, outcome: KillOutcome) -> None:
        actions = core.tick(now)
        if actions.arm_s:
            # A device counts whole seconds: one that is first heard of with less left than that cannot be in time.
            self.late = now + actions.arm_s * S > core.lease.deadline_ns + KILL_BUDGET_MS * 1_000_000
            self.timeout_ns, self.fires_ns = actions.arm_s * S, now + actions.arm_s * S
            core.armed(actions.arm_s, actions.arm_s)
        if actions.feed:
            self.fires_ns = now + self.timeout_ns
        if actions.disarm:
            self.fires_ns = 0
        if actions.kill:
            core.killed(core.lease, outcome)

    def check(self, core: WatchdogCore, now: int) -> bool:
        """Check the promise; return whether the host was reset."""
        fire_by = core.lease.deadline_ns + KILL_BUDGET_MS * 1_000_000
        if core.guarding and now > fire_by and not self.late:
            assert self.fires_ns
            assert self.fires_ns <= fire_by
        return bool(self.fires_ns) and now >= self.fires_ns


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(1, 45), st.integers(0, 10_000)), min_size=1, max_size=30),
    st.sampled_from([KillOutcome.ALIVE, KillOutcome.GONE, KillOutcome.PROVEN]),
    st.lists(st.sampled_from([0, 1 * S, 6 * S]), max_size=30),
)
def test_device_fires_or_death_is_proven_by_lease_end_plus_budget(
    feeds: list[tuple[int, int]], outcome: KillOutcome, hangs: list[int]
) -> None:
    """feeds: after so many ticks the agent, alive till then, tells a lease that ends so many ms later. Then it dies."""
    core, device, now = WatchdogCore(device=True), Timer(), 1_000 * S
    pauses = iter(hangs)
    for ticks, lease_ms in [*feeds, (400, 0)]:
        if ticks < 400:  # the last round is the agent's death
            core.heard(LeaseRecord(now + lease_ms * 1_000_000, WEB))
        for _ in range(ticks):
            device.apply(core, now, outcome)
            now += TICK_NS
            if device.check(core, now):
                return
        now += next(pauses, 0)
        if device.check(core, now):
            return


@given(st.lists(st.integers(0, 6_000), min_size=5, max_size=60))
def test_device_never_fires_while_the_lease_is_renewed(delays_ms: list[int]) -> None:
    """Each renewal of a 10 s lease comes at most 6 s after the one before."""
    core, device, now = WatchdogCore(device=True), Timer(), 1_000 * S
    for delay_ms in delays_ms:
        core.heard(LeaseRecord(now + 10 * S, WEB))
        end = now + delay_ms * 1_000_000
        while now <= end:
            device.apply(core, now, KillOutcome.ALIVE)
            assert device.fires_ns > now
            now += TICK_NS


def test_pause_before_lease_end_is_over_once_it_is_renewed() -> None:
    core, device = WatchdogCore(device=True), Timer()
    core.heard(LeaseRecord(10 * S, WEB))
    device.apply(core, 0, KillOutcome.ALIVE)
    device.apply(core, 9 * S, KillOutcome.ALIVE)
    assert device.fires_ns == WANTED_TIMEOUT_S * S
    core.heard(LeaseRecord(19 * S, WEB))
    device.apply(core, 9 * S, KillOutcome.ALIVE)
    assert device.fires_ns == (9 + WANTED_TIMEOUT_S) * S


def test_host_without_ha_guests_is_not_armed_and_the_end_of_the_last_one_disarms() -> None:
    core = WatchdogCore(device=True)
    assert core.tick(0).arm_s == 0
    core.heard(LeaseRecord(10 * S, WEB))
    assert core.tick(0).arm_s == WANTED_TIMEOUT_S
    core.armed(WANTED_TIMEOUT_S, WANTED_TIMEOUT_S)
    core.heard(LeaseRecord(0))
    assert core.tick(1).disarm


def test_stop_leaves_the_device_armed_while_ha_guests_may_run() -> None:
    core = WatchdogCore(device=True)
    core.heard(LeaseRecord(10 * S, WEB))
    core.armed(WANTED_TIMEOUT_S, WANTED_TIMEOUT_S)
    assert not core.stop(0).disarm
    core.heard(LeaseRecord(0))
    assert core.stop(0).disarm


def test_a_start_of_unknown_outcome_is_never_proven_dead() -> None:
    core = WatchdogCore(device=True)
    core.heard(LeaseRecord(10 * S, WEB, ("db",)))
    core.killed(core.lease, KillOutcome.PROVEN)
    assert core.guarding


def test_a_process_that_had_gone_by_itself_proves_nothing() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    record = record_of(sleeper.pid)
    assert record is not None
    assert kill({"web": record}) is KillOutcome.PROVEN
    sleeper.wait()
    assert kill({"web": record}) is KillOutcome.GONE


def test_defaults_are_those_of_the_agent() -> None:
    agent, mine = AgentConfig(name="a", cluster_id="b", address="c"), Settings()
    assert (agent.watchdog_device, agent.watchdog_socket, agent.run_dir) == (
        mine.watchdog_device,
        mine.watchdog_socket,
        mine.run_dir,
    )


def test_real_process_arms_feeds_kills_at_lease_end_and_disarms(tmp_path: Path) -> None:
    pipe, sock = tmp_path / "watchdog", tmp_path / "watchdog.sock"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    config = {"watchdog_device": str(pipe), "watchdog_socket": str(sock), "run_dir": str(tmp_path)}
    (tmp_path / "agent.yaml").write_text(json.dumps(config))
    guest = subprocess.Popen(["sleep", "60"])
    command = [sys.executable, "-m", "agent.watchdog.main", "--config", str(tmp_path / "agent.yaml")]
    watchdog = subprocess.Popen(command)
    try:
        _wait(sock.exists)
        assert sock.stat().st_mode & 0o777 == 0o600
        process = record_of(guest.pid)
        assert process is not None
        lease = LeaseRecord(boottime_ns() + 4 * S, {"web": process})
        write(tmp_path, lease)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(lease.to_bytes(), str(sock))
        _wait(lambda: not is_alive(process), 6)
        assert boottime_ns() - lease.deadline_ns < S
        _wait(lambda: os.stat(pipe) is not None)
        time.sleep(2 * TICK_S)
        lines = os.read(reader, 65536).split()
        assert lines[0] == b"timeout"
        assert b"feed" in lines
        assert lines[-1] == b"V"
        watchdog.send_signal(signal.SIGTERM)
        assert watchdog.wait(2) == 0
    finally:
        guest.kill()
        guest.wait()
        watchdog.kill()
        watchdog.wait()
        os.close(reader)


def test_the_process_imports_neither_grpc_nor_libvirt() -> None:
    check = "import sys, agent.watchdog.main; print([m for m in ('grpc', 'libvirt', 'google') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"


def _wait(condition: object, timeout_s: float = 5) -> None:
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)
