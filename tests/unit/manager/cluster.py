"""A whole cluster in one process for tests: real managers (Raft, store, controllers) and real agents with simulated guests, over TLS.

Guests are files in their nodes' run folders, and the disks of guests are entries of `storage.Storage`.
"""

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE, GUEST_STATE_UNSPECIFIED, GuestState
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.event_pb2 import Event
from gugus.cluster.v1.guest_pb2 import POWER_ON, DiskSpec, GuestSpec, Power
from gugus.cluster.v1.node_pb2 import NODE_STATE_JOINING, NODE_STATE_ONLINE, Node
from gugus.cluster.v1.task_pb2 import Task

from agent.compute.hypervisor import Hypervisor
from agent.compute.simulated import DRIVER
from agent.daemon import Agent
from client.config import ClientConfig
from client.sdk import Gugus
from client.tasks import check
from common.config import AGENT_PORT, AgentConfig, ManagerConfig, Voter
from common.identity.ca import CertificateAuthority
from common.identity.names import Identity, Role, new_cluster_id
from common.identity.store import Pki
from manager.controllers.context import Context
from manager.daemon import Manager
from manager.store import Store
from manager.store.kinds import T, new
from manager.tasks import ENDED

_networks = itertools.count(1)
_OF_THIS_PROCESS = 100 + os.getpid() % 150
"""Second byte of its first loopback addresses, for tests may run in several processes at once."""
_A_BYTE = 256

CALL_TIMEOUT_S = 15.0
PATIENCE_S = 20.0
"""Longest wait for what is to happen by itself; far above what it takes, for the machine may be busy."""

LOOK_S = 0.02

POOL = PoolSpec(name="shared", dir=DirPool(path="/srv/shared", shared=True))
IMAGE = "debian"


class Cluster:
    """`voters` managers on the nodes n1, n2, ...; the one that acts first founds its node, `add_node` adds others.

    Leaving it as a context stops everything.
    Every node has a loopback address of its own, so that all of them use the ports that daemons use.
    """

    def __init__(self, folder: Path, voters: int = 1) -> None:
        self.folder = folder
        self.cluster_id = new_cluster_id()
        self.authority = CertificateAuthority.create(self.cluster_id, "test")
        self.voters = tuple(f"n{index}" for index in range(1, voters + 1))
        self.managers: dict[str, Manager] = {}
        self.agents: dict[str, Agent] = {}
        number = next(_networks)
        self._prefix = f"127.{_OF_THIS_PROCESS + number // _A_BYTE}.{number % _A_BYTE}"
        self._managing: dict[str, asyncio.Task[None]] = {}
        self._serving: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    # What there is

    def address(self, node: str) -> str:
        """Return the address of a node."""
        return f"{self._prefix}.{node.removeprefix('n')}"

    def endpoint(self, manager: str = "n1") -> str:
        """Return where a manager serves its API."""
        return f"{self.address(manager)}:7443"

    def pki(self, name: str, role: Role) -> Pki:
        """Return the folder of a member's keys, with credentials for a role in it."""
        pki = Pki(self.folder / name / "pki")
        pki.folder.mkdir(parents=True, exist_ok=True)
        if not pki.has(role):
            pki.save_ca_cert(self.authority.cert_pem)
            addresses = ["127.0.0.1"] if role is Role.OPERATOR else [self.address(name)]
            pki.save(role, self.authority.issue(Identity(self.cluster_id, role, name), addresses=addresses))
        return pki

    def manager_config(self, name: str) -> ManagerConfig:
        """Return the configuration of a founding manager."""
        pki = self.pki(name, Role.MANAGER)
        pki.save_ca(self.authority)
        self.pki(name, Role.NODE)  # every manager's host is a node, too
        state_dir = self.folder / name / "manager"
        state_dir.mkdir(parents=True, exist_ok=True)
        return ManagerConfig(
            name=name,
            cluster_id=self.cluster_id,
            cluster_name="test",
            address=self.address(name),
            voters=tuple(Voter(name=voter, address=self.address(voter)) for voter in self.voters),
            bootstrap=True,
            pki_dir=pki.folder,
            state_dir=state_dir,
            run_dir=self.folder / name / "run",
        )

    def agent_config(self, name: str) -> AgentConfig:
        """Return the configuration of a node's agent."""
        run = self.folder / name / "run"
        return AgentConfig(
            name=name,
            cluster_id=self.cluster_id,
            address=self.address(name),
            managers=tuple(self.endpoint(voter) for voter in self.voters),
            hypervisors=(DRIVER,),
            watchdog_device="",
            watchdog_socket=run / "watchdog.sock",
            pki_dir=self.pki(name, Role.NODE).folder,
            state_dir=self.folder / name / "agent",
            run_dir=run,
        )

    def client(self, *managers: str, operator: str = "operator") -> Gugus:
        """Return the SDK as an operator who knows some managers (none: all)."""
        pki = self.pki(operator, Role.OPERATOR)
        return Gugus.connect(
            ClientConfig(
                cluster_name="test",
                cluster_id=self.cluster_id,
                endpoints=tuple(self.endpoint(manager) for manager in managers or self.voters),
                ca_crt=pki.ca_crt,
                operator_crt=pki.crt(Role.OPERATOR),
                operator_key=pki.key(Role.OPERATOR),
            ),
            timeout_s=CALL_TIMEOUT_S,
        )

    @property
    def acting(self) -> str:
        """Name of the manager that acts, "" while none does."""
        return next((name for name, manager in self.managers.items() if _acts(manager)), "")

    @property
    def store(self) -> Store:
        """The state as the acting manager has it."""
        return self._context.store

    @property
    def _context(self) -> Context:
        return self.managers[self.acting]._context

    def peek(self, kind: type[T], name: str) -> T | None:
        """Return an object as the acting manager has it, None while there is none or nobody acts."""
        return self.store.peek(kind, name) if self.acting else None

    def has_ended(self, task: Task) -> bool:
        """Return whether a task has ended, as far as the acting manager knows."""
        found = self.peek(Task, task.meta.name)
        return found is not None and found.state in ENDED

    async def ended(self, task: Task) -> Task:
        """Return a task once it has ended, looked up in the state: no call has to survive what happens to managers."""
        await self.eventually(lambda: self.has_ended(task))
        return self.store.peek(Task, task.meta.name) or task

    def events(self) -> list[Event]:
        """Return what happened, oldest first."""
        return self.store.peek_all(Event)

    def reported(self, guest: str, node: str = "n1") -> GuestState.ValueType:
        """Return what the last beat of a node says of a guest."""
        report = self._context.beats.of(node).guests.get(guest)
        return report.state if report else GUEST_STATE_UNSPECIFIED

    def record(self, node: str, guest: str) -> Path:
        """Return the file that is there for as long as a guest runs on a node."""
        return self.folder / node / "run" / DRIVER / f"{guest}.json"

    def life(self, node: str, guest: str) -> int:
        """Return when a guest that runs on a node was started: another start is another life, a change of its settings is not."""
        return int(json.loads(self.record(node, guest).read_text())["since_boottime_ns"])

    # What happens

    def start_manager(self, name: str = "n1") -> None:
        """Start a manager in this loop."""
        self.managers[name] = Manager(self.manager_config(name))
        self._managing[name] = asyncio.create_task(self.managers[name].run())

    async def stop_manager(self, name: str = "n1") -> None:
        """Stop a manager; its state stays on its disk."""
        task = self._managing.pop(name)
        del self.managers[name]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await _in_time(task, f"manager {name}")

    def start_agent(self, name: str = "n1", *hypervisors: Hypervisor) -> None:
        """Start a node's agent in this loop."""
        agent = Agent(self.agent_config(name), self.folder / name / "agent.yaml", hypervisors=hypervisors or None)
        self.agents[name] = agent
        self._serving[name] = asyncio.create_task(agent.run())

    async def stop_agent(self, name: str = "n1") -> None:
        """Stop a node's agent; its guests run on."""
        self.agents.pop(name).stop()
        await _in_time(self._serving.pop(name), f"agent {name}")

    async def stop(self) -> None:
        """Stop everything."""
        await asyncio.gather(*map(self.stop_agent, list(self.agents)), *map(self.stop_manager, list(self.managers)))

    async def add_node(self, name: str, *hypervisors: Hypervisor) -> None:
        """Put another node into the state, as its enrolment does, start its agent, and return when it is online."""
        node = new(Node, name)
        node.spec.address, node.spec.agent_port = self.address(name), AGENT_PORT
        node.status.state = NODE_STATE_JOINING
        await self.store.create(node)
        self.start_agent(name, *hypervisors)
        await self.online(name)

    async def make_image(self, gugus: Gugus) -> None:
        """Make the pool and the image that `guest_spec` asks for."""
        await gugus.pools.create(POOL)
        check(await gugus.tasks.wait(await gugus.pools.import_image(POOL.name, IMAGE, "/debian.qcow2")))

    async def online(self, *nodes: str) -> None:
        """Return when nodes hold their leases."""
        await self.eventually(lambda: self.acting and all(map(self._is_online, nodes or ["n1"])))

    async def beats(self, count: int, node: str = "n1") -> None:
        """Return after so many more beats of a node, each of which the controllers had the time to act upon."""
        for _ in range(count):
            heard_ns = self._context.beats.of(node).heard_ns
            await self.eventually(lambda: self._context.beats.of(node).heard_ns != heard_ns)  # noqa: B023

    async def eventually(self, condition: Callable[[], object]) -> None:
        """Return when something holds. Raises what a daemon that fell meanwhile raised."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # conditions of several daemons have no event
                for daemon in (*self._managing.values(), *self._serving.values()):
                    if daemon.done():
                        daemon.result()
                await asyncio.sleep(LOOK_S)

    def _is_online(self, node: str) -> bool:
        stored = self.store.peek(Node, node)
        return stored is not None and stored.status.state == NODE_STATE_ONLINE


def _acts(manager: Manager) -> bool:
    return hasattr(manager, "_context") and manager._context.acting.valid


async def _in_time(task: asyncio.Task[None], daemon: str) -> None:
    """Wait for a daemon that was asked to end. Raises what it raised, and AssertionError when it does not end."""
    ended, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
    task.cancel()
    assert ended, f"{daemon} does not stop"
    task.result()


def guest_spec(power: Power.ValueType = POWER_ON, disks: int = 1) -> GuestSpec:
    """Return a small guest's spec."""
    return GuestSpec(
        kind=GUEST_KIND_VIRTUAL_MACHINE,
        memory_bytes=16 << 20,
        disks=[DiskSpec(pool=POOL.name, image=IMAGE)] * disks,
        power=power,
    )


@contextlib.asynccontextmanager
async def running(folder: Path, *hypervisors: Hypervisor) -> AsyncIterator[Cluster]:
    """Run a cluster of one manager and one node that is online, and stop it."""
    async with Cluster(folder) as cluster:
        cluster.start_manager()
        await cluster.eventually(lambda: cluster.peek(Node, "n1"))
        cluster.start_agent("n1", *hypervisors)
        await cluster.online()
        yield cluster
