"""An agent that can open no more files: what it cannot look at is not gone."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from agent.changes import Changes
from agent.compute.kvm.driver import KvmHypervisor
from agent.compute.lxc.driver import create
from agent.compute.processes import RecordStore, is_alive, record_of
from agent.fencing import boot
from agent.fencing.record import kernel_boot_id
from agent.observer import Observer
from common.config import AgentConfig
from tests.unit.agent.descriptors import descriptors


@pytest.mark.parametrize("free", [0, 1, 2, 3])
async def test_an_emergency_reports_no_guest_as_gone_that_lives(tmp_path: Path, free: int) -> None:
    config = AgentConfig(
        name="n1", cluster_id="c", address="a", state_dir=tmp_path, run_dir=tmp_path, lxc_path=tmp_path
    )
    observer = Observer((KvmHypervisor("test:///default", tmp_path, tmp_path), create(config)), Changes())
    guest = await asyncio.create_subprocess_exec("sleep", "60")
    record = record_of(guest.pid)
    assert record is not None
    RecordStore(tmp_path / "kvm").save("web", record)
    with descriptors(free):
        report = await observer.emergency_kill(["web"])
    assert "web" in report.alive or not is_alive(record)
    with suppress(ProcessLookupError):
        guest.kill()
    await guest.wait()


def test_a_boot_id_that_cannot_be_read_is_not_another_one(tmp_path: Path) -> None:
    before = boot.boot_id(tmp_path)
    kernel_boot_id.cache_clear()
    with descriptors(0), pytest.raises(OSError, match="Too many open files"):
        boot.boot_id(tmp_path)
    assert boot.boot_id(tmp_path) == before
