"""The guard: the host counts as empty only when nothing of HA runs, or may come to run, whoever says what and when."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from gugus.cluster.v1 import heartbeat_pb2

from agent.compute.hypervisor import KillReport
from agent.compute.processes import ProcessRecord, is_alive, kill_all, record_of
from agent.fencing.guard import Guard
from agent.fencing.lease import Phase
from agent.fencing.ledger import LONGEST_START_NS
from agent.fencing.record import LeaseRecord
from common.errors import GugusError
from tests.unit.lxc.monitor import monitoring

S = 1_000_000_000
GONE = ProcessRecord(1 << 22, 1)
"""A process that is not there: no pid is that high (PID_MAX_LIMIT)."""


class Host:
    """A guard on a clock of its own, with what it does to the host."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * S
        self.processes: dict[str, ProcessRecord] = {}
        self.alive: dict[str, str] = {}
        self.kills = 0
        self.told: list[LeaseRecord] = []
        self.lapses: list[heartbeat_pb2.LapseReport] = []
        self.while_killing: Callable[[], object] = lambda: None
        self.while_saving: Callable[[], object] = lambda: None
        self.guard = Guard(0, self.kill, self.told.append, self.save, clock=lambda: self.now_ns)

    async def kill(self, names: Collection[str]) -> KillReport:
        self.kills += 1
        await kill_all({name: p for name, p in self.processes.items() if name in names}, 2)
        self.while_killing()
        return KillReport(frozenset(names) - self.alive.keys(), dict(self.alive))

    def save(self, report: heartbeat_pb2.LapseReport) -> None:
        self.while_saving()
        self.lapses.append(report)

    def lease(self, sequence: int = 1, lease_ms: int = 10_000) -> None:
        self.guard.beat_sent(sequence)
        assert self.guard.beat_answered(sequence, lease_ms, fenced=False)

    def let_the_lease_end(self) -> None:
        self.now_ns += 20 * S

    def lapsed(self, timeout_s: float = 5.0) -> bool:
        return self.guard.wait_emptied(timeout_s) and self.guard.phase is Phase.LAPSED


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.guard.stop()


@pytest.fixture
def guest() -> Iterator[ProcessRecord]:
    """A process in the part of a guest."""
    with subprocess.Popen(["sleep", "60"]) as process:
        record = record_of(process.pid)
        assert record is not None
        yield record
        process.kill()


def test_a_start_that_an_agent_before_asked_for_may_come_to_something_until_its_time_is_over(host: Host) -> None:
    host.guard.start(["web"], LeaseRecord(host.now_ns + 5 * S, {}, ("web",)))
    host.guard.observed("web", None, running=False)  # libvirtd knows nothing of it yet
    assert host.told[-1].starting == ("web",)
    host.let_the_lease_end()
    assert not host.lapsed(0.3)
    host.now_ns += LONGEST_START_NS
    assert not host.lapsed(0.3)
    host.guard.observed("web", None, running=False)
    assert host.lapsed()
    assert not host.told[-1].guarded


def test_a_start_that_an_agent_before_asked_for_is_over_when_its_guest_is_seen(
    host: Host, guest: ProcessRecord
) -> None:
    host.guard.start(["web"], LeaseRecord(host.now_ns + 5 * S, {}, ("web",)))
    host.processes["web"] = guest
    host.guard.observed("web", guest, running=True)
    assert (host.told[-1].processes, host.told[-1].starting) == ({"web": guest}, ())
    host.let_the_lease_end()
    assert host.lapsed()
    assert host.lapses[-1].killed == ["web"]


@pytest.mark.parametrize("when", ["while_killing", "while_saving"])
def test_a_guest_that_turns_up_while_the_host_is_emptied_is_killed_before_the_report(
    host: Host, guest: ProcessRecord, when: str
) -> None:
    turned_up: list[int] = []

    def turn_up() -> None:
        if not turned_up:
            turned_up.append(host.kills)
            host.processes["web"] = guest
            host.guard.observed("web", guest, running=True)

    setattr(host, when, turn_up)
    host.guard.start(["web"], None)
    assert host.lapsed()
    assert not is_alive(guest)
    assert host.kills > turned_up[0]
    assert host.lapses[-1].killed == ["web"]


def test_a_host_where_a_guest_may_have_turned_up_is_not_told_to_be_empty_before_another_kill(host: Host) -> None:
    kills: list[int] = []

    def turn_up() -> None:
        if host.kills == 1:
            host.guard.observed("web", None, running=True)

    host.while_killing = turn_up
    host.while_saving = lambda: kills.append(host.kills)
    host.guard.start(["web"], None)
    assert host.lapsed()
    assert kills == [2]


def test_a_guest_that_lives_is_not_struck_off_because_its_hypervisor_knows_nothing_of_it(
    host: Host, guest: ProcessRecord
) -> None:
    host.guard.start(["web"], LeaseRecord(host.now_ns + 5 * S, {"web": guest}))
    host.guard.observed("web", None, running=False)
    assert host.told[-1].processes == {"web": guest}
    host.let_the_lease_end()  # and the kill, which asks the hypervisors, finds nothing
    assert not host.lapsed(0.3)
    os.kill(guest.pid, signal.SIGKILL)
    assert host.lapsed()


def test_nothing_is_told_before_guests_of_unknown_lease_are_dead(host: Host) -> None:
    """The watchdog may know of them: an empty record would have it disarm."""
    host.alive["web"] = "stuck"
    host.guard.start(["web"], None)
    assert not host.lapsed(0.3)
    assert not host.told
    host.alive.clear()
    assert host.lapsed()
    assert not host.told[-1].guarded


def test_what_cannot_be_killed_is_told_to_the_watchdog_whatever_was_known_of_it(host: Host) -> None:
    host.guard.start(["web"], LeaseRecord(host.now_ns + 5 * S))
    host.alive["web"] = "libvirtd may be about to start it"
    host.let_the_lease_end()
    assert not host.lapsed(0.3)
    assert host.told[-1].starting == ("web",)
    host.alive.clear()
    assert host.lapsed()
    assert not host.told[-1].guarded


def test_a_start_of_unknown_outcome_is_under_way_until_the_next_look(host: Host) -> None:
    host.guard.start([], None)
    host.lease()
    host.guard.admit("web")
    host.guard.unsettled("web")
    host.let_the_lease_end()
    assert not host.lapsed(0.3)
    host.guard.observed("web", None, running=False)
    assert host.lapsed()


def test_a_start_that_is_seen_through_resolves_all_before_it(host: Host) -> None:
    host.guard.start([], None)
    host.lease()
    for _ in range(2):
        host.guard.admit("web")
        host.guard.unsettled("web")
    host.guard.admit("web")
    assert host.guard.settle("web", None, running=False)
    assert not host.told[-1].guarded


@pytest.mark.parametrize("process", [None, GONE])
def test_a_look_that_is_older_than_the_kill_does_not_reopen_a_lapse(host: Host, process: ProcessRecord | None) -> None:
    host.guard.start(["web"], None)
    assert host.lapsed()
    told = len(host.told)
    host.guard.observed("web", process, running=True)
    host.guard.observed("web", None, running=False)
    host.guard.observed("web", process, running=True)
    assert len(host.told) == told
    assert host.guard.phase is Phase.LAPSED
    host.guard.observed("web", None, running=True)
    assert host.lapsed()
    assert host.lapses[-1].number == 2


def test_a_guest_that_lives_without_a_lease_is_killed_at_once(host: Host, guest: ProcessRecord) -> None:
    host.guard.start(["web"], None)
    assert host.lapsed()
    host.processes["web"] = guest
    host.guard.observed("web", guest, running=True)
    assert host.lapsed()
    assert not is_alive(guest)
    assert [report.number for report in host.lapses] == [1, 2]


def test_guests_that_run_as_an_unknown_process_need_no_look_after_a_restart(host: Host) -> None:
    host.guard.start([], None)
    host.lease()
    host.guard.admit("web")
    host.guard.settle("web", None, running=True)
    later = Host()
    later.guard.start(["web"], host.told[-1])
    later.now_ns += 20 * S
    assert later.lapsed()
    later.guard.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of process ids need root")
def test_the_monitor_of_a_container_is_recorded_with_its_init_and_outlives_it_there(host: Host, tmp_path: Path) -> None:
    with monitoring(tmp_path) as monitor:
        host.guard.start([], None)
        host.lease()
        host.guard.admit("c1")
        host.guard.settle("c1", monitor.inits[0], running=True)
        assert host.told[-1].monitors == {"c1": monitor.record}
        assert host.told[-1].starting == ()
        os.kill(monitor.inits[0].pid, signal.SIGHUP)
        later = monitor.await_init()
        host.guard.observed("c1", None, running=True)  # between two inits
        assert host.told[-1].monitors == {"c1": monitor.record}
        host.guard.observed("c1", later, running=True)
        assert host.told[-1].processes == {"c1": later}


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of process ids need root")
def test_an_init_that_is_kept_by_who_knows_what_is_never_proven_dead_by_its_own_death(
    host: Host, tmp_path: Path
) -> None:
    with monitoring(tmp_path, comm="other") as monitor:
        host.guard.start(["c1"], LeaseRecord(host.now_ns + 5 * S))
        host.guard.observed("c1", monitor.inits[0], running=True)
        assert host.told[-1].processes == {"c1": monitor.inits[0]}
        assert host.told[-1].starting == ("c1",)


def test_an_ha_start_is_not_admitted_without_a_lease(host: Host) -> None:
    host.guard.start([], None)
    for check in (host.guard.require_lease, host.guard.admit):
        with pytest.raises(GugusError, match="first lease"):
            check("web")
    host.lease()
    host.guard.require_lease("web")


def test_a_log_that_hangs_delays_no_kill() -> None:
    """Standard error is full, and nobody reads it."""
    script = """
        import os, sys
        from common import logs
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        try:
            while True:
                os.write(writes, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(writes, True)
        logs.setup("test", stream=os.fdopen(writes, "w"))
        from tests.unit.agent.test_guard import GONE, Host
        from agent.fencing.record import LeaseRecord
        host = Host()
        host.guard.start(["web"], LeaseRecord(1, {"web": GONE}))
        print(host.lapsed(), flush=True)
        os._exit(0)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    assert subprocess.check_output(command, text=True, timeout=30).strip() == "True"


async def test_the_guard_goes_on_when_a_kill_fails(host: Host) -> None:
    failures = iter([RuntimeError("broken driver")])

    def fail() -> None:
        for error in failures:
            raise error

    host.while_killing = fail
    host.guard.start(["web"], None)
    assert await asyncio.to_thread(host.lapsed)
