"""One cluster a test, with a pool and an image in it, and an operator's client."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import heartbeat
from agent.storage import registry
from client.sdk import Gugus
from manager.controllers import images
from tests.unit.manager.cluster import Cluster, running
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses that are there for the sake of a real cluster's load; a manager that stops waits for a beat."""
    monkeypatch.setattr(images, "POLL_S", 0.02)
    monkeypatch.setattr(heartbeat, "PAUSE_FIRST_S", 0.02)
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.2)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Storage:
    folder = tmp_path / "volumes"
    folder.mkdir()
    made = Storage(folder)
    monkeypatch.setattr(registry, "create", made.create)
    return made


@pytest.fixture
async def hypervisor(tmp_path: Path) -> Hypervisor:
    """The hypervisor of node n1."""
    return Hypervisor(tmp_path / "n1")


@pytest.fixture
async def cluster(tmp_path: Path, hypervisor: Hypervisor, storage: Storage) -> AsyncIterator[Cluster]:
    async with running(tmp_path, hypervisor) as cluster:
        yield cluster


@pytest.fixture
async def gugus(cluster: Cluster) -> AsyncIterator[Gugus]:
    """An operator; the cluster has the pool "shared" with the image "debian"."""
    async with cluster.client() as gugus:
        await cluster.make_image(gugus)
        yield gugus
