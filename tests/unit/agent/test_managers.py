"""Becoming a voter and ceasing to be one: the manager's files appear whole, with closed keys, and go again."""

from pathlib import Path

import grpc
import pytest
from gugus.agent.v1 import node_pb2

from common.config import ManagerConfig, dump, load_manager
from common.errors import from_rpc_error
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Role
from common.identity.store import Pki
from tests.unit.agent.conftest import CLUSTER_ID, Host


def request(host: Host, ca: CertificateAuthority, credentials: Credentials) -> node_pb2.ActivateManagerRequest:
    root = host.agent.config.pki_dir.parent
    config = ManagerConfig(
        name="n1", cluster_id=CLUSTER_ID, cluster_name="t", address="127.0.0.1",
        state_dir=root / "manager", pki_dir=root / "pki", run_dir=root / "run",
    )  # fmt: skip
    return node_pb2.ActivateManagerRequest(
        epoch=1,
        config=dump(config),
        ca_certificate=ca.cert_pem,
        ca_key=ca.key_pem,
        certificate=credentials.cert_pem,
        key=credentials.key_pem,
    )


async def test_host_becomes_a_voter_and_an_ordinary_node_again(
    host: Host, ca: CertificateAuthority, manager_credentials: Credentials, tmp_path: Path
) -> None:
    activate = request(host, ca, manager_credentials)
    for _ in range(2):
        await host.node.ActivateManager(activate)
    pki = Pki(tmp_path / "pki")
    assert load_manager(tmp_path / "manager.yaml").name == "n1"
    assert pki.credentials(Role.MANAGER).identity.role is Role.MANAGER
    assert pki.ca_key.stat().st_mode & 0o777 == 0o600
    (tmp_path / "manager" / "log").write_text("x")
    for _ in range(2):
        await host.node.DeactivateManager(node_pb2.DeactivateManagerRequest(epoch=1))
    assert not (tmp_path / "manager.yaml").exists()
    assert not pki.ca_key.exists()
    assert not (tmp_path / "manager" / "log").exists()
    assert pki.has(Role.NODE)


async def test_half_a_manager_is_refused_and_nothing_is_written(
    host: Host, ca: CertificateAuthority, manager_credentials: Credentials, tmp_path: Path
) -> None:
    activate = request(host, ca, manager_credentials)
    activate.ca_key = manager_credentials.key_pem
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await host.node.ActivateManager(activate)
    assert from_rpc_error(caught.value).reason == "INVALID_ARGUMENT"
    assert not (tmp_path / "manager.yaml").exists()
    assert not Pki(tmp_path / "pki").ca_key.exists()
