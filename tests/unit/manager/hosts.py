"""Hosts that become managers and cease to be: what systemd does where the real daemons run, beside a cluster in one process."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from gugus.cluster.v1.node_pb2 import Node

from agent.managers import ManagerFiles
from common.config import ManagerConfig, dump, load_manager
from manager.consensus import Leadership
from tests.unit.manager.cluster import Cluster


class Hosts(Cluster):
    """A cluster whose managers start and stop as their hosts' `manager.yaml` comes and goes."""

    def found(self) -> None:
        """Make the first host a founding manager's."""
        file = self._file("n1")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dump(super().manager_config("n1")))

    def manager_config(self, name: str) -> ManagerConfig:
        return load_manager(self._file(name))

    def view(self, name: str) -> Leadership:
        """Return what a manager's consensus tells."""
        return self.managers[name]._consensus.leadership()

    def in_force(self, name: str = "") -> list[str]:
        """Return the voters as a manager (the acting one) knows them."""
        return [voter.name for voter in self.view(name or self.acting).voters]

    def node(self, name: str) -> Node:
        """Return a node as it is stored."""
        node = self.peek(Node, name)
        assert node is not None
        return node

    @contextlib.contextmanager
    def systemd(self) -> Iterator[None]:
        """Start a manager when its host's agent has written its files, and stop it before they are removed."""
        activate, deactivate = ManagerFiles.activate, ManagerFiles.deactivate

        async def started(files: ManagerFiles, request: Any) -> None:
            await activate(files, request)
            if files._config.name not in self.managers:
                self.start_manager(files._config.name)

        async def stopped(files: ManagerFiles) -> None:
            if files._config.name in self.managers:
                await self.stop_manager(files._config.name)
            await deactivate(files)

        with patch.multiple(ManagerFiles, activate=started, deactivate=stopped):
            yield

    def _file(self, name: str) -> Path:
        return self.folder / name / "manager.yaml"


H = TypeVar("H", bound=Hosts)


def hosts(folder: Path, nodes: int) -> AbstractAsyncContextManager[Hosts]:
    """Run a cluster of so many nodes, all online, of which the first is the one voter; stop it in the end."""
    return running(Hosts(folder), nodes)


@contextlib.asynccontextmanager
async def running(hosts: H, nodes: int) -> AsyncIterator[H]:
    """Run a cluster likewise, of a kind of its own."""
    async with hosts as cluster:
        cluster.found()
        with cluster.systemd():
            cluster.start_manager("n1")
            await cluster.eventually(lambda: cluster.acting and cluster.peek(Node, "n1"))
            cluster.start_agent("n1")
            await cluster.online("n1")
            for index in range(2, nodes + 1):
                await cluster.add_node(f"n{index}")
            yield cluster
