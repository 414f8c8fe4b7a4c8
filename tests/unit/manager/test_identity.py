"""Who may become a node and speak as one: each wrong token and each foreign identity is refused by the real manager, in words."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from gugus.cluster.v1 import enrol_pb2, enrol_pb2_grpc, guest_pb2, guest_pb2_grpc, heartbeat_pb2, heartbeat_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import Token
from gugus.cluster.v1.node_pb2 import Node

from common.errors import GugusError, from_rpc_error
from common.identity.ca import identity_of, make_csr, new_key
from common.identity.names import Identity, Role, any_of
from common.identity.tokens import JoinToken
from common.rpc.channel import open_channel, open_enrolment_channel
from tests.unit.manager.cluster import Cluster, running


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as cluster:
        yield cluster


async def new_token(cluster: Cluster) -> JoinToken:
    async with cluster.client() as gugus:
        return JoinToken.parse((await gugus.cluster.create_token()).token)


async def enrol(cluster: Cluster, token: JoinToken, node: str = "n2", csr: bytes = b"") -> enrol_pb2.EnrolResponse:
    identity = Identity(cluster.cluster_id, Role.NODE, node)
    request = enrol_pb2.EnrolRequest(
        token_id=token.token_id,
        token_secret=token.secret,
        node=node,
        address="127.0.0.9",
        csr=csr or make_csr(identity, new_key()),
    )
    channel = open_enrolment_channel(token.endpoints[0], cluster.authority.cert_pem, cluster.cluster_id)
    try:
        return await enrol_pb2_grpc.EnrolServiceStub(channel).Enrol(request)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    finally:
        await channel.close()


async def refused(cluster: Cluster, token: JoinToken, node: str = "n2") -> str:
    with pytest.raises(GugusError) as caught:
        await enrol(cluster, token, node)
    assert caught.value.message
    return caught.value.reason


async def token_makes_one_host_a_node_and_no_second_one(cluster: Cluster) -> None:
    token = await new_token(cluster)
    csr = make_csr(Identity(cluster.cluster_id, Role.NODE, "n2"), new_key())
    answer = await enrol(cluster, token, "n2", csr)
    assert identity_of(answer.certificate) == Identity(cluster.cluster_id, Role.NODE, "n2")
    assert (await enrol(cluster, token, "n2", csr)).cluster_id == cluster.cluster_id, "a lost answer burns no token"
    assert await refused(cluster, token, "n3") == "TOKEN_USED"


async def expired_token_is_refused(cluster: Cluster) -> None:
    token = await new_token(cluster)

    def end(stored: Token) -> Token:
        stored.expires_at.seconds = 1
        return stored

    await cluster.store.update(Token, token.token_id, end)
    assert await refused(cluster, token) == "TOKEN_EXPIRED"


async def unknown_revoked_and_guessed_tokens_are_refused(cluster: Cluster) -> None:
    token = await new_token(cluster)
    guessed = JoinToken.parse(token.text())
    object.__setattr__(guessed, "secret", b"x" * 32)
    assert await refused(cluster, guessed) == "TOKEN_UNKNOWN"
    async with cluster.client() as gugus:
        await gugus.cluster.revoke_token(token.token_id)
    assert await refused(cluster, token) == "TOKEN_UNKNOWN"


async def name_of_a_node_is_not_given_twice(cluster: Cluster) -> None:
    assert await refused(cluster, await new_token(cluster), "n1") == "NODE_ALREADY_EXISTS"


async def host_whose_certificate_has_ended_enrols_again_with_its_key(cluster: Cluster) -> None:
    csr = make_csr(Identity(cluster.cluster_id, Role.NODE, "n4"), new_key())
    await enrol(cluster, await new_token(cluster), "n4", csr)
    before = cluster.store.peek(Node, "n4")
    token = await new_token(cluster)
    answer = await enrol(cluster, token, "n4", csr)
    assert identity_of(answer.certificate).name == "n4"
    assert cluster.store.peek(Node, "n4") == before
    assert await refused(cluster, token, "n5") == "TOKEN_USED"
    assert await refused(cluster, await new_token(cluster), "n4") == "NODE_ALREADY_EXISTS", "another key"


async def host_may_not_beat_as_another_host(cluster: Cluster) -> None:
    credentials = cluster.pki("n2", Role.NODE).credentials(Role.NODE)
    channel = open_channel(cluster.endpoint(), credentials, verify=any_of(Role.MANAGER, cluster.cluster_id))
    call = heartbeat_pb2_grpc.HeartbeatServiceStub(channel).Heartbeat(
        iter([heartbeat_pb2.HeartbeatRequest(node="n1", sequence=1)])
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(call))
    await channel.close()
    assert from_rpc_error(caught.value).reason == "WRONG_NODE"


async def host_may_not_do_what_operators_do(cluster: Cluster) -> None:
    credentials = cluster.pki("n2", Role.NODE).credentials(Role.NODE)
    channel = open_channel(cluster.endpoint(), credentials, verify=any_of(Role.MANAGER, cluster.cluster_id))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guest_pb2_grpc.GuestServiceStub(channel).ListGuests(guest_pb2.ListGuestsRequest())
    await channel.close()
    assert from_rpc_error(caught.value).reason == "ROLE_NOT_ALLOWED"


async def plaintext_reaches_no_service(cluster: Cluster) -> None:
    async with grpc.aio.insecure_channel(cluster.endpoint()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await guest_pb2_grpc.GuestServiceStub(channel).ListGuests(guest_pb2.ListGuestsRequest(), timeout=3)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def certificate_of_a_foreign_authority_reaches_no_service(cluster: Cluster, tmp_path: Path) -> None:
    foreign = Cluster(tmp_path / "foreign")
    credentials = foreign.pki("operator", Role.OPERATOR).credentials(Role.OPERATOR)
    channel = open_channel(cluster.endpoint(), credentials, verify=any_of(Role.MANAGER, cluster.cluster_id))
    with pytest.raises(grpc.aio.AioRpcError):
        await guest_pb2_grpc.GuestServiceStub(channel).ListGuests(guest_pb2.ListGuestsRequest(), timeout=3)
    await channel.close()


async def founding_node_is_known(cluster: Cluster) -> None:
    assert cluster.store.peek(Node, "n1") is not None


async def test_wrong_tokens_and_foreign_identities_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    await founding_node_is_known(cluster)
    await token_makes_one_host_a_node_and_no_second_one(cluster)
    await expired_token_is_refused(cluster)
    await unknown_revoked_and_guessed_tokens_are_refused(cluster)
    await name_of_a_node_is_not_given_twice(cluster)
    await host_whose_certificate_has_ended_enrols_again_with_its_key(cluster)
    await host_may_not_beat_as_another_host(cluster)
    await host_may_not_do_what_operators_do(cluster)
    await plaintext_reaches_no_service(cluster)
    await certificate_of_a_foreign_authority_reaches_no_service(cluster, tmp_path)
