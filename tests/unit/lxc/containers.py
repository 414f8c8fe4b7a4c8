"""Real containers for tests: a busybox in a folder, privileged and unprivileged."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from gugus.agent.v1 import boot_pb2, container_pb2, guest_pb2, volume_pb2

from agent.compute.access import Command, Program
from agent.compute.hypervisor import AttachedDisk, AttachedNic
from agent.compute.idmap import IDMAP, available
from agent.compute.lxc import processes
from agent.compute.lxc.driver import LxcDriver, create
from common.config import AgentConfig

RUNNING, STOPPED = guest_pb2.GUEST_STATE_RUNNING, guest_pb2.GUEST_STATE_STOPPED
MISSING = [tool for tool in ("lxc-start", "lxc-usernsexec", "busybox") if shutil.which(tool) is None]
NEEDS = [
    pytest.mark.skipif(os.geteuid() != 0, reason="containers need root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
UNMAPPED = available()
"""Why this host runs no unprivileged containers; "" when it does. Asked as the agent asks, which makes what root may make."""
INITTAB = "::sysinit:/bin/echo hello from inside\n::respawn:/bin/sleep 1000\n::shutdown:/bin/echo bye\n"


def open_driver(folder: Path) -> LxcDriver:
    (folder / "lxc").mkdir(exist_ok=True)
    return create(
        AgentConfig(
            name="n1",
            cluster_id="0123456789abcdef",
            address="127.0.0.1",
            state_dir=folder / "state",
            run_dir=folder / "run",
            lxc_path=folder / "lxc",
            bind_mount_roots=(folder,),
        )
    )


def make_rootfs(folder: Path, owner: int) -> Path:
    root = folder / "rootfs"
    for name in ("bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "usr/bin", "usr/sbin"):
        (root / name).mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), root / "bin/busybox")
    subprocess.run(["chroot", root, "/bin/busybox", "--install", "-s"], check=True, timeout=20)
    (root / "etc/inittab").write_text(INITTAB)
    subprocess.run(["chown", "-Rh", f"{owner}:{owner}", root], check=True, timeout=20)
    return root


async def define(driver: LxcDriver, folder: Path, mode: str) -> Path:
    root = make_rootfs(folder, 0 if mode == "privileged" else IDMAP.base)
    disk = guest_pb2.GuestDisk(name="root", pool="p", volume="v")
    spec = guest_pb2.GuestSpec(
        name="c1",
        id=100,
        uid="uid-1",
        kind=guest_pb2.GUEST_KIND_CONTAINER,
        cpus=1,
        cpu_limit_milli=500,
        memory_bytes=64 << 20,
        disks=[disk],
        first_boot=boot_pb2.FirstBoot(hostname="db", ssh_authorized_keys=["ssh-ed25519 AAAA me"]),
        container=container_pb2.ContainerSpec(privileged=mode == "privileged"),
    )
    await driver.define(spec, [AttachedDisk(disk, root, volume_pb2.VOLUME_FORMAT_FILESYSTEM)], [])
    return root


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def state(driver: LxcDriver) -> guest_pb2.GuestState.ValueType:
    seen = await driver.observe("c1")
    assert seen is not None
    return seen.state


async def until_state(driver: LxcDriver, wanted: guest_pb2.GuestState.ValueType) -> None:
    async with asyncio.timeout(5):
        while await state(driver) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Guest:
    """The container c1: its spec, to be changed and defined again."""

    def __init__(self, driver: LxcDriver, folder: Path, mode: str) -> None:
        self.driver, self.folder, self.owner = driver, folder, 0 if mode == "privileged" else IDMAP.base
        self.root = make_rootfs(folder, self.owner)
        self.bridge = ""
        self.spec = guest_pb2.GuestSpec(
            name="c1",
            id=100,
            uid="uid-1",
            kind=guest_pb2.GUEST_KIND_CONTAINER,
            cpus=1,
            memory_bytes=64 << 20,
            disks=[guest_pb2.GuestDisk(name="root", pool="p", volume="v")],
            container=container_pb2.ContainerSpec(privileged=mode == "privileged"),
        )

    async def define(self) -> None:
        """Give the driver the spec as it is now."""
        disks = [
            AttachedDisk(disk, self.volume(disk.name), volume_pb2.VOLUME_FORMAT_FILESYSTEM) for disk in self.spec.disks
        ]
        nics = [AttachedNic(nic, self.bridge) for nic in self.spec.nics]
        await self.driver.define(self.spec, disks, nics)

    def volume(self, name: str) -> Path:
        """Return the folder of a disk, made at need."""
        if name == "root":
            return self.root
        path = self.folder / name
        path.mkdir(exist_ok=True)
        os.chown(path, self.owner, self.owner)
        return path

    async def change(self) -> list[str]:
        """Define and apply; return the fields that wait."""
        await self.define()
        return [change.field for change in await self.driver.apply("c1")]

    async def seen(self) -> guest_pb2.GuestUsage:
        """Return what it uses."""
        observation = await self.driver.observe("c1")
        assert observation is not None
        assert observation.usage is not None
        return observation.usage

    async def pid(self) -> int:
        """Return its init."""
        observation = await self.driver.observe("c1")
        assert observation is not None
        return observation.pid

    async def cgroup(self, controller: str, file: str) -> str:
        """Read a file of its cgroup."""
        folders = processes.folders_by_controller(await self.pid(), "c1")
        return (folders.get(controller) or folders["unified"]).joinpath(file).read_text().strip()

    async def run(self, *argv: str, text: bytes = b"", **fields: object) -> tuple[int, str, str]:
        """Run a program in it; return exit code, output and errors."""
        program = await self.driver.access.execute("c1", Command(argv, **fields))  # type: ignore[arg-type]
        await program.write(text)
        await program.end_input()
        return await finished(program)


async def finished(program: Program) -> tuple[int, str, str]:
    texts = {False: b"", True: b""}
    async with asyncio.timeout(15):
        while (output := await program.read()) is not None:
            texts[output.error] += output.data
        code = (await program.wait()).code
    await program.close()
    return code, texts[False].decode(), texts[True].decode()
