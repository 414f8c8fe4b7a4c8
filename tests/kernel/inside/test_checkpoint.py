"""Containers that go over as they run, for real: CRIU and liblxc of this host on a stock kernel."""

import asyncio
import json
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from gugus.agent.v1 import guest_pb2

from agent.compute.lxc import processes
from agent.compute.lxc.criu import CriuProbe
from agent.compute.processes import record_of
from common.errors import GugusError
from tests.kernel.inside.conftest import run
from tests.unit.lxc.containers import RUNNING, STOPPED, Guest, open_driver

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("criu") is None, reason="not installed: criu"),
]

BRIDGE, HOST, INSIDE, PORT = "br-criu", "10.99.0.1", "10.99.0.2", 9999
COUNT = f"(i=0; while true; do i=$((i+1)); echo $i | tee /count; sleep 0.2; done) | nc {HOST} {PORT}\n"
INITTAB = f"::sysinit:/sbin/ip addr add {INSIDE}/24 dev eth0\n::once:/bin/sh /etc/count\n::shutdown:/bin/true\n"


def read(path: str) -> str:
    return Path(path).read_text()


@pytest.fixture(scope="module")
def bridge() -> Iterator[str]:
    for words in (f"link add {BRIDGE} type bridge", f"addr add {HOST}/24 dev {BRIDGE}", f"link set {BRIDGE} up"):
        run("ip", *words.split())
    yield BRIDGE
    run("ip", "link", "del", BRIDGE)


@pytest.fixture
async def server(bridge: str) -> AsyncIterator[asyncio.Queue[str]]:
    """What the container says over TCP: one item a line, "new" for each connection."""
    said: asyncio.Queue[str] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.put_nowait("new")
        while line := await reader.readline():
            said.put_nowait(line.decode().strip())

    listening = await asyncio.start_server(serve, HOST, PORT, family=socket.AF_INET)
    yield said
    listening.close()


class Host:
    """A host: a folder with its driver and the container's root on a disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755, parents=True)
        self.folder, self.driver = folder, open_driver(folder)

    def guest(self, mode: str) -> Guest:
        made = Guest(self.driver, self.folder, mode)
        made.bridge = BRIDGE
        made.spec.container.features.checkpoint = True
        made.spec.nics.add(name="eth0", mac="02:00:00:00:99:02")
        (made.root / "etc/inittab").write_text(INITTAB)
        (made.root / "etc/count").write_text(COUNT)
        return made


@pytest.fixture
async def hosts(disk: Path) -> AsyncIterator[tuple[Host, Host]]:
    with tempfile.TemporaryDirectory(dir=disk) as name:
        run("chmod", "755", name)
        made = Host(Path(name) / "one"), Host(Path(name) / "two")
        for host in made:
            await host.driver.open()
        yield made
        for host in made:
            await host.driver.emergency_kill(["c1"])
            await host.driver.undefine("c1")
            await host.driver.close()


async def until_line(said: "asyncio.Queue[str]", least: int) -> int:
    """Wait for a number of at least this; return it."""
    async with asyncio.timeout(60):
        while True:
            line = await said.get()
            if line.isdigit() and int(line) >= least:
                return int(line)


async def moved(guest: Guest, there: Host) -> Guest:
    """Copy what is the container's to another host, as a migration does after the dump."""
    await asyncio.to_thread(run, "cp", "--archive", str(guest.root), str(there.folder / "rootfs"))
    copy = Guest.__new__(Guest)
    copy.__dict__.update(guest.__dict__, driver=there.driver, folder=there.folder, root=there.folder / "rootfs")
    await copy.define()
    return copy


async def test_criu_works_on_this_kernel_and_says_so(tmp_path: Path) -> None:
    found = await CriuProbe(tmp_path).look()
    assert found.problem == ""
    assert found.version


@pytest.mark.parametrize("mode", ["unprivileged", "privileged"])
async def test_a_container_goes_on_elsewhere_with_its_memory_its_connection_and_its_limits(
    hosts: tuple[Host, Host], server: "asyncio.Queue[str]", mode: str
) -> None:
    here, there = hosts
    guest = here.guest(mode)
    await guest.define()
    await here.driver.start("c1", 7)
    before = await until_line(server, 3)
    survey = await here.driver.checkpoints.survey("c1")
    assert [one.message for one in survey.obstacles] == []
    assert (survey.ids_base > 0) == (mode == "unprivileged")
    assert [one.message for one in await there.driver.checkpoints.check(guest.spec, survey)] == []
    first = await here.driver.observe("c1")
    assert first is not None

    images = here.folder / "images"
    await here.driver.checkpoints.dump("c1", images)
    ended = await here.driver.observe("c1")
    assert ended is not None
    assert ended.state == STOPPED
    assert record_of(first.pid) is None
    copy = await moved(guest, there)
    await there.driver.checkpoints.restore("c1", 8, images)

    seen = await there.driver.observe("c1")
    assert seen is not None
    assert (seen.state, seen.generation, seen.mode) == (RUNNING, 8, mode)
    after = await until_line(server, before + 1)
    assert after >= before + 1
    await until_line(server, after + 2)
    assert server.empty() or "new" not in list(server._queue)  # type: ignore[attr-defined]
    _, inside, _ = await copy.run("cat", "/count")
    assert int(inside) >= after

    assert await copy.cgroup("memory", "memory.max") == str(64 << 20)
    assert await copy.cgroup("pids", "pids.max") == "4096"
    assert "Seccomp:\t2" in read(f"/proc/{seen.pid}/status")
    code, _, error = await copy.run("sh", "-c", "mknod /kmsg c 1 11 && head -c1 /kmsg")
    assert code != 0, error
    code, _, error = await copy.run("sh", "-c", "head -c1 /dev/urandom >/dev/null")
    assert (code, error) == (0, "")
    assert (copy.root / "count").stat().st_uid == guest.owner

    again = open_driver(there.folder)  # the agent is started anew
    await again.open()
    adopted = await again.observe("c1")
    await again.close()
    assert adopted is not None
    assert (adopted.pid, adopted.generation) == (seen.pid, 8)
    await there.driver.kill("c1")
    assert record_of(seen.pid) is None


async def test_what_criu_refuses_runs_on(hosts: tuple[Host, Host], server: "asyncio.Queue[str]") -> None:
    here, _ = hosts
    guest = here.guest("unprivileged")
    await guest.define()
    await here.driver.start("c1", 7)
    pid, before = await guest.pid(), await until_line(server, 1)
    code, _, error = await guest.run("unshare", "-u", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & exit 0")
    assert (code, error) == (0, "")

    survey = await here.driver.checkpoints.survey("c1")
    assert [one.reason for one in survey.obstacles] == ["NESTED_NAMESPACE"]
    with pytest.raises(GugusError) as told:
        await here.driver.checkpoints.dump("c1", here.folder / "images")
    assert told.value.reason == "CHECKPOINT_FAILED"
    assert "namespace" in told.value.message
    assert "it runs on" in told.value.message
    assert not (here.folder / "images").exists()
    assert await guest.pid() == pid
    await until_line(server, before + 2)
    await here.driver.kill("c1")
    ended = await here.driver.observe("c1")
    assert ended is not None
    assert ended.ended == guest_pb2.GUEST_END_UNSPECIFIED


async def test_what_cannot_be_restored_leaves_nothing_and_starts_anew(
    hosts: tuple[Host, Host], server: "asyncio.Queue[str]"
) -> None:
    here, there = hosts
    guest = here.guest("unprivileged")
    await guest.define()
    await here.driver.start("c1", 7)
    await until_line(server, 1)
    images = here.folder / "images"
    await here.driver.checkpoints.dump("c1", images)
    copy = await moved(guest, there)
    note = json.loads((images / "gugus.json").read_text())
    (images / "mountpoints-13.img").unlink(missing_ok=True)
    for image in images.glob("core-*.img"):
        image.write_bytes(b"broken")
    assert note["base"] > 0

    with pytest.raises(GugusError) as told:
        await there.driver.checkpoints.restore("c1", 8, images)
    assert told.value.reason == "RESTORE_FAILED"
    seen = await there.driver.observe("c1")
    assert seen is not None
    assert seen.state == STOPPED
    await there.driver.start("c1", 8)
    assert await copy.pid()


async def test_a_fence_in_the_middle_of_a_restore_leaves_no_process(
    hosts: tuple[Host, Host], server: "asyncio.Queue[str]"
) -> None:
    here, there = hosts
    guest = here.guest("unprivileged")
    await guest.define()
    await here.driver.start("c1", 7)
    await until_line(server, 1)
    images = here.folder / "images"
    await here.driver.checkpoints.dump("c1", images)
    await moved(guest, there)
    restoring = asyncio.create_task(there.driver.checkpoints.restore("c1", 8, images))
    async with asyncio.timeout(60):
        while not processes.restorers(there.folder / "lxc"):  # noqa: ASYNC110 (of a process of liblxc's)
            await asyncio.sleep(0.01)
    report = await there.driver.emergency_kill(["c1"])
    assert report.alive == {}
    assert processes.restorers(there.folder / "lxc") == {}
    with pytest.raises(GugusError) as told:
        await restoring
    assert told.value.reason == "RESTORE_FAILED"
    assert await asyncio.to_thread(members, "c1") == []


def members(name: str) -> list[str]:
    """Return the processes in a container's cgroups, whoever put them there."""
    groups = Path("/sys/fs/cgroup").glob(f"**/lxc.payload.{name}*/**/cgroup.procs")
    return [pid for group in groups for pid in group.read_text().split()]
