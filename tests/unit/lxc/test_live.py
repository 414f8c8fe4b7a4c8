"""Changing containers that run, their power, and access to them: all real, with a busybox inside."""

import asyncio
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from gugus.agent.v1 import access_pb2, container_pb2, guest_pb2, resources_pb2

from agent.compute.access import Command, FileWish, Size
from agent.compute.idmap import IDMAP
from agent.compute.lxc import interfaces
from agent.compute.lxc.prepare import base_of
from common.errors import GugusError
from tests.runs import current
from tests.unit.lxc.containers import NEEDS, RUNNING, STOPPED, UNMAPPED, Guest, open_driver, state, until, until_state

pytestmark = NEEDS

both_modes = pytest.mark.parametrize("mode", ["privileged", "unprivileged"], indirect=True)
only_mode = pytest.mark.parametrize("mode", ["privileged" if UNMAPPED else "unprivileged"], indirect=True)
"""For what does not depend on the ids."""


@pytest.fixture
def bridge() -> Iterator[str]:
    name = f"gt{current().id}"
    subprocess.run(["ip", "link", "add", "name", name, "up", "type", "bridge"], check=True, timeout=10)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", "dev", name], check=True, timeout=10)


V1 = not Path("/sys/fs/cgroup/cgroup.controllers").exists()


@both_modes
async def test_an_unprivileged_container_runs_in_ids_of_its_own_and_its_files_stay_as_they_are_on_disk(
    guest: Guest,
    mode: str,
) -> None:
    await guest.define()
    await guest.driver.start("c1", 1)
    seen = await guest.driver.observe("c1")
    assert seen is not None
    base = base_of(seen.pid)
    await guest.run("touch", "/made")
    assert (guest.root / "made").stat().st_uid == guest.owner
    if mode == "privileged":
        assert base == 0
    elif not seen.reason:
        assert base == IDMAP.base + 101 * IDMAP.size
        assert guest.folder.joinpath("run/lxc-ids", str(base)).exists()


@only_mode
async def test_limits_are_changed_while_it_runs_and_what_cannot_be_waits(guest: Guest) -> None:
    guest.spec.resources.CopyFrom(resources_pb2.Resources(cpu_weight=50, swap_bytes=1 << 20))
    await guest.define()
    await guest.driver.start("c1", 1)
    assert await guest.cgroup("cpu", "cpu.shares" if V1 else "cpu.weight") == ("512" if V1 else "50")
    guest.spec.cpu_limit_milli, guest.spec.memory_bytes = 250, 128 << 20
    guest.spec.resources.pids, guest.spec.resources.cpuset, guest.spec.resources.cpu_weight = 99, "0", 200
    guest.spec.container.environment["A"] = "1"
    assert await guest.change() == ["container.environment[A]"]
    assert await guest.cgroup("memory", "memory.limit_in_bytes" if V1 else "memory.max") == str(128 << 20)
    assert await guest.cgroup("pids", "pids.max") == "99"
    assert await guest.cgroup("cpuset", "cpuset.cpus") == "0"
    assert await guest.cgroup("cpu", "cpu.shares" if V1 else "cpu.weight") == ("2048" if V1 else "200")
    if V1:
        assert await guest.cgroup("cpu", "cpu.cfs_quota_us") == "25000"
        assert await guest.cgroup("memory", "memory.memsw.limit_in_bytes") == str((128 << 20) + (1 << 20))
    observation = await guest.driver.observe("c1")
    assert observation is not None
    assert [change.field for change in observation.pending] == ["container.environment[A]"]
    guest.spec.memory_bytes, guest.spec.resources.cpuset = 32 << 20, ""
    guest.spec.container.environment.clear()
    assert await guest.change() == []
    assert await guest.cgroup("memory", "memory.limit_in_bytes" if V1 else "memory.max") == str(32 << 20)


@only_mode
async def test_an_io_limit_is_set_on_the_disk_that_the_volume_lies_on(guest: Guest) -> None:
    guest.spec.disks[0].settings.limits.write_bytes_per_s = 5_000_000
    await guest.define()
    await guest.driver.start("c1", 1)
    observation = await guest.driver.observe("c1")
    assert observation is not None
    if "limits of disk root do not hold" in observation.reason:
        pytest.skip(observation.reason)
    file = "blkio.throttle.write_bps_device" if V1 else "io.max"
    assert "5000000" in await guest.cgroup("blkio", file)
    guest.spec.disks[0].settings.limits.write_bytes_per_s = 7_000_000
    assert await guest.change() == []
    assert "7000000" in await guest.cgroup("blkio", file)


@both_modes
async def test_disks_and_folders_of_the_host_come_and_go_while_it_runs(guest: Guest, folder: Path) -> None:
    await guest.define()
    await guest.driver.start("c1", 1)
    shared = folder / "shared"
    shared.mkdir()
    (shared / "hello").write_text("from the host")
    data = guest_pb2.GuestDisk(name="data", pool="p", volume="d")
    data.settings.mount_path = "/srv/data"
    guest.spec.disks.append(data)
    bind = container_pb2.BindMount(source=str(shared), target="/mnt/shared", read_only=True)
    guest.spec.container.mounts.append(bind)
    assert await guest.change() == []
    assert (await guest.run("touch", "/srv/data/made"))[0] == 0
    assert (guest.volume("data") / "made").stat().st_uid == guest.owner
    assert (await guest.run("cat", "/mnt/shared/hello"))[1] == "from the host"
    assert (await guest.run("touch", "/mnt/shared/hello"))[0] != 0

    await guest.driver.kill("c1")
    await guest.driver.start("c1", 2)
    assert (await guest.run("ls", "/srv/data", "/mnt/shared"))[1].split() == [
        "/mnt/shared:",
        "hello",
        "/srv/data:",
        "made",
    ]
    del guest.spec.disks[1:]
    del guest.spec.container.mounts[:]
    assert await guest.change() == []
    assert (await guest.run("ls", "/srv/data", "/mnt/shared"))[1].split() == ["/mnt/shared:", "/srv/data:"]

    guest.spec.container.mounts.add(source="/etc", target="/mnt/etc")
    assert await guest.change() == ["container.mounts"]
    await guest.driver.kill("c1")
    with pytest.raises(GugusError, match="bind_mount_roots"):
        await guest.driver.start("c1", 3)


@only_mode
async def test_interfaces_are_plugged_limited_and_unplugged_while_it_runs(guest: Guest, bridge: str) -> None:
    guest.bridge = bridge
    guest.spec.nics.add(name="eth0", network="n", mac="52:54:00:00:00:01")
    guest.spec.nics[0].settings.rate_bytes_per_s = 1_000_000
    await guest.define()
    await guest.driver.start("c1", 1)
    assert "tbf" in shown("tc", "qdisc", "show", "dev", "gv100-0")
    assert "1000000 bytes/second" in shown("nft", "list", "table", "netdev", "gugus_rate_gv100_0")
    guest.spec.nics[0].settings.rate_bytes_per_s = 0
    guest.spec.nics[0].settings.link_down = True
    guest.spec.nics[0].settings.mtu = 1400
    guest.spec.nics.add(name="eth1", network="n", mac="52:54:00:00:00:02")
    assert await guest.change() == []
    assert "gugus_rate_gv100_0" not in shown("nft", "list", "tables")
    assert (await guest.run("cat", "/sys/class/net/eth0/mtu", "/sys/class/net/eth1/address"))[1].split() == [
        "1400",
        "52:54:00:00:00:02",
    ]
    carrier = await guest.run("cat", "/sys/class/net/eth0/carrier")
    assert carrier[1].strip() == "0"
    guest.spec.nics[0].settings.link_down = False
    del guest.spec.nics[1]
    assert await guest.change() == []
    assert not interfaces.exists("gv100-1")
    assert [nic.name for nic in (await guest.seen()).nics] == ["eth0"]
    guest.spec.nics[0].mac = "52:54:00:00:00:03"
    assert await guest.change() == ["nics[eth0].mac"]


def shown(*argv: str) -> str:
    return subprocess.run(argv, check=True, timeout=10, capture_output=True, text=True).stdout


@both_modes
async def test_what_was_changed_since_the_start_outlives_a_reset_and_a_reboot_with_pending_changes_ends_the_run(
    guest: Guest,
) -> None:
    await guest.define()
    await guest.driver.start("c1", 1)
    first = await guest.pid()
    guest.spec.resources.pids = 77
    assert await guest.change() == []
    await guest.driver.reset("c1")
    assert await guest.pid() != first
    async with asyncio.timeout(5):
        while await guest.cgroup("pids", "pids.max") != "77":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    guest.spec.container.environment["A"] = "1"
    assert await guest.change() == ["container.environment[A]"]
    await guest.run("reboot", "-f")
    await until_state(guest.driver, STOPPED)
    observation = await guest.driver.observe("c1")
    assert observation is not None
    assert observation.ended == guest_pb2.GUEST_END_REBOOT
    await guest.driver.start("c1", 1)
    pid = await guest.pid()
    assert "A=1" in shown("cat", f"/proc/{pid}/environ").split("\0")
    await guest.run("reboot", "-f")
    async with asyncio.timeout(5):
        while await state(guest.driver) != RUNNING or await guest.pid() == pid:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@only_mode
async def test_a_container_is_held_and_goes_on_and_dies_also_while_it_is_held(guest: Guest) -> None:
    await guest.define()
    await guest.driver.start("c1", 1)
    await guest.driver.suspend("c1")
    await guest.driver.suspend("c1")
    assert await state(guest.driver) == guest_pb2.GUEST_STATE_PAUSED
    with pytest.raises(GugusError, match="suspended"):
        await guest.driver.access.execute("c1", Command(("true",)))
    await guest.driver.resume("c1")
    assert await state(guest.driver) == RUNNING
    await guest.driver.suspend("c1")
    report = await open_driver(guest.folder).emergency_kill(["c1"])
    assert report.gone == {"c1"}
    async with asyncio.timeout(5):
        while await state(guest.driver) != guest_pb2.GUEST_STATE_CRASHED:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    with pytest.raises(GugusError) as caught:
        await guest.driver.resume("c1")
    assert caught.value.reason == "GUEST_NOT_RUNNING"
    with pytest.raises(GugusError) as caught:
        await guest.driver.hibernate("c1", guest.folder / "memory", lambda *_: None)
    assert caught.value.reason == "NOT_HIBERNATABLE"


@both_modes
async def test_programs_have_their_exit_code_streams_environment_folder_and_user(guest: Guest) -> None:
    (guest.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n")
    await guest.define()
    await guest.driver.start("c1", 1)
    assert await guest.run("sh", "-c", "cat; echo no >&2; exit 7", text=b"yes") == (7, "yes", "no\n")
    code, out, _ = await guest.run(
        "sh", "-c", "pwd; id -u; echo $A; env", folder="/usr", user="anna", environment={"A": "b c"}
    )
    lines = out.splitlines()
    assert (code, lines[:3]) == (0, ["/usr", "1000", "b c"])
    assert not any(line.startswith(("VIRTUAL_ENV", "PYTHON")) for line in lines)
    assert "HOME=/home/anna" in lines
    assert not any("GUGUS" in line for line in lines)
    evil = {"LD_PRELOAD": "/no/such/library", "PATH": "/no/such/path", "Q": 'it\'s "$HOME"'}
    assert await guest.run("/bin/echo", "fine", environment=evil | {"PATH": "/bin"}) == (0, "fine\n", "")
    assert (await guest.run("/bin/sh", "-c", "echo $Q $LD_PRELOAD", environment=evil))[
        1
    ] == 'it\'s "$HOME" /no/such/library\n'
    told = (127, "", "nosuch: not found in the container\n")
    assert await guest.run("nosuch") == told
    assert await guest.run("nosuch", folder="/usr", environment={"A": "b"}) == told
    assert await guest.run("nosuch", size=Size()) == (127, told[2], "")
    assert (await guest.run("/no/such/program"))[0] == 127
    assert (await guest.run("./busybox", "true", folder="/bin"))[0] == 0
    assert (await guest.run("/proc/self/root/bin/true"))[0] == 0
    with pytest.raises(GugusError, match='guest "c1": /nope: the container has no such folder') as caught:
        await guest.run("id", folder="/nope")
    assert caught.value.reason == "EXECUTE_FAILED"
    assert (await guest.run("sh", "-c", "kill -9 $$"))[0] == 137
    code, out, _ = await guest.run("sh", "-c", "tty; stty size", size=Size(99, 33))
    assert code == 0
    assert "/dev/" in out
    assert "33 99" in out
    with pytest.raises(GugusError, match="ghost"):
        await guest.run("true", user="ghost")


@only_mode
async def test_a_program_that_is_let_go_is_killed(guest: Guest) -> None:
    await guest.define()
    await guest.driver.start("c1", 1)
    program = await guest.driver.access.execute("c1", Command(("sleep", "12345")))
    await until(lambda: runs("sleep 12345"))
    await program.close()
    await until(lambda: not runs("sleep 12345"))


def runs(command: str) -> bool:
    return subprocess.run(["pgrep", "-f", f"^{command}"], check=False, timeout=10, capture_output=True).returncode == 0


@only_mode
async def test_consoles_show_what_the_container_says(guest: Guest) -> None:
    await guest.define()
    await guest.driver.start("c1", 1)
    terminal = await guest.driver.access.open_console("c1", access_pb2.CONSOLE_KIND_TERMINAL, Size())
    await terminal.write(b"echo $((40+2)); exit\n")
    text = b""
    async with asyncio.timeout(10):
        while data := await terminal.read():
            text += data
    await terminal.close()
    assert b"\n42\r\n" in text
    console = await guest.driver.access.open_console("c1", access_pb2.CONSOLE_KIND_SERIAL, Size())
    await guest.run("sh", "-c", "sleep 0.3; echo over here > /dev/console")
    text = b""
    async with asyncio.timeout(10):
        while b"over here" not in text:
            text += await console.read()
    await console.close()


async def stream(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@both_modes
async def test_files_go_in_and_out_whole_and_no_link_leads_out_of_the_container(guest: Guest, folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("the host's")
    (guest.root / "etc/link").symlink_to(secret)
    await guest.define()
    await guest.driver.start("c1", 1)
    access, big = guest.driver.access, secrets.token_bytes(1 << 20)
    info = await access.push_file("c1", "/etc/made", FileWish(0o600, 1000, 50), stream(b"", big[:5], big[5:]))
    assert (info.size_bytes, info.mode, info.uid, info.gid) == (len(big), 0o600, 1000, 50)
    found = (guest.root / "etc/made").stat()
    assert (found.st_uid, found.st_gid) == (guest.owner + 1000, guest.owner + 50)
    info, content = await access.pull_file("c1", "/etc/made")
    assert (info.uid, b"".join([chunk async for chunk in content])) == (1000, big)
    info = await access.push_file("c1", "/etc/made", FileWish(), stream(b"short"))
    assert (info.size_bytes, info.mode, info.uid) == (5, 0o600, 1000)

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    before = sorted(os.listdir(guest.root / "etc"))
    with pytest.raises(ConnectionResetError):
        await access.push_file("c1", "/etc/made", FileWish(), broken())
    assert (guest.root / "etc/made").read_text() == "short"
    assert sorted(os.listdir(guest.root / "etc")) == before
    for path in ("/etc/link", "/etc/none", "/etc", "/dev/null", "/proc/1/root/../../../../.." + str(secret)):
        with pytest.raises(GugusError) as caught:
            await access.pull_file("c1", path)
        assert caught.value.reason == "FILE_NOT_READ"
    with pytest.raises(GugusError) as caught:
        await access.push_file("c1", "/etc/link", FileWish(), stream(b"evil"))
    assert caught.value.reason == "FILE_NOT_WRITTEN"
    assert secret.read_text() == "the host's"
    for path, words in (
        ("/etc", 'guest "c1": /etc: it is a folder; end it with "/" to put the file into it.'),
        ("/nope/x", 'guest "c1": /nope/x: the folder /nope does not exist; make it first.'),
        ("/etc/made/x", 'guest "c1": /etc/made/x: Not a directory.'),
    ):
        with pytest.raises(GugusError) as caught:
            await access.push_file("c1", path, FileWish(), stream(b"new"))
        assert caught.value.message == words
    for path, words in (("/etc", "it is a folder; name a file in it"), ("/nope/x", "No such file or directory")):
        with pytest.raises(GugusError) as caught:
            await access.pull_file("c1", path)
        assert caught.value.message == f'guest "c1": {path}: {words}.'


@only_mode
@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="no /dev/net/tun here")
async def test_a_device_and_an_application_are_given_to_a_container(guest: Guest) -> None:
    script = "echo $WHO $(stat -c %u:%a /dev/net/tun) > /said; sleep 0.5; exit 3"
    guest.spec.container.init.extend(["/bin/sh", "-c", script])
    guest.spec.container.environment["WHO"] = "an app"
    guest.spec.container.devices.add(path="/dev/net/tun", uid=5, mode=0o640)
    await guest.define()
    await guest.driver.start("c1", 1)
    await until_state(guest.driver, guest_pb2.GUEST_STATE_CRASHED)
    seen = await guest.driver.observe("c1")
    assert seen is not None
    assert seen.ended == guest_pb2.GUEST_END_CRASH
    assert "exit code 3" in seen.reason
    assert (guest.root / "said").read_text() == "an app 5:640\n"
    guest.spec.container.init[2] = "sleep 0.3"
    await guest.define()
    await guest.driver.start("c1", 2)
    await until_state(guest.driver, STOPPED)
    seen = await guest.driver.observe("c1")
    assert seen is not None
    assert seen.ended == guest_pb2.GUEST_END_POWEROFF


@only_mode
async def test_usage_is_told(guest: Guest) -> None:
    await guest.define()
    await guest.driver.start("c1", 1)
    await guest.run(
        "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/big bs=1M count=4; sync"
    )
    usage = await guest.seen()
    assert usage.cpu_time_ns > 0
    assert 0 < usage.memory_guest_used_bytes <= usage.memory_bytes
    assert usage.pids >= 1
    assert [disk.name for disk in usage.disks] in (["root"], [])


@both_modes
async def test_every_feature_starts_and_capabilities_are_gone(guest: Guest) -> None:
    features = {"nesting": True, "fuse": True, "keyctl": True, "mknod": guest.spec.container.privileged}
    guest.spec.container.features.CopyFrom(container_pb2.ContainerFeatures(mount_types=["ext4"], **features))
    guest.spec.container.drop_capabilities.extend(["net_raw", "sys_chroot"])
    guest.spec.container.read_only_root = True
    guest.spec.container.ttys = 4
    await guest.define()
    await guest.driver.start("c1", 1)
    bounding = (await guest.run("sh", "-c", "grep CapBnd /proc/1/status"))[1].split()[1]
    gone = [bit for bit in range(41) if not int(bounding, 16) >> bit & 1]
    assert {13, 18} <= set(gone)  # capability.h: CAP_NET_RAW, CAP_SYS_CHROOT
    assert (await guest.run("touch", "/made"))[0] != 0
    code, names, _ = await guest.run("ls", "/dev/tty4", "/dev/fuse", "/dev/.lxc/proc/self/status")
    assert (code, len(names.split())) in ((0, 3), (1, 2))  # /dev/fuse is given where the host has it


@only_mode
async def test_where_ids_cannot_be_translated_the_range_is_shared_and_that_is_said(
    guest: Guest, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "privileged":
        pytest.skip("no unprivileged containers here")
    monkeypatch.setattr("agent.compute.lxc.mounts.idmap_problem", lambda *_: "Invalid argument")
    await guest.define()
    await guest.driver.start("c1", 1)
    seen = await guest.driver.observe("c1")
    assert seen is not None
    assert base_of(seen.pid) == IDMAP.base
    assert "cannot translate ids (Invalid argument)" in seen.reason
