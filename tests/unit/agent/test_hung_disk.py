"""A guest whose disk hangs: it was killed, its first thread is gone, another one still has I/O under way. It is alive."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.compute.kvm import qemu
from agent.compute.processes import ProcessRecord, RecordStore, command_line, is_alive, kill_all, record_of, stat_of
from agent.fencing.record import LeaseRecord
from agent.watchdog.kill import kill
from tests.unit.agent import hung_disk

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="the kernel has no FUSE"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="not installed: unshare"),
]


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[ProcessRecord]:
    """A process that was killed, and of which one thread hangs in the kernel."""
    command = ["unshare", "-m", sys.executable, hung_disk.__file__, str(tmp_path)]
    disk = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert disk.stdout is not None
    said = disk.stdout.readline()
    try:
        if not said:
            pytest.skip("file systems of one's own cannot be mounted here")
        record = record_of(int(said))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        _until(lambda: (stat := stat_of(record.pid)) is not None and stat.state == "Z")
        yield record
        disk.kill()
        _until(lambda: not is_alive(record))
    finally:
        disk.kill()
        disk.wait()


async def test_it_counts_as_alive_however_often_it_is_looked_at(killed: ProcessRecord) -> None:
    for _ in range(2):
        assert (await kill_all({"web": killed}, 0.1)).keys() == {"web"}
        assert is_alive(killed)


def test_the_watchdog_does_not_hold_it_for_dead(killed: ProcessRecord) -> None:
    assert not kill(LeaseRecord(1, {"web": killed}))


def test_it_is_found_without_a_record_of_it(killed: ProcessRecord, tmp_path: Path) -> None:
    assert command_line(killed.pid)[0] == "qemu-system-x86_64"
    assert qemu.process_of("web", RecordStore(tmp_path), hung_disk.UID, qemu.processes()) == killed


def _until(condition: object, timeout_s: float = 5) -> None:
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)
