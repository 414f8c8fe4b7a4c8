"""Killing processes: the right one, for certain, and nothing else."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.compute.processes import (
    ProcessRecord,
    RecordStore,
    command_line,
    is_alive,
    kill_all,
    record_of,
    send,
    stands_still,
)
from tests.unit.agent.descriptors import descriptors


@pytest.fixture
async def sleeper() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


async def test_a_process_is_killed_and_gone_when_the_call_returns(sleeper: asyncio.subprocess.Process) -> None:
    record = record_of(sleeper.pid)
    assert record is not None
    assert command_line(sleeper.pid) == ["sleep", "60"]
    assert await kill_all({"web": record}, 2.0) == {}
    assert not is_alive(record)


async def test_another_process_that_got_the_pid_is_left_alone(sleeper: asyncio.subprocess.Process) -> None:
    record = record_of(sleeper.pid)
    assert record is not None
    stranger = ProcessRecord(record.pid, record.start_ticks - 1)
    assert await kill_all({"web": stranger}, 0.5) == {}
    assert is_alive(record)


async def test_a_process_that_ended_counts_as_gone(sleeper: asyncio.subprocess.Process) -> None:
    record = record_of(sleeper.pid)
    assert record is not None
    sleeper.kill()
    await sleeper.wait()
    assert record_of(sleeper.pid) is None
    assert await kill_all({"web": record}, 0.5) == {}


def test_records_outlive_the_agent_and_a_broken_file_is_no_record(tmp_path: Path) -> None:
    record = record_of(os.getpid())
    assert record is not None
    RecordStore(tmp_path / "kvm").save("web", record)
    assert RecordStore(tmp_path / "kvm").load("web") == record
    (tmp_path / "kvm/web.json").write_text("{")
    assert RecordStore(tmp_path / "kvm").load("web") is None
    RecordStore(tmp_path / "kvm").remove("web")
    assert RecordStore(tmp_path / "kvm").load("web") is None


@pytest.mark.parametrize("free", [0, 1])
async def test_what_cannot_be_looked_at_is_not_gone(
    sleeper: asyncio.subprocess.Process, tmp_path: Path, free: int
) -> None:
    record = record_of(sleeper.pid)
    assert record is not None
    with descriptors(free):
        left = await kill_all({"web": record}, 0.05)
    assert "Too many open files" in left["web"]
    assert is_alive(record)
    with descriptors(0):
        for look in (lambda: record_of(sleeper.pid), lambda: command_line(sleeper.pid), lambda: is_alive(record)):
            with pytest.raises(OSError, match="Too many open files"):
                look()
        with pytest.raises(OSError, match="Too many open files"):
            RecordStore(tmp_path).load("web")
    assert await kill_all({"web": record}, 2.0) == {}


def test_a_guest_may_give_its_process_any_name(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"#!/bin/sh\nprintf '\\377) Z 1' > /proc/self/comm\necho\nread x\n")
    script.chmod(0o755)
    with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        record = record_of(process.pid)
        process.kill()
    assert record is not None


async def test_a_process_that_was_told_to_stop_stands_still_and_can_be_killed(
    sleeper: asyncio.subprocess.Process,
) -> None:
    record = record_of(sleeper.pid)
    assert record is not None
    assert not stands_still(record)
    assert send(record, signal.SIGSTOP)
    async with asyncio.timeout(2):
        while not stands_still(record):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await kill_all({"web": record}, 2.0) == {}
    assert not send(record, signal.SIGSTOP)
