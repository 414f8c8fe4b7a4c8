"""The end of a guest at its source: foreseen when it stands still, halted for good, then killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import libvirt
import pytest

from agent.compute import processes
from agent.compute.kvm.migration import KvmMigration
from agent.compute.processes import ProcessRecord

RUNNING = [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]
HELD = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]
STOPPED_FOR_THE_LAST = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]

THREADS = """
import threading, time
for _ in range(3):
    threading.Thread(target=time.sleep, args=(60,)).start()
print("up", flush=True)
while True:
    pass
"""


class Machines:
    """One domain, with a process of its own."""

    def __init__(self) -> None:
        self.domains = self
        self.state: list[int] = RUNNING
        self.running: ProcessRecord | None = None
        self.tell: Callable[[str], None] = lambda _: None
        self.ordered: list[str] = []

    async def act(self, _: str, act: Callable[[Any], object]) -> bool:
        act(SimpleNamespace(state=lambda: self.state))
        return True

    async def process(self, _: str) -> ProcessRecord | None:
        return self.running

    def killed(self, name: str) -> None:
        self.ordered.append(name)

    def watch(self, callback: Callable[[str], None]) -> None:
        self.tell = callback


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[str]]:
    """A process of several threads, of which one never rests."""
    with subprocess.Popen([sys.executable, "-c", THREADS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


def migration_of(machines: Machines) -> KvmMigration:
    return KvmMigration(machines, Path("/nonexistent"))  # type: ignore[arg-type]


def cpu_ticks(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


async def test_what_was_halted_executes_nothing_more_and_is_no_guest_that_stays(busy: subprocess.Popen[str]) -> None:
    machines = Machines()
    machines.running = processes.record_of(busy.pid)
    migration = migration_of(machines)
    assert await migration.lives("web")
    await migration.halt("web")
    at_first = cpu_ticks(busy.pid)
    await asyncio.sleep(0.2)
    assert cpu_ticks(busy.pid) == at_first
    assert not await migration.lives("web"), "also for an agent that knows nothing of it"
    await migration.end("web")
    assert await asyncio.to_thread(busy.wait, 10) == -signal.SIGKILL
    assert set(machines.ordered) == {"web"}, "nobody is to take it for a crash"


async def test_a_guest_without_a_process_is_halted_and_ended_already() -> None:
    migration = migration_of(Machines())
    await migration.halt("web")
    await migration.end("web")
    assert not await migration.lives("web")


def test_threads_that_end_stand_still_whatever_state_they_are_in() -> None:
    """A process that was killed may be in the kernel for long, and is no one that may go on."""
    stat = processes.stat_of(os.getpid())
    assert stat is not None
    assert not stat.still
    assert processes.Stat(b"q", "D", 1, 0x4, 3, 7).still
    assert not processes.Stat(b"q", "D", 1, 0, 3, 7).still


async def test_the_end_is_foreseen_when_the_guest_stands_still_for_the_last_of_it() -> None:
    machines = Machines()
    migration = migration_of(machines)
    foreseen = asyncio.create_task(migration.standstill("web"))
    await asyncio.sleep(0.05)
    assert not foreseen.done()
    machines.state = STOPPED_FOR_THE_LAST
    machines.tell("web")
    await asyncio.wait({foreseen}, timeout=5)
    assert foreseen.done()


async def test_a_guest_that_is_held_all_the_time_has_no_such_moment() -> None:
    machines = Machines()
    machines.state = HELD
    foreseen = asyncio.create_task(migration_of(machines).standstill("web"))
    for state in (HELD, STOPPED_FOR_THE_LAST, HELD):
        machines.state = state
        machines.tell("web")
        await asyncio.sleep(0.02)
    assert not foreseen.done()
    foreseen.cancel()
