"""One cluster a test, with a pool and an image in it, and an operator's client."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.storage import registry
from client.sdk import Gugus
from tests.unit.manager.cluster import Cluster, running
from tests.unit.manager.hypervisor import Hypervisor
from tests.unit.manager.storage import Storage


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    made = Storage()
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
