"""A fake cluster of two managers, and an operator's configuration of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from client import config
from client.cli import app
from client.config import ClientConfig
from common.files import write_atomic
from common.identity.ca import CertificateAuthority
from common.identity.names import Identity, Role
from common.identity.store import Pki
from tests.unit.client.fake import Cluster

CLUSTER_ID = "0123456789abcdef"


@pytest.fixture(scope="session")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(CLUSTER_ID, "demo")


@pytest.fixture
def cluster(ca: CertificateAuthority) -> Iterator[Cluster]:
    cluster = Cluster(ca.issue(Identity(CLUSTER_ID, Role.MANAGER, "n1"), addresses=["127.0.0.1"]), 2)
    yield cluster
    cluster.close()


@pytest.fixture
def settings(ca: CertificateAuthority, cluster: Cluster, tmp_path: Path) -> ClientConfig:
    Pki(tmp_path).save(Role.OPERATOR, ca.issue(Identity(CLUSTER_ID, Role.OPERATOR, "admin")))
    return config.for_pki("demo", CLUSTER_ID, cluster.endpoints, tmp_path)


@pytest.fixture
def settings_file(settings: ClientConfig, tmp_path: Path) -> Path:
    file = tmp_path / "client.yaml"
    write_atomic(file, config.dump(settings).encode())
    return file


class Gugus:
    """Runs the command in this process."""

    def __call__(self, *args: str, **options: Any) -> Result:
        return CliRunner().invoke(app, list(args), **options)


@pytest.fixture
def gugus(settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> Gugus:
    monkeypatch.setenv("GUGUS_CONFIG", str(settings_file))
    return Gugus()
