"""One agent with real containers: the unit as it is installed, in a node of a lab of its own, which is in no cluster.

The containers are busybox with an init, as in the lab's tests. There is no manager beside the agent, for placement would
promise no host so many CPUs.
"""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from gugus.agent.v1 import guest_pb2, volume_pb2

from bench.density.figures import Figures
from bench.density.measure import CALL_S, CLUSTER_ID, EPOCH, NODE, POOL, READY_S, Manager, manager, measure
from common.config import AGENT_PORT, DEFAULT_AGENT_CONFIG, DEFAULT_PKI_DIR, AgentConfig, dump
from lab import demo_guests
from lab.api import Lab

UNIT = "gugus-agent"
POOL_FOLDER = "/var/lib/gugus/pools/density"


async def measured(lab: Lab, count: int) -> Figures:
    """Measure with so many containers. Raises LabError, TimeoutError, grpc errors."""
    await asyncio.to_thread(lab.up, 1)
    image = next(s for s in demo_guests.place_images(lab.plan) if s.name == demo_guests.CONTAINER_IMAGE)
    async with manager(lab.plan.gateway) as boss:
        bed = await asyncio.to_thread(_Unit, lab, boss)
        pool = volume_pb2.PoolSpec(name=POOL, dir=volume_pb2.DirPool(path=POOL_FOLDER))
        disk = _Disks(str(image.path), image.sha256)
        return await measure(bed, boss, pool, [_spec(number) for number in range(count)], disk)


class _Unit:
    """The agent as systemd runs it in the lab's node."""

    def __init__(self, lab: Lab, boss: Manager) -> None:
        self._lab = lab
        address = lab.plan.node(NODE).address
        config = AgentConfig(
            name=NODE,
            cluster_id=CLUSTER_ID,
            address=address,
            managers=(f"{lab.plan.gateway}:{boss.port}",),
            hypervisors=("lxc",),
            watchdog_device="",
        )
        self.endpoint = f"{address}:{AGENT_PORT}"
        own = boss.for_node(address)
        self._write(f"{DEFAULT_PKI_DIR}/node.crt", own.chain_pem.decode())
        self._write(f"{DEFAULT_PKI_DIR}/node.key", own.key_pem.decode())
        self._write(f"{DEFAULT_PKI_DIR}/ca.crt", own.ca_pem.decode())
        self._write(str(DEFAULT_AGENT_CONFIG), dump(config))

    def start(self) -> None:
        """Start it."""
        self._lab.exec(NODE, ["systemctl", "start", "--no-block", UNIT], check=True)

    def stop(self) -> None:
        """Stop it; containers run on."""
        self._lab.exec(NODE, ["systemctl", "stop", UNIT], check=True)

    def pid(self) -> int:
        """Return its process within the node."""
        show = ["systemctl", "show", "--property=MainPID", "--value", UNIT]
        return int(self._lab.exec(NODE, show, check=True).stdout)

    def run(self, words: Sequence[str]) -> str:
        """Run a command in the node."""
        return self._lab.exec(NODE, words).stdout

    def _write(self, path: str, text: str) -> None:
        self._lab.exec(NODE, ["install", "-D", "-m", "600", "/dev/stdin", path], text=text, check=True)


class _Disks:
    """Makes root file systems from an image, which is imported once."""

    def __init__(self, source: str, sha256: str) -> None:
        self._source, self._sha256, self._there = source, sha256, False

    async def __call__(self, volumes: Any, spec: guest_pb2.GuestSpec) -> None:
        """Make the root of a guest."""
        if not self._there:
            await self._import(volumes)
            self._there = True
        request = volume_pb2.CreateVolumeRequest(
            epoch=EPOCH,
            pool=POOL,
            name=spec.disks[0].volume,
            format=volume_pb2.VOLUME_FORMAT_FILESYSTEM,
            source=demo_guests.CONTAINER_IMAGE,
        )
        await volumes.CreateVolume(request, timeout=CALL_S)

    async def _import(self, volumes: Any) -> None:
        request = volume_pb2.ImportVolumeRequest(
            epoch=EPOCH,
            pool=POOL,
            name=demo_guests.CONTAINER_IMAGE,
            source=self._source,
            sha256=self._sha256,
            task_id=str(uuid.uuid4()),
        )
        await volumes.ImportVolume(request, timeout=CALL_S)
        async with asyncio.timeout(READY_S):
            while not await _has(volumes, demo_guests.CONTAINER_IMAGE):  # noqa: ASYNC110 (in another process)
                await asyncio.sleep(0.1)


async def _has(volumes: Any, name: str) -> bool:
    answer = await volumes.ListVolumes(volume_pb2.ListVolumesRequest(pool=POOL), timeout=CALL_S)
    return any(volume.name == name for volume in answer.volumes)


def _spec(number: int) -> guest_pb2.GuestSpec:
    name = f"box-{number:02}"
    return guest_pb2.GuestSpec(
        name=name,
        id=100 + number,
        uid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        kind=guest_pb2.GUEST_KIND_CONTAINER,
        cpus=1,
        memory_bytes=demo_guests.CONTAINER_MEMORY_BYTES,
        disks=[guest_pb2.GuestDisk(name="disk0", pool=POOL, volume=f"{name}-disk0")],
    )
