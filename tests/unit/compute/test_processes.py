"""Killing processes: the right one, for certain, and nothing else."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.compute.processes import ProcessRecord, RecordStore, command_line, is_alive, kill_all, record_of


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
    assert await kill_all({"web": record}, 2.0) == frozenset()
    assert not is_alive(record)


async def test_another_process_that_got_the_pid_is_left_alone(sleeper: asyncio.subprocess.Process) -> None:
    record = record_of(sleeper.pid)
    assert record is not None
    stranger = ProcessRecord(record.pid, record.start_ticks - 1)
    assert await kill_all({"web": stranger}, 0.5) == frozenset()
    assert is_alive(record)


async def test_a_process_that_ended_counts_as_gone(sleeper: asyncio.subprocess.Process) -> None:
    record = record_of(sleeper.pid)
    assert record is not None
    sleeper.kill()
    await sleeper.wait()
    assert record_of(sleeper.pid) is None
    assert await kill_all({"web": record}, 0.5) == frozenset()


def test_records_outlive_the_agent_and_a_broken_file_is_no_record(tmp_path: Path) -> None:
    record = record_of(os.getpid())
    assert record is not None
    RecordStore(tmp_path / "kvm").save("web", record)
    assert RecordStore(tmp_path / "kvm").load("web") == record
    (tmp_path / "kvm/web.json").write_text("{")
    assert RecordStore(tmp_path / "kvm").load("web") is None
    RecordStore(tmp_path / "kvm").remove("web")
    assert RecordStore(tmp_path / "kvm").load("web") is None
