"""A container that goes from agent to agent as it runs, asked for as a manager asks: two agents, their tunnel, and CRIU."""

import asyncio
import shutil
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from gugus.agent.v1 import (
    guest_pb2,
    guest_pb2_grpc,
    migration_pb2,
    migration_pb2_grpc,
    network_pb2,
    task_pb2,
    task_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)
from gugus.agent.v1 import network_pb2_grpc as network_grpc
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_MODE_CHECKPOINT,
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_RUNNING,
)

from agent.compute import idmap
from agent.compute.hypervisor import Progress
from agent.daemon import Agent
from agent.migration import carriers
from common.config import AgentConfig
from common.errors import GugusError, from_status, precondition
from common.identity.ca import CertificateAuthority
from common.identity.names import Identity, Role, any_of
from common.identity.store import Pki
from common.rpc.channel import open_channel
from tests.kernel.inside.conftest import run
from tests.unit.lxc.containers import make_rootfs

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("criu") is None, reason="not installed: criu"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="not installed: rsync"),
]

CLUSTER = "0123456789abcdef"
BRIDGE, ADDRESS, INSIDE, PORT = "br-live", "10.99.1.1", "10.99.1.2", 9998
INITTAB = f"::sysinit:/sbin/ip addr add {INSIDE}/24 dev eth0\n::once:/bin/sh /etc/count\n::shutdown:/bin/true\n"
COUNT = f"(i=0; while true; do i=$((i+1)); echo $i; sleep 0.2; done) | nc {ADDRESS} {PORT}\n"
PATIENCE_S = 120


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(CLUSTER, "test")


@pytest.fixture
def folder(disk: Path) -> Iterator[Path]:
    """A folder that containers may reach, on a disk that can translate ids."""
    with tempfile.TemporaryDirectory(dir=disk) as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Node:
    """An agent, as its manager talks to it."""

    def __init__(self, agent: Agent, channel: grpc.aio.Channel, folder: Path) -> None:
        self.agent, self.folder = agent, folder
        self.guests = guest_pb2_grpc.GuestServiceStub(channel)
        self.migrations = migration_pb2_grpc.MigrationServiceStub(channel)
        self.tasks = task_pb2_grpc.TaskServiceStub(channel)
        self.volumes = volume_pb2_grpc.VolumeServiceStub(channel)
        self.networks = network_grpc.NetworkServiceStub(channel)

    async def state(self) -> guest_pb2.GuestState.ValueType:
        found = self.agent.guests.get("c1")
        return found.state

    def images(self) -> list[Path]:
        return list((self.folder / "state/migrations").glob("*-images"))


@asynccontextmanager
async def running(ca: CertificateAuthority, folder: Path, name: str) -> AsyncIterator[Node]:
    """Run an agent with a pool and a network."""
    place = folder / name
    (place / "lxc").mkdir(parents=True)
    Pki(place / "pki").save(Role.NODE, ca.issue(Identity(CLUSTER, Role.NODE, name), addresses=["127.0.0.1"]))
    config = AgentConfig(
        name=name,
        cluster_id=CLUSTER,
        address="127.0.0.1",
        port=0,
        metrics_port=0,
        migration_port=0,
        hypervisors=("lxc",),
        watchdog_device="",
        watchdog_socket=place / "run/watchdog.sock",
        lxc_path=place / "lxc",
        pki_dir=place / "pki",
        state_dir=place / "state",
        run_dir=place / "run",
    )
    agent, started = Agent(config, place / "agent.yaml"), asyncio.Event()
    work = asyncio.create_task(agent.run(started=started.set))
    await asyncio.wait({work, asyncio.create_task(started.wait())}, return_when="FIRST_COMPLETED")
    if work.done():
        await work
    manager = ca.issue(Identity(CLUSTER, Role.MANAGER, "m1"), addresses=["127.0.0.1"])
    async with open_channel(f"127.0.0.1:{agent.ports[0]}", manager, verify=any_of(Role.NODE, CLUSTER)) as channel:
        node = Node(agent, channel, place)
        pool = volume_pb2.PoolSpec(name="p", dir=volume_pb2.DirPool(path=str(place / "pool")))
        await node.volumes.EnsurePool(volume_pb2.EnsurePoolRequest(epoch=1, spec=pool))
        bridge = network_pb2.BridgeNetwork(bridge=BRIDGE, address=f"{ADDRESS}/24")
        network = network_pb2.NetworkSpec(name="lan", bridge=bridge)
        await node.networks.EnsureNetwork(network_pb2.EnsureNetworkRequest(epoch=1, spec=network))
        yield node
        await agent.observer.emergency_kill(["c1"])
    agent.stop()
    async with asyncio.timeout(30):
        await work


class Listener:
    """What the container says over TCP, and how often it has connected."""

    def __init__(self) -> None:
        self.last, self.connections = 0, 0
        self._heard = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while line := await reader.readline():
            self.last = int(line)
            self._heard.set()

    async def more(self, count: int = 2) -> int:
        """Wait until it has said so much more; return the number."""
        wanted = self.last + count
        async with asyncio.timeout(PATIENCE_S):
            while self.last < wanted:
                self._heard.clear()
                await self._heard.wait()
        return self.last


class Site:
    """Two nodes, a container on the first, and who listens to it."""

    def __init__(self, here: Node, there: Node, listener: Listener) -> None:
        self.here, self.there, self.listener = here, there, listener
        self.spec = guest_pb2.GuestSpec(
            name="c1",
            id=100,
            uid=str(uuid.uuid4()),
            kind=guest_pb2.GUEST_KIND_CONTAINER,
            cpus=1,
            memory_bytes=64 << 20,
            disks=[guest_pb2.GuestDisk(name="root", pool="p", volume="c1-root")],
            nics=[guest_pb2.GuestNic(name="eth0", network="lan", mac="02:00:00:00:98:02")],
        )
        self.spec.container.features.checkpoint = True
        self.volume = migration_pb2.MovingVolume(
            disk="root", pool="p", volume="c1-root", format=volume_pb2.VOLUME_FORMAT_FILESYSTEM
        )

    async def start(self) -> None:
        """Make the container and have it say its first numbers."""
        wanted = volume_pb2.CreateVolumeRequest(epoch=1, pool="p", name="c1-root", format=self.volume.format)
        await self.here.volumes.CreateVolume(wanted)
        path = await self.here.agent.pools.get("p").path_of("c1-root")
        owner = path.stat().st_uid
        made = make_rootfs(self.here.folder, owner)
        (made / "etc/inittab").write_text(INITTAB)
        (made / "etc/count").write_text(COUNT)
        await asyncio.to_thread(run, "cp", "-a", f"{made}/.", str(path))
        await self.here.guests.CreateGuest(guest_pb2.CreateGuestRequest(epoch=1, spec=self.spec))
        await self.grant(self.here, 1)
        await self.listener.more()

    async def grant(self, node: Node, generation: int) -> None:
        """Start it under a generation."""
        grant = guest_pb2.Grant(generation=generation)
        await node.guests.StartGuest(guest_pb2.StartGuestRequest(epoch=1, name="c1", grant=grant))

    async def check(self) -> list[str]:
        """Return the reasons of what is in the way."""
        survey = await self.here.migrations.SurveyGuest(migration_pb2.SurveyGuestRequest(name="c1"))
        request = migration_pb2.CheckArrivalRequest(
            spec=self.spec, survey=survey, mode=MIGRATION_MODE_CHECKPOINT, copied_disks=["root"]
        )
        answer = await self.there.migrations.CheckArrival(request)
        return [one.reason for one in (*survey.container.obstacles, *answer.obstacles)]

    async def migrate(self) -> migration_pb2.MigrationReport:
        """Have it go over. Raises what its source says."""
        target = await self.there.migrations.PrepareMigration(
            migration_pb2.PrepareMigrationRequest(
                epoch=1,
                migration="m1",
                source="n1",
                spec=self.spec,
                grant=guest_pb2.Grant(generation=2),
                mode=MIGRATION_MODE_CHECKPOINT,
                volumes=[self.volume],
                run=True,
            )
        )
        await self.here.migrations.MigrateGuest(
            migration_pb2.MigrateGuestRequest(
                epoch=1,
                migration="m1",
                name="c1",
                grant=guest_pb2.Grant(generation=1),
                target=target,
                target_grant=guest_pb2.Grant(generation=2),
                mode=MIGRATION_MODE_CHECKPOINT,
                volumes=[self.volume],
                task_id="t1",
            )
        )
        async with asyncio.timeout(PATIENCE_S):
            while True:
                task = await self.here.tasks.GetTask(task_pb2.GetTaskRequest(id="t1", wait_ms=5000))
                if task.state == task_pb2.TASK_STATE_FAILED:
                    raise from_status(task.error)
                if task.state == task_pb2.TASK_STATE_SUCCEEDED:
                    return migration_pb2.MigrationReport.FromString(task.result)

    async def presence(self, node: Node) -> "migration_pb2.MigrationPresence.ValueType":
        """Return what a node says that it has."""
        asked = migration_pb2.InspectMigrationRequest(migration="m1", name="c1")
        told: migration_pb2.MigrationReport = await node.migrations.InspectMigration(asked)
        return told.presence


@pytest.fixture
async def site(ca: CertificateAuthority, folder: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(running(ca, folder, "n1"))
        there = await stack.enter_async_context(running(ca, folder, "n2"))
        listener = Listener()
        server = await asyncio.start_server(listener.serve, ADDRESS, PORT, family=socket.AF_INET)
        stack.callback(server.close)
        made = Site(here, there, listener)
        await made.start()
        yield made
    await asyncio.to_thread(run, "ip", "link", "del", BRIDGE)


async def test_it_goes_over_with_its_memory_and_its_connection(site: Site) -> None:
    assert await site.check() == []
    before = await site.listener.more()
    report = await site.migrate()
    assert report.restarted == ""
    assert report.downtime_ms > 0
    assert await site.listener.more() >= before + 2
    assert site.listener.connections == 1  # the same program, over the same connection
    assert await site.there.state() == guest_pb2.GUEST_STATE_RUNNING
    assert await site.presence(site.there) == MIGRATION_PRESENCE_RUNNING
    assert await site.presence(site.here) == MIGRATION_PRESENCE_ABSENT
    with pytest.raises(Exception, match="is old"):
        await site.grant(site.here, 1)
    assert await site.here.state() == guest_pb2.GUEST_STATE_STOPPED
    assert site.there.images() == []
    for node in (site.here, site.there):
        await node.migrations.ForgetMigration(migration_pb2.ForgetMigrationRequest(epoch=1, migration="m1"))
        assert node.images() == []


async def test_one_that_cannot_be_restored_is_started_anew_there(site: Site) -> None:
    driver = site.there.agent.observer.hypervisor_for(guest_pb2.GUEST_KIND_CONTAINER)
    own = idmap.own(site.spec.id)
    assert own is not None
    driver._life._reserved.add(own.base)  # type: ignore[attr-defined]  # as if another container ran there with its ids
    report = await site.migrate()
    assert "ids" in report.restarted
    assert await site.there.state() == guest_pb2.GUEST_STATE_RUNNING
    assert await site.here.state() == guest_pb2.GUEST_STATE_STOPPED
    await site.listener.more()
    assert site.listener.connections == 2


async def test_one_that_does_not_get_over_goes_on_where_it_was(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await site.listener.more()
    send = carriers.send_tree

    async def lost(path: Path, door: Path, progress: Progress, *, running: bool) -> None:
        if path.name.endswith("-images"):
            raise precondition("COPY_FAILED", "the network is gone.")
        await send(path, door, progress, running=running)

    monkeypatch.setattr(carriers, "send_tree", lost)
    with pytest.raises(GugusError) as told:
        await site.migrate()
    assert told.value.reason == "COPY_FAILED"
    assert await site.listener.more() >= before + 2
    assert site.listener.connections == 1
    assert await site.here.state() == guest_pb2.GUEST_STATE_RUNNING
    assert await site.there.state() == guest_pb2.GUEST_STATE_STOPPED


async def test_one_that_criu_refuses_runs_on_where_it_is(site: Site) -> None:
    before = await site.listener.more()
    driver = site.here.agent.observer.hypervisor_for(guest_pb2.GUEST_KIND_CONTAINER)
    seen = await driver.observe("c1")
    assert seen is not None
    inside = ["nsenter", f"--target={seen.pid}", "--all", "unshare", "--uts", "sh", "-c", "sleep 1000 &"]
    await asyncio.to_thread(run, *inside)
    assert await site.check() == ["NESTED_NAMESPACE"]
    with pytest.raises(GugusError) as told:
        await site.migrate()
    assert told.value.reason == "CHECKPOINT_FAILED"
    assert await site.listener.more() >= before + 2
    assert site.listener.connections == 1
    assert await site.here.state() == guest_pb2.GUEST_STATE_RUNNING
