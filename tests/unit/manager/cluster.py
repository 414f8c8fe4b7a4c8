"""A whole cluster in one process for tests: one real manager (Raft, store, controllers) and real agents with simulated guests, over TLS."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

from agent.daemon import Agent
from client.config import ClientConfig
from client.sdk import Gugus
from common.config import AgentConfig, ManagerConfig, Voter
from common.identity import CertificateAuthority, Identity, Pki, Role, new_cluster_id
from manager.daemon import Manager

_networks = itertools.count(1)

ENDPOINT_TIMEOUT_S = 15.0


class Cluster:
    """One manager on node n1; agents are added by enrolment-like shortcuts with the CA at hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster_id = new_cluster_id()
        self.authority = CertificateAuthority.create(self.cluster_id, "test")
        self._prefix = f"127.77.{next(_networks)}"
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.agents: dict[str, Agent] = {}
        self.manager: Manager | None = None

    def address(self, index: int) -> str:
        """Return the loopback address of node n<index>."""
        return f"{self._prefix}.{index}"

    def pki(self, name: str, role: Role) -> Pki:
        """Return the folder of a node's keys, with credentials for a role in it."""
        pki = Pki(self.folder / name / "pki")
        pki.folder.mkdir(parents=True, exist_ok=True)
        if not pki.has(role):
            pki.save_ca_cert(self.authority.cert_pem)
            identity = Identity(self.cluster_id, role, name)
            address = self.address(int(name[1:])) if name[1:].isdecimal() else "127.0.0.1"
            pki.save(role, self.authority.issue(identity, addresses=[address]))
        return pki

    def manager_config(self) -> ManagerConfig:
        """Return the configuration of the manager on n1."""
        pki = self.pki("n1", Role.MANAGER)
        pki.save_ca(self.authority)
        return ManagerConfig(
            name="n1",
            cluster_id=self.cluster_id,
            cluster_name="test",
            address=self.address(1),
            voters=(Voter(name="n1", address=self.address(1)),),
            bootstrap=True,
            pki_dir=pki.folder,
            state_dir=self.folder / "n1" / "manager",
            run_dir=self.folder / "n1" / "run",
        )

    def agent_config(self, name: str) -> AgentConfig:
        """Return the configuration of a node's agent."""
        run = self.folder / name / "run"
        return AgentConfig(
            name=name,
            cluster_id=self.cluster_id,
            address=self.address(int(name[1:])),
            managers=(f"{self.address(1)}:7443",),
            hypervisors=("simulated",),
            watchdog_device="",
            watchdog_socket=run / "watchdog.sock",
            pki_dir=self.pki(name, Role.NODE).folder,
            state_dir=self.folder / name / "agent",
            run_dir=run,
        )

    def start_manager(self) -> None:
        """Start the manager in this loop."""
        config = self.manager_config()
        config.state_dir.mkdir(parents=True, exist_ok=True)
        self.manager = Manager(config)
        self._tasks["manager"] = asyncio.create_task(self.manager.run())

    def start_agent(self, name: str) -> None:
        """Start a node's agent in this loop."""
        config = self.agent_config(name)
        self.agents[name] = Agent(config, self.folder / name / "agent.yaml")
        self._tasks[name] = asyncio.create_task(self.agents[name].run())

    async def stop(self, name: str) -> None:
        """Stop the manager or a node's agent."""
        task = self._tasks.pop(name)
        if agent := self.agents.pop(name, None):
            agent.stop()
        else:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def stop_all(self) -> None:
        """Stop everything."""
        for name in list(self._tasks):
            await self.stop(name)

    def client(self) -> Gugus:
        """Return the SDK as an operator."""
        pki = self.pki("operator", Role.OPERATOR)
        return Gugus.connect(
            ClientConfig(
                cluster_name="test",
                cluster_id=self.cluster_id,
                endpoints=(f"{self.address(1)}:7443",),
                ca_crt=pki.ca_crt,
                operator_crt=pki.crt(Role.OPERATOR),
                operator_key=pki.key(Role.OPERATOR),
            ),
            timeout_s=ENDPOINT_TIMEOUT_S,
        )


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Cluster]:
    """Run a cluster of one manager and one node, and stop it."""
    cluster = Cluster(folder)
    cluster.start_manager()
    cluster.start_agent("n1")
    try:
        yield cluster
    finally:
        await cluster.stop_all()
