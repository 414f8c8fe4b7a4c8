"""A host leaves its cluster for the one that was made of what was left of it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gugus.cluster.v1 import enrol_pb2_grpc

from agent import join as joining
from agent.join import JoinOptions, join
from common.clock import boottime_ns
from common.config import AgentConfig, ManagerConfig, Voter, dump, load_agent
from common.errors import GugusError
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.identity.store import Pki
from common.rpc.server import Service, start_server
from tests.unit.agent.conftest import CLUSTER_ID
from tests.unit.agent.test_join import Enrolment, token

OLD_ID = "fedcba9876543210"


@pytest.fixture
async def enrolment(ca: CertificateAuthority, manager_credentials: Credentials) -> AsyncIterator[Enrolment]:
    servicer = Enrolment(ca)
    service = Service(enrol_pb2_grpc.add_EnrolServiceServicer_to_server, servicer, "gugus.cluster.v1.EnrolService")
    server = await start_server([service], "127.0.0.1", 0, manager_credentials, require_client_certificate=False)
    servicer.port = server.port
    yield servicer
    await server.stop(0)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host that was a voter of another cluster; nothing of it runs (nothing listens at port 1)."""
    pki, etc = Pki(tmp_path / "pki"), tmp_path
    old = CertificateAuthority.create(OLD_ID, "test")
    pki.save_ca(old)
    for role in Role:
        pki.save(role, old.issue(Identity(OLD_ID, role, "n7"), addresses=["127.0.0.1"]))
    agent = AgentConfig(
        name="n7", cluster_id=OLD_ID, address="127.0.0.1", port=1, managers=("127.0.0.1:9",), pki_dir=pki.folder,
        state_dir=tmp_path / "lib" / "agent", run_dir=tmp_path / "run",
    )  # fmt: skip
    manager = ManagerConfig(
        name="n7", cluster_id=OLD_ID, cluster_name="test", address="127.0.0.1", port=1, pki_dir=pki.folder,
        voters=(Voter(name="n7", address="127.0.0.1"),), state_dir=tmp_path / "lib" / "manager", run_dir=agent.run_dir,
    )  # fmt: skip
    (etc / "agent.yaml").write_text(dump(agent))
    (etc / "manager.yaml").write_text(dump(manager))
    (etc / "client.yaml").write_text("cluster_name: test\n")
    (manager.state_dir / "raft").mkdir(parents=True)
    (manager.state_dir / "raft" / "snapshot").write_bytes(b"state")
    agent.run_dir.mkdir()
    return tmp_path


def options(host: Path, **more: Any) -> JoinOptions:
    return JoinOptions(host / "agent.yaml", rejoin=True, base=load_agent(host / "agent.yaml"), **more)


def files(host: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in host.rglob("*") if path.is_file()}


def assert_joined(host: Path) -> None:
    config = load_agent(host / "agent.yaml")
    assert (config.name, config.cluster_id, config.managers) == ("n7", CLUSTER_ID, ("127.0.0.1:7443",))
    assert Pki(host / "pki").credentials(Role.NODE).identity == Identity(CLUSTER_ID, Role.NODE, "n7")
    for gone in (
        "manager.yaml",
        "client.yaml",
        "pki/ca.key",
        "pki/manager.key",
        "pki/operator.crt",
        "lib/manager/raft",
    ):
        assert not (host / gone).exists(), gone
    (kept,) = (host / "lib" / "manager").glob("raft.before-rejoin-*")
    assert (kept / "snapshot").read_bytes() == b"state"


async def test_host_leaves_with_its_key_and_its_manager_is_put_aside(enrolment: Enrolment, host: Path) -> None:
    key = (host / "pki" / "node.key").read_bytes()
    await join(token(enrolment), options(host))
    assert_joined(host)
    assert (host / "pki" / "node.key").read_bytes() == key, "by its key the new cluster knows it again"


async def test_host_that_holds_a_lease_stays(enrolment: Enrolment, host: Path) -> None:
    (host / "run" / "lease.json").write_text(json.dumps({"deadline_ns": boottime_ns() + 9_000_000_000}))
    before = files(host)
    with pytest.raises(GugusError) as caught:
        await join(token(enrolment), options(host))
    assert caught.value.reason == "LEASE_HELD"
    assert files(host) == before
    assert not enrolment.requests, "the new cluster was not asked"
    (host / "run" / "lease.json").write_text(json.dumps({"deadline_ns": boottime_ns() - 1}))
    await join(token(enrolment), options(host))
    assert_joined(host)


async def test_lease_of_another_boot_binds_nobody_and_a_damaged_record_everybody(
    enrolment: Enrolment, host: Path
) -> None:
    record = host / "run" / "lease.json"
    record.write_text("{")
    with pytest.raises(GugusError) as caught:
        await join(token(enrolment), options(host))
    assert caught.value.reason == "LEASE_HELD"
    record.write_text(json.dumps({"deadline_ns": boottime_ns() + 9_000_000_000, "boot": "another"}))
    await join(token(enrolment), options(host))


async def test_refused_host_is_as_it_was(enrolment: Enrolment, host: Path) -> None:
    enrolment.refuse = True
    before = files(host)
    with pytest.raises(GugusError):
        await join(token(enrolment), options(host))
    assert files(host) == before


@pytest.mark.parametrize("step", ["_keep", "write_atomic"])
async def test_departure_that_is_interrupted_is_finished_by_the_next(
    step: str, enrolment: Enrolment, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    wanted = token(enrolment)
    with monkeypatch.context() as patch:
        patch.setattr(joining, step, killed)
        with pytest.raises(KeyboardInterrupt):
            await join(wanted, options(host))
    await join(wanted, options(host))
    assert_joined(host)


async def test_without_being_told_to_a_host_leaves_nothing(enrolment: Enrolment, host: Path) -> None:
    before = files(host)
    with pytest.raises(GugusError) as caught:
        await join(token(enrolment), JoinOptions(host / "agent.yaml", base=load_agent(host / "agent.yaml")))
    assert caught.value.reason == "ALREADY_JOINED"
    assert "--rejoin" in caught.value.remedy
    assert files(host) == before
