"""Certificates are renewed in time by the hosts themselves, for the key that they are known by, and who failed is told of."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from gugus.cluster.v1 import heartbeat_pb2_grpc
from gugus.cluster.v1.heartbeat_pb2 import RenewCertificateRequest
from gugus.cluster.v1.node_pb2 import Node

from agent.certificates import Certificates
from agent.managers import ManagerFiles
from common.errors import from_rpc_error
from common.identity.ca import CERTIFICATE_VALIDITY, expires_at, key_of, make_csr, new_key
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role, any_of
from common.identity.store import Pki
from common.rpc.channel import open_channel
from tests.unit.manager.cluster import Cluster, running

NOW = datetime.now(UTC)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as cluster:
        yield cluster


class Host:
    """The part of n1's agent that looks after certificates."""

    def __init__(self, cluster: Cluster) -> None:
        config = cluster.agent_config("n1")
        self.busy, self.restarts = False, list[datetime]()
        files = ManagerFiles(config, cluster.folder / "n1" / "agent.yaml")
        state = cluster.agents["n1"].state
        self.pki = Pki(config.pki_dir)
        self.certificates = Certificates(config, state, files, lambda: self.busy, self._restart)

    def of(self, role: Role) -> Credentials:
        return self.pki.credentials(role)

    def _restart(self) -> None:
        self.restarts.append(datetime.now(UTC))


def renewals(cluster: Cluster) -> list[str]:
    return [event.message for event in cluster.events() if event.reason == "CERTIFICATE_RENEWED"]


def told(cluster: Cluster) -> datetime:
    """Return when the certificate of n1's agent ends, as the cluster knows."""
    node = cluster.peek(Node, "n1") or Node()
    return node.status.facts.certificate_ends_at.ToDatetime(UTC)


async def test_what_is_good_for_long_is_left_alone(cluster: Cluster) -> None:
    host = Host(cluster)
    await host.certificates.look(NOW + CERTIFICATE_VALIDITY / 2)
    assert not renewals(cluster)
    assert not host.restarts


async def test_agent_and_manager_get_new_certificates_for_their_keys(cluster: Cluster) -> None:
    host = Host(cluster)
    before = {role: host.of(role) for role in (Role.NODE, Role.MANAGER)}
    ends = before[Role.NODE].not_after
    await cluster.eventually(lambda: told(cluster) == ends)
    await cluster.eventually(lambda: (cluster.peek(Node, "n1") or Node()).status.voter)
    host.busy = True
    await host.certificates.look(NOW + timedelta(days=300))
    for role, old in before.items():
        new = host.of(role)
        assert new.cert_pem != old.cert_pem
        assert (new.key_pem, new.identity) == (old.key_pem, old.identity)
        assert expires_at(new.cert_pem) >= old.not_after
        assert key_of(new.cert_pem) == key_of(old.cert_pem)
    assert sorted(renewals(cluster)) == [f"the certificate of its {what} was renewed" for what in ("agent", "manager")]
    assert not host.restarts, "work is under way"
    host.busy = False
    await host.certificates.look(NOW)
    assert len(host.restarts) == 1
    await cluster.stop_agent("n1")
    cluster.start_agent("n1")  # with the new one
    await cluster.beats(2)


async def test_a_host_whose_manager_is_silent_keeps_what_it_has(cluster: Cluster) -> None:
    host = Host(cluster)
    before = host.of(Role.NODE)
    await cluster.stop_manager()
    await host.certificates.look(NOW + timedelta(days=300))
    assert host.of(Role.NODE) == before
    assert not host.restarts


@pytest.mark.parametrize(("manager", "reason"), [(False, "KEY_DIFFERS"), (True, "NODE_NOT_VOTER")])
async def test_what_a_host_was_not_certified_for_is_refused(cluster: Cluster, manager: bool, reason: str) -> None:
    await cluster.add_node("n2")
    credentials = cluster.pki("n2", Role.NODE).credentials(Role.NODE)
    csr = make_csr(Identity(cluster.cluster_id, Role.NODE, "n2"), new_key())
    channel = open_channel(cluster.endpoint(), credentials, verify=any_of(Role.MANAGER, cluster.cluster_id))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await heartbeat_pb2_grpc.HeartbeatServiceStub(channel).RenewCertificate(
            RenewCertificateRequest(csr=csr, manager=manager)
        )
    await channel.close()
    assert from_rpc_error(caught.value).reason == reason
