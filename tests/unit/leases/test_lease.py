"""Leases of shared disks with real files, real processes and QEMU's real locks."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.compute.definitions import Definition, from_json, to_json
from agent.compute.hypervisor import AttachedDisk
from agent.leases import lease
from agent.leases.claim import Claim, Claims, claim_of, command
from agent.leases.lease import Held, Outdated, Record
from agent.leases.refusals import IN_USE
from common.errors import GugusError

NEEDS_QEMU = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-utils is not installed")
NEEDS_MOUNTS = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def record(generation: int = 1, host: str = "n1", uid: str = "u1") -> Record:
    return Record(guest="web", uid=uid, generation=generation, host=host, boot_id=f"boot of {host}")


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.01)


def holder_of(path: Path) -> int:
    """The process that has a lease open and is not this one; 0 when there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        for handle in [*folder.glob("fd/*")] if folder.name != str(os.getpid()) else []:
            try:
                if os.readlink(handle) == str(path):
                    return int(folder.name)
            except OSError:
                continue
    return 0


class TestLease:
    def test_is_had_by_one_until_that_one_ends(self, tmp_path: Path) -> None:
        path = str(tmp_path / "v")
        handle = lease.take(path, record(1))
        assert (lease.is_held(path), lease.read(path)) == (True, record(1))
        with pytest.raises(Held) as error:
            lease.take(path, record(2, "n2"))
        assert error.value.record == record(1)
        os.close(handle)
        assert not lease.is_held(path)
        os.close(lease.take(path, record(2, "n2")))
        assert lease.read(path) == record(2, "n2")

    def test_is_never_given_to_an_older_generation_of_its_guest(self, tmp_path: Path) -> None:
        path = str(tmp_path / "v")
        os.close(lease.take(path, record(5, "n2")))
        with pytest.raises(Outdated) as error:
            lease.take(path, record(4, "n1"))
        assert error.value.record == record(5, "n2")
        os.close(lease.take(path, record(5, "n2")))
        os.close(lease.take(path, record(1, "n1", uid="another guest that took up the volume")))

    @pytest.mark.parametrize("content", [b"", b"\0" * 512, b'{"guest": "we', b"[]", b'{"guest": 1}', b"\xff" * 9000])
    def test_says_nothing_when_its_content_is_broken_and_locks_all_the_same(
        self, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / "v"
        path.write_bytes(content)
        assert lease.read(str(path)) is None
        handle = lease.take(str(path), record(3))
        assert lease.read(str(path)) == record(3)
        with pytest.raises(Held):
            lease.take(str(path), record(4))
        os.close(handle)

    def test_is_the_file_at_its_path_also_when_it_was_removed_while_somebody_waited(self, tmp_path: Path) -> None:
        path = tmp_path / "v"
        first = lease.take(str(path), record(1))
        path.unlink()
        second = lease.take(str(path), record(1))
        assert lease.is_held(str(path))
        os.close(first)
        assert lease.is_held(str(path))
        os.close(second)

    def test_is_no_link_to_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "v").symlink_to(tmp_path / "other")
        with pytest.raises(OSError, match="symbolic links"):
            lease.take(str(tmp_path / "v"), record(1))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True, timeout=10)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True, timeout=10)


def fill(folder: Path) -> None:
    with (folder / "full").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


async def check(claim: Claim) -> None:
    await Claims().check(claim)


@NEEDS_MOUNTS
class TestStorageAtFault:
    def test_full_one_still_locks(self, small: Path) -> None:
        fill(small)
        handle = lease.take(str(small / "new"), record(1))
        assert lease.is_held(str(small / "new"))
        os.close(handle)

    def test_read_only_one_is_refused_with_what_to_do(self, small: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", small], check=True, timeout=10)
        with pytest.raises(GugusError) as error:
            asyncio.run(check(Claim((("root", small / "v", small),), record(1))))
        assert error.value.reason == "LEASE_UNUSABLE"
        assert "Read-only" in error.value.message
        assert error.value.remedy


class Container:
    """Stands for a container: a command leaves a process behind and writes down its pid, as lxc-start does with a monitor's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.pid_file = folder, folder / "lease", folder / "monitor.pid"
        self.claim = Claim((("root", self.path, folder),), record(3))

    def start(self, *, fails: bool = False) -> subprocess.CompletedProcess[str]:
        script = f"sleep 1000 >/dev/null 2>&1 & echo $! >{self.pid_file}; {'kill $!; exit 1' if fails else 'true'}"
        order = self.claim.order(self.folder, str(self.pid_file))
        return subprocess.run(
            command(order, ["sh", "-c", script]), capture_output=True, text=True, check=False, timeout=10
        )

    def kill(self) -> None:
        os.kill(int(self.pid_file.read_text()), signal.SIGKILL)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    made = Container(tmp_path)
    yield made
    if made.pid_file.exists():
        try:
            made.kill()
        except ProcessLookupError:
            pass
    until(lambda: not made.path.exists() or not lease.is_held(str(made.path)))


class TestHolder:
    def test_holds_as_long_as_the_monitor_lives(self, container: Container) -> None:
        assert container.start().returncode == 0
        assert lease.is_held(str(container.path))
        container.kill()
        until(lambda: not lease.is_held(str(container.path)))

    def test_lets_go_of_a_disk_that_is_taken_away_and_keeps_the_others(self, container: Container) -> None:
        other = container.folder / "other"
        container.claim = Claim((*container.claim.disks, ("data", other, container.folder)), record(3))
        assert container.start().returncode == 0
        holders = holder_of(container.path), holder_of(other)
        assert len({0, *holders}) == 3
        os.rename(other, gone := container.folder / "gone")
        until(lambda: not lease.is_held(str(gone)))
        assert lease.is_held(str(container.path))
        assert holder_of(container.path) == holders[0]

    def test_lets_go_after_a_start_that_failed(self, container: Container) -> None:
        assert container.start(fails=True).returncode == 1
        until(lambda: not lease.is_held(str(container.path)))

    def test_starts_nothing_while_another_has_the_lease(self, container: Container) -> None:
        handle = lease.take(str(container.path), record(2, "n2"))
        refused = container.start()
        assert (refused.returncode, container.pid_file.exists()) == (lease.HELD, False)
        assert "n2" in refused.stderr
        os.close(handle)
        os.close(lease.take(str(container.path), record(9, "n2")))
        assert container.start().returncode == lease.OUTDATED
        assert not container.pid_file.exists()

    def test_knows_what_runs_in_the_root_folder(self, container: Container) -> None:
        assert lease._has_processes(os.stat("/proc/self/root"))
        assert not lease._has_processes(os.stat(container.folder))

    async def test_is_put_back_when_it_was_killed(self, container: Container) -> None:
        assert container.start().returncode == 0
        os.kill(holder_of(container.path), signal.SIGKILL)
        until(lambda: not lease.is_held(str(container.path)))
        claims = Claims()
        await claims.hold(container.claim, container.folder, int(container.pid_file.read_text()))
        assert lease.is_held(str(container.path))
        first = holder_of(container.path)
        await claims.hold(container.claim, container.folder, int(container.pid_file.read_text()))
        assert holder_of(container.path) == first
        container.kill()
        until(lambda: not lease.is_held(str(container.path)))

    def test_imports_nothing_but_the_standard_library(self, tmp_path: Path) -> None:
        words = [sys.executable, "-E", "-s", "-S", "-X", "importtime", lease.__file__, "{}"]
        said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10).stderr
        imported = [line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")]
        assert "json" in imported
        assert not [name for name in imported if name.split(".")[0] in ("agent", "common", "google", "gugus", "grpc")]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "root.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "16M"], check=True, timeout=20)
    return path


@NEEDS_QEMU
class TestMachine:
    def claim(self, disk: Path, generation: int = 1) -> Claim:
        spec = guest_pb2.GuestSpec(name="web", uid="u1", disks=[guest_pb2.GuestDisk(name="root", pool="p", volume="v")])
        attached = AttachedDisk(spec.disks[0], disk, volume_pb2.VOLUME_FORMAT_QCOW2, lease=disk.with_name("lease"))
        definition = from_json(to_json(Definition(spec, (attached,), ())))
        assert definition.disks[0].lease == attached.lease
        return claim_of(definition, generation)

    async def test_is_not_started_while_qemu_elsewhere_writes_to_its_disk(self, disk: Path) -> None:
        claims = Claims()
        os.close(lease.take(str(disk.with_name("lease")), record(1, "n9")))
        qemu = await asyncio.create_subprocess_exec("qemu-io", "-f", "qcow2", disk, stdin=-1, stdout=-1)
        assert qemu.stdin
        assert qemu.stdout
        qemu.stdin.write(b"write 0 64k\n")
        await qemu.stdout.readline()
        with pytest.raises(GugusError) as error:
            async with claims.during(self.claim(disk, 2)):
                raise AssertionError("it was started")
        assert error.value.reason == IN_USE
        assert "n9 (generation 1)" in error.value.message
        assert lease.read(str(disk.with_name("lease"))) == record(1, "n9"), "who writes is not written over"
        qemu.kill()
        await qemu.wait()
        async with claims.during(self.claim(disk, 2)):
            assert lease.is_held(str(disk.with_name("lease")))
        assert not lease.is_held(str(disk.with_name("lease")))

    async def test_old_grant_is_refused(self, disk: Path) -> None:
        claims = Claims()
        async with claims.during(self.claim(disk, 3)):
            pass
        with pytest.raises(GugusError) as error:
            async with claims.during(self.claim(disk, 2)):
                raise AssertionError("it was started")
        assert (error.value.reason, error.value.metadata["generation"]) == ("STALE_GENERATION", "3")
