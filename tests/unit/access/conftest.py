"""A manager's access service and gateway, and an agent's, over real TLS; the state and the guests are stand-ins."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from gugus.agent.v1 import access_pb2_grpc as agent_access_grpc
from gugus.agent.v1 import guest_pb2 as agent_guest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_VIRTUAL_MACHINE
from gugus.cluster.v1 import access_pb2_grpc, guest_pb2, guest_pb2_grpc
from gugus.cluster.v1.event_pb2 import Event
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from agent.observer import Seen
from agent.services.access import AccessService as AgentAccess
from client.config import for_pki
from client.sdk import Gugus
from common.errors import not_found, precondition
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.identity.store import Pki
from common.rpc.interceptors import only
from common.rpc.server import Service, start_server
from manager.agents import Agents
from manager.gateway.passage import Passage
from manager.gateway.server import Gateway
from manager.gateway.tickets import Tickets
from manager.services.access import AccessService
from manager.services.authorise import authorise
from manager.store import Txn
from manager.store.kinds import decode
from tests.unit.access.driver import Enterable, HostAccess

CLUSTER_ID = "0123456789abcdef"
EPOCH = 7


@dataclass
class State:
    """What of the manager's state is asked for here."""

    objects: dict[tuple[type, str], Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    down: bool = False

    def peek(self, kind: type, name: str) -> Any:
        return self.objects.get((kind, name))

    async def require(self, kind: type, name: str) -> Any:
        if (kind, name) not in self.objects:
            raise not_found(kind.__name__.lower(), name)
        return self.objects[kind, name]

    async def txn(self, txn: Txn) -> None:
        if self.down:
            raise precondition("NO_QUORUM", "the state cannot be changed now.")
        self.events += [decode(Event, put.value, 1) for put in txn.message.puts if put.key.startswith("event/")]


@dataclass
class Clock:
    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@dataclass
class House:
    """All of it. guests: those of the agent, which may be stopped."""

    state: State
    acting: SimpleNamespace
    tickets: Tickets
    gateway: Gateway
    gugus: Gugus
    inside: HostAccess
    clock: Clock
    ca: CertificateAuthority
    agent_port: int
    guests: dict[str, agent_guest.Guest]
    agent: AgentAccess

    @property
    def events(self) -> list[tuple[str, str, str]]:
        return [(event.about, event.reason, event.message) for event in self.state.events]


class Guests(guest_pb2_grpc.GuestServiceServicer):
    def __init__(self, state: State) -> None:
        self._state = state

    async def GetGuest(self, request: guest_pb2.GetGuestRequest, context: Any) -> Guest:
        found: Guest = await self._state.require(Guest, request.name)
        return found


def _guests(state: State) -> Any:
    return type("GuestsAlone", (Guests,), {"__abstractmethods__": frozenset()})(state)


@pytest.fixture(scope="session")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(CLUSTER_ID, "test")


def credentials(ca: CertificateAuthority, role: Role, name: str) -> Credentials:
    return ca.issue(Identity(CLUSTER_ID, role, name), addresses=["127.0.0.1"])


def put_guest(house: State, guests: dict[str, agent_guest.Guest], name: str, kind: Any) -> None:
    guest = Guest()
    guest.meta.name, guest.meta.uid = name, f"uid-{name}"
    guest.spec.kind, guest.status.phase, guest.status.node = kind, GUEST_PHASE_RUNNING, "n1"
    house.objects[Guest, name] = guest
    spec = agent_guest.GuestSpec(name=name, kind=kind)
    guests[name] = agent_guest.Guest(spec=spec, state=agent_guest.GUEST_STATE_RUNNING)


async def admit(epoch: int) -> None:
    if epoch < EPOCH:
        raise precondition("STALE_EPOCH", "the epoch is over.")


@pytest.fixture
async def house(tmp_path: Path, ca: CertificateAuthority) -> AsyncIterator[House]:
    state, clock = State(), Clock()
    guests: dict[str, agent_guest.Guest] = {}
    put_guest(state, guests, "web", GUEST_KIND_VIRTUAL_MACHINE)
    put_guest(state, guests, "db", GUEST_KIND_CONTAINER)
    hypervisor = Enterable(tmp_path / "node")

    def get(name: str) -> agent_guest.Guest:
        if name not in guests:
            raise not_found("guest", name)
        return guests[name]

    seen = {name: Seen(hypervisor, None) for name in guests}  # type: ignore[arg-type]
    agent = AgentAccess(SimpleNamespace(get=get), SimpleNamespace(seen=seen), SimpleNamespace(admit=admit))  # type: ignore[arg-type]
    add: Any = agent_access_grpc.add_AccessServiceServicer_to_server
    node_server = await start_server(
        [Service(add, agent, "gugus.agent.v1.AccessService")], "127.0.0.1", 0,
        credentials(ca, Role.NODE, "n1"), authorise=only(Role.MANAGER),
    )  # fmt: skip
    node = Node()
    node.meta.name, node.spec.address, node.spec.agent_port = "n1", "127.0.0.1", node_server.port
    node.status.state = NODE_STATE_ONLINE
    state.objects[Node, "n1"] = node

    mine = credentials(ca, Role.MANAGER, "m1")
    acting = SimpleNamespace(valid=True, epoch=EPOCH)
    agents, tickets = Agents(mine), Tickets(clock)
    passage = Passage(SimpleNamespace(store=state, acting=acting), agents)  # type: ignore[arg-type]
    gateway = Gateway(passage, tickets, mine)
    await gateway.start("127.0.0.1", 0)
    service = AccessService(passage, tickets, lambda: f"wss://127.0.0.1:{gateway.port}")
    api = await start_server(
        [
            Service(access_pb2_grpc.add_AccessServiceServicer_to_server, service, "gugus.cluster.v1.AccessService"),
            Service(guest_pb2_grpc.add_GuestServiceServicer_to_server, _guests(state), "gugus.cluster.v1.GuestService"),
        ],
        "127.0.0.1", 0, mine, authorise=authorise,
    )  # fmt: skip
    pki = Pki(tmp_path / "pki")
    pki.save(Role.OPERATOR, credentials(ca, Role.OPERATOR, "alice"))
    config = for_pki("test", CLUSTER_ID, (f"127.0.0.1:{api.port}",), pki.folder)
    async with Gugus.connect(config, timeout_s=5.0) as gugus:
        yield House(
            state, acting, tickets, gateway, gugus, hypervisor.inside, clock, ca, node_server.port, guests, agent
        )
    await gateway.stop()
    await api.stop(0)
    await agents.close()
    await node_server.stop(0)


@pytest.fixture
async def to_agent(house: House, ca: CertificateAuthority) -> AsyncIterator[Any]:
    """A manager's own calls to the agent."""
    from common.rpc.channel import open_channel

    verify = Identity(CLUSTER_ID, Role.NODE, "n1").dns_name
    endpoint = f"127.0.0.1:{house.agent_port}"
    channel: grpc.aio.Channel
    async with open_channel(endpoint, credentials(ca, Role.MANAGER, "m1"), verify=verify) as channel:
        yield agent_access_grpc.AccessServiceStub(channel)


async def eventually(condition: Any, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (conditions of several servers have no event)
            await asyncio.sleep(0.01)
