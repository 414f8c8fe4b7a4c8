"""Joining: a token makes this host a node, once, repeatably after a crash; what is wrong is said."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gugus.cluster.v1 import enrol_pb2, enrol_pb2_grpc

from agent.join import NEW_KEY_FILE, JoinOptions, join
from agent.main import main
from common.config import AgentConfig, load_agent
from common.errors import GugusError, unauthenticated
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.identity.store import Pki
from common.identity.tokens import JoinToken
from common.rpc.server import Service, start_server
from tests.unit.agent.conftest import CLUSTER_ID


class Enrolment(enrol_pb2_grpc.EnrolServiceServicer):
    def __init__(self, ca: CertificateAuthority) -> None:
        self.ca, self.requests, self.port, self.refuse = ca, list[enrol_pb2.EnrolRequest](), 0, False

    async def Enrol(self, request: enrol_pb2.EnrolRequest, context: Any) -> enrol_pb2.EnrolResponse:
        self.requests.append(request)
        if self.refuse:
            raise unauthenticated("the token was used already.", reason="TOKEN_USED")
        identity = Identity(CLUSTER_ID, Role.NODE, request.node)
        return enrol_pb2.EnrolResponse(
            certificate=self.ca.sign_csr(request.csr, identity, addresses=[request.address]),
            ca_certificate=self.ca.cert_pem,
            cluster_name="test",
            cluster_id=CLUSTER_ID,
            managers=["127.0.0.1:7443"],
        )


@pytest.fixture
async def enrolment(ca: CertificateAuthority, manager_credentials: Credentials) -> AsyncIterator[Enrolment]:
    servicer = Enrolment(ca)
    service = Service(enrol_pb2_grpc.add_EnrolServiceServicer_to_server, servicer, "gugus.cluster.v1.EnrolService")
    server = await start_server([service], "127.0.0.1", 0, manager_credentials, require_client_certificate=False)
    servicer.port = server.port
    yield servicer
    await server.stop(0)


def token(enrolment: Enrolment, *, valid_for_s: float = 60, dead_first: bool = False) -> JoinToken:
    endpoints = [*(["127.0.0.1:9"] if dead_first else []), f"127.0.0.1:{enrolment.port}"]
    return JoinToken.new(endpoints, "test", CLUSTER_ID, enrolment.ca.fingerprint, valid_for_s=valid_for_s)


def options(tmp_path: Path, **more: Any) -> JoinOptions:
    path = tmp_path / "agent.yaml"
    base = AgentConfig(name="x", cluster_id="x", address="", pki_dir=tmp_path / "pki")
    return JoinOptions(path, name="n9", base=load_agent(path) if path.exists() else base, **more)


async def test_join_tries_every_endpoint_and_writes_keys_and_configuration(
    enrolment: Enrolment, tmp_path: Path
) -> None:
    config = await join(token(enrolment, dead_first=True), options(tmp_path))
    assert load_agent(tmp_path / "agent.yaml") == config
    assert (config.name, config.address, config.managers) == ("n9", "127.0.0.1", ("127.0.0.1:7443",))
    assert Pki(tmp_path / "pki").credentials(Role.NODE).identity.name == "n9"
    assert (tmp_path / "pki" / "node.key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "pki" / NEW_KEY_FILE).exists()


async def test_a_witness_joins_without_hypervisors_and_stays_one(enrolment: Enrolment, tmp_path: Path) -> None:
    config = await join(token(enrolment), options(tmp_path, witness=True))
    assert (config.witness, config.hypervisors, config.watchdog_device) == (True, (), "")
    await join(token(enrolment), options(tmp_path, force=True))  # agent.yaml remembers
    assert load_agent(tmp_path / "agent.yaml") == config
    assert [request.witness for request in enrolment.requests] == [True, True]


def test_an_agent_without_hypervisors_needs_none_of_their_libraries() -> None:
    """What runs on a witness: nothing of libvirt or LXC is there."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['libvirt', 'libvirt_qemu', 'lxc', '_lxc'])\n"
        "import agent.main, agent.watchdog.main, manager.main"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_interrupted_join_is_repeated_with_the_same_key(enrolment: Enrolment, tmp_path: Path) -> None:
    enrolment.refuse = True
    with pytest.raises(GugusError) as caught:
        await join(token(enrolment), options(tmp_path))
    assert caught.value.reason == "TOKEN_USED"
    key = (tmp_path / "pki" / NEW_KEY_FILE).read_bytes()
    enrolment.refuse = False
    await join(token(enrolment), options(tmp_path))
    assert (tmp_path / "pki" / "node.key").read_bytes() == key


async def test_joined_host_is_refused_unless_forced(enrolment: Enrolment, tmp_path: Path) -> None:
    await join(token(enrolment), options(tmp_path))
    with pytest.raises(GugusError) as caught:
        await join(token(enrolment), options(tmp_path))
    assert caught.value.reason == "ALREADY_JOINED"
    await join(token(enrolment), options(tmp_path, force=True))


async def test_host_of_another_cluster_is_left_as_it_is(enrolment: Enrolment, tmp_path: Path) -> None:
    other = CertificateAuthority.create("fedcba9876543210", "other")
    Pki(tmp_path / "pki").save(Role.NODE, other.issue(Identity("fedcba9876543210", Role.NODE, "old")))
    with pytest.raises(GugusError) as caught:
        await join(token(enrolment), options(tmp_path, force=True))
    assert caught.value.reason == "ALREADY_JOINED"


@pytest.mark.parametrize(("spoil", "word"), [(lambda t: t[:-5], "mangled"), (lambda t: "x" + t, "begin")])
def test_mangled_tokens_are_refused_in_words(
    spoil: Any, word: str, ca: CertificateAuthority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = JoinToken.new(["127.0.0.1:9"], "test", CLUSTER_ID, ca.fingerprint, valid_for_s=60).text()
    (tmp_path / "token").write_text(spoil(text))
    with pytest.raises(SystemExit):
        main(["join", "--token-file", str(tmp_path / "token"), "--config", str(tmp_path / "agent.yaml")])
    assert word in capsys.readouterr().err


async def test_expired_token_is_refused(enrolment: Enrolment, tmp_path: Path) -> None:
    with pytest.raises(GugusError) as caught:
        await join(token(enrolment, valid_for_s=-1), options(tmp_path))
    assert caught.value.reason == "TOKEN_EXPIRED"
