"""A whole agent with simulated guests, and a manager that gives or withholds leases, over real TLS on loopback."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from gugus.agent.v1 import guest_pb2, guest_pb2_grpc, node_pb2_grpc, volume_pb2, volume_pb2_grpc
from gugus.cluster.v1 import heartbeat_pb2, heartbeat_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import SHUTDOWN_POLICY_UNSPECIFIED, ShutdownPolicy

from agent.compute.simulated import SimulatedHypervisor
from agent.daemon import Agent
from agent.storage import registry
from common.config import AgentConfig
from common.errors import precondition, unimplemented
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role, any_of
from common.identity.store import Pki
from common.rpc.channel import open_channel
from common.rpc.server import Service, start_server

CLUSTER_ID = "0123456789abcdef"


@pytest.fixture(scope="session")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(CLUSTER_ID, "test")


@pytest.fixture(scope="session")
def manager_credentials(ca: CertificateAuthority) -> Credentials:
    return ca.issue(Identity(CLUSTER_ID, Role.MANAGER, "m1"), addresses=["127.0.0.1"])


@dataclass
class Manager(heartbeat_pb2_grpc.HeartbeatServiceServicer):
    """Answers beats as it is told to."""

    lease_ms: int = 2000
    epoch: int = 1
    silent: bool = False
    withheld: int = 0
    """So many beats more are answered without a lease."""
    fenced: bool = False
    acting: str = ""
    shutdown: ShutdownPolicy.ValueType = SHUTDOWN_POLICY_UNSPECIFIED
    managers: list[str] = field(default_factory=list)
    streams: int = 0
    beats: list[heartbeat_pb2.HeartbeatRequest] = field(default_factory=list)
    port: int = 0

    async def Heartbeat(self, requests: Any, context: Any) -> AsyncIterator[heartbeat_pb2.HeartbeatResponse]:
        self.streams += 1
        if self.acting:
            raise precondition("NOT_ACTING", "another manager acts.", metadata={"acting": self.acting})
        async for beat in requests:
            self.beats.append(beat)
            if not self.silent:
                withheld, self.withheld = self.withheld > 0, max(0, self.withheld - 1)
                yield heartbeat_pb2.HeartbeatResponse(
                    sequence=beat.sequence,
                    lease_ms=0 if withheld else self.lease_ms,
                    epoch=self.epoch,
                    fenced=self.fenced,
                    managers=self.managers,
                    shutdown=self.shutdown,
                )

    async def RenewCertificate(self, request: Any, context: Any) -> heartbeat_pb2.RenewCertificateResponse:
        raise unimplemented("RENEWAL_UNSUPPORTED", "certificates of this test are not renewed.")

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def running_manager(credentials: Credentials, **settings: Any) -> AsyncIterator[Manager]:
    manager = Manager(**settings)
    service = Service(
        heartbeat_pb2_grpc.add_HeartbeatServiceServicer_to_server, manager, "gugus.cluster.v1.HeartbeatService"
    )
    server = await start_server([service], "127.0.0.1", 0, credentials)
    manager.port = server.port
    try:
        yield manager
    finally:
        await server.stop(0)


@pytest.fixture
async def manager(manager_credentials: Credentials) -> AsyncIterator[Manager]:
    async with running_manager(manager_credentials) as running:
        yield running


@dataclass
class Host:
    """One agent and a manager's channel to it."""

    agent: Agent
    channel: grpc.aio.Channel

    @property
    def guests(self) -> Any:
        return guest_pb2_grpc.GuestServiceStub(self.channel)

    @property
    def volumes(self) -> Any:
        return volume_pb2_grpc.VolumeServiceStub(self.channel)

    @property
    def node(self) -> Any:
        return node_pb2_grpc.NodeServiceStub(self.channel)

    def runs(self, name: str) -> bool:
        """Whether the guest runs for real, whatever the agent says."""
        return (self.agent.config.run_dir / "simulated" / f"{name}.json").exists()


class Pool:
    """A pool that has every volume: guests are simulated, nobody reads them."""

    abilities: frozenset[Any] = frozenset()

    def __init__(self, spec: volume_pb2.PoolSpec) -> None:
        self.spec = spec

    async def activate(self) -> None: ...

    async def status(self) -> volume_pb2.Pool:
        return volume_pb2.Pool(spec=self.spec, ready=True)

    async def path_of(self, name: str) -> Path:
        return Path("/nowhere") / name

    async def lease_of(self, name: str) -> None:
        """Simulated guests write nothing."""

    async def companion(self, name: str) -> Path:
        return Path("/nowhere") / f"{name}.machine"

    async def get_volume(self, name: str) -> volume_pb2.Volume:
        return volume_pb2.Volume(pool=self.spec.name, name=name, format=volume_pb2.VOLUME_FORMAT_RAW)


@pytest.fixture
def config(tmp_path: Path, ca: CertificateAuthority, manager: Manager) -> AgentConfig:
    credentials = ca.issue(Identity(CLUSTER_ID, Role.NODE, "n1"), addresses=["127.0.0.1"])
    Pki(tmp_path / "pki").save(Role.NODE, credentials)
    return AgentConfig(
        name="n1",
        cluster_id=CLUSTER_ID,
        address="127.0.0.1",
        port=0,
        metrics_port=0,
        migration_port=0,
        managers=(manager.endpoint,),
        hypervisors=("simulated",),
        watchdog_device="",
        watchdog_socket=tmp_path / "run" / "watchdog.sock",
        pki_dir=tmp_path / "pki",
        state_dir=tmp_path / "state",
        run_dir=tmp_path / "run",
    )


@asynccontextmanager
async def running_agent(
    config: AgentConfig, credentials: Credentials, hypervisor: SimulatedHypervisor | None = None
) -> AsyncIterator[Host]:
    agent = Agent(config, config.pki_dir.parent / "agent.yaml", hypervisors=(hypervisor,) if hypervisor else None)
    started = asyncio.Event()
    running = asyncio.create_task(agent.run(started=started.set))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({running, waiting}, return_when="FIRST_COMPLETED")
    if running.done():
        await running
    endpoint = f"127.0.0.1:{agent.ports[0]}"
    async with open_channel(endpoint, credentials, verify=any_of(Role.NODE, CLUSTER_ID)) as channel:
        yield Host(agent, channel)
    agent.stop()
    await asyncio.wait_for(running, 5)


@pytest.fixture
def fake_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "create", Pool)


@pytest.fixture
async def host(config: AgentConfig, manager_credentials: Credentials, fake_pools: None) -> AsyncIterator[Host]:
    async with running_agent(config, manager_credentials) as running:
        yield running


def spec(name: str = "web", *, ha: bool = True) -> guest_pb2.GuestSpec:
    return guest_pb2.GuestSpec(
        name=name,
        id=100,
        uid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        kind=guest_pb2.GUEST_KIND_VIRTUAL_MACHINE,
        cpus=1,
        memory_bytes=1 << 28,
        disks=[guest_pb2.GuestDisk(name="root", pool="local", volume=f"{name}-root")],
        ha=ha,
    )


async def eventually(condition: Any, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (conditions of another process have no event)
            await asyncio.sleep(0.02)


async def start_guest(host: Host, name: str = "web", *, ha: bool = True, generation: int = 1) -> guest_pb2.Guest:
    """Make pool and guest, and start it under a lease."""
    await eventually(lambda: host.agent.guard.remaining_ms > 0)
    pool = volume_pb2.PoolSpec(name="local", dir=volume_pb2.DirPool(path="/srv/local"))
    await host.volumes.EnsurePool(volume_pb2.EnsurePoolRequest(epoch=1, spec=pool))
    await host.guests.CreateGuest(guest_pb2.CreateGuestRequest(epoch=1, spec=spec(name, ha=ha)))
    grant = guest_pb2.Grant(generation=generation)
    guest: guest_pb2.Guest = await host.guests.StartGuest(guest_pb2.StartGuestRequest(epoch=1, name=name, grant=grant))
    return guest
