"""Hosts that go down in order in a test: their agents are told so as systemd would, and start again in another boot."""

from collections.abc import Callable

import pytest
from gugus.cluster.v1.cluster_pb2 import Cluster as ClusterObject
from gugus.cluster.v1.cluster_pb2 import ClusterSettings
from gugus.cluster.v1.node_pb2 import HOST_EXIT_UNSPECIFIED, HostExit

from agent import shutdown
from agent.compute.hypervisor import Hypervisor
from agent.fencing.boot import TOKEN_FILE_NAME
from client.sdk import Gugus
from client.tasks import check
from common.errors import precondition
from manager.store import Txn
from tests.unit.manager.cluster import Cluster
from tests.unit.migration.test_operation import Mover, Two


class Hosts:
    """What systemd says on the hosts of a cluster, and their power."""

    def __init__(self, cluster: Cluster, hypervisor: Callable[[str], Hypervisor]) -> None:
        self.cluster, self._hypervisor = cluster, hypervisor
        self.exit: HostExit.ValueType = HOST_EXIT_UNSPECIFIED
        self.asked = 0
        """How often agents were told to have their host reboot."""
        self.refuses = False
        """Whether systemd does not."""

    async def system_exit(self) -> HostExit.ValueType:
        """Stands in for what systemd is asked."""
        return self.exit

    async def reboot(self) -> None:
        """Stands in for `systemctl reboot`; the test switches the host off and on."""
        self.asked += 1
        if self.refuses:
            raise precondition("REBOOT_REFUSED", "a job of systemd is in the way.")

    async def off(self, node: str, exit_: HostExit.ValueType) -> None:
        """Shut a host down so."""
        self.exit = exit_
        await self.cluster.stop_agent(node)
        self.exit = HOST_EXIT_UNSPECIFIED

    def on(self, node: str) -> None:
        """Boot it."""
        (self.cluster.folder / node / "run" / TOKEN_FILE_NAME).unlink()
        self.cluster.start_agent(node, self._hypervisor(node))


async def set_cluster(cluster: Cluster, settings: ClusterSettings) -> None:
    """Set the cluster's settings, whole."""
    stored = cluster.store.peek_all(ClusterObject)[0]
    stored.settings.CopyFrom(settings)
    await cluster.store.txn(Txn().put(stored, expect_revision=stored.meta.revision))


async def two_hosts(cluster: Two, gugus: Gugus, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """Have systemd of both hosts stood in for, and `web` on n2."""

    def hypervisor(node: str) -> Mover:
        cluster.movers[node] = Mover(cluster.folder / node)
        return cluster.movers[node]

    made = Hosts(cluster, hypervisor)
    monkeypatch.setattr(shutdown, "system_exit", made.system_exit)
    check(await gugus.tasks.wait(await gugus.migrations.migrate("web", "n2")))
    return made
