"""The kill that must always work: what a container's monitor may still start is dead, too, when it counts as gone."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.compute.lxc import processes
from agent.compute.lxc.emergency import kill_containers
from agent.compute.lxc.runs import Run, Runs
from agent.compute.processes import ProcessRecord, is_alive, record_of, stat_of
from agent.fencing.record import LeaseRecord
from agent.watchdog.kill import kill
from tests.unit.lxc.monitor import Monitor, monitoring

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of process ids need root")


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    with monitoring(tmp_path) as running:
        yield running


def reboot(monitor: Monitor) -> ProcessRecord:
    os.kill(monitor.inits[-1].pid, signal.SIGHUP)
    return monitor.await_init()


async def test_a_container_that_reboots_between_the_look_and_the_kill_is_dead_when_it_counts_as_gone(
    monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(tmp_path / "runs")
    runs.save("c1", Run(1, monitor=monitor.record, init=monitor.inits[0]))
    look = processes.monitors

    def look_and_reboot(lxc_path: Path) -> dict[str, list[ProcessRecord]]:
        found = look(lxc_path)
        if len(monitor.inits) == 1:
            reboot(monitor)
        return found

    monkeypatch.setattr(processes, "monitors", look_and_reboot)
    report = await kill_containers(tmp_path, runs, ["c1"], 5.0)
    assert report.gone == {"c1"}
    assert len(monitor.inits) == 2
    assert not any(is_alive(process) for process in (monitor.record, *monitor.inits))


def test_the_watchdog_kills_an_init_that_its_record_does_not_know_before_it_speaks_of_proof(monitor: Monitor) -> None:
    lease = LeaseRecord(1, {"c1": monitor.inits[0]}, (), {"c1": monitor.record})
    later = reboot(monitor)
    assert kill(lease)
    assert not is_alive(later)
    assert kill(lease)


def test_a_monitor_lives_on_but_starts_nothing_while_an_init_of_it_lives(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "kill_each", lambda records: dict.fromkeys(records, "hangs in the kernel"))
    assert not kill(LeaseRecord(1, {}, (), {"c1": monitor.record}))
    stat = stat_of(monitor.record.pid)
    assert stat is not None
    assert stat.state == "T"


def test_a_monitor_is_found_by_its_init_and_by_nothing_else(monitor: Monitor, tmp_path: Path) -> None:
    assert processes.monitor_of(monitor.inits[0]) == monitor.record
    assert processes.monitor_of(monitor.record) is None
    assert processes.scan(tmp_path) == {"c1": processes.Processes(monitor.record, monitor.inits[0])}
    own = record_of(os.getpid())
    assert own is not None
    assert processes.monitor_of(own) is None


async def test_a_record_that_cannot_be_read_is_no_proof_and_saves_no_other_container(
    monitor: Monitor, tmp_path: Path
) -> None:
    runs = Runs(tmp_path / "runs")
    (tmp_path / "runs/c2.json").mkdir(parents=True)  # reading it fails: EISDIR
    report = await kill_containers(tmp_path, runs, ["c2", "c1"], 1.0)
    assert report.gone == {"c1"}
    assert "could not be looked at" in report.alive["c2"]
    assert not is_alive(monitor.inits[0])
