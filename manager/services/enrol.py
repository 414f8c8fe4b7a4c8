"""Enrolment: turns a host with a valid one-time token into a node, in one transaction."""

import time
from collections.abc import Callable

from cryptography import x509
from gugus.cluster.v1 import enrol_pb2, enrol_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import Token
from gugus.cluster.v1.enrol_pb2 import EnrolRequest, EnrolResponse
from gugus.cluster.v1.node_pb2 import NODE_STATE_JOINING, Node

from common import validate
from common.config import AGENT_PORT, ManagerConfig
from common.errors import GugusError, already_exists, invalid, several, unauthenticated, unavailable
from common.identity.ca import CertificateAuthority, key_sha256
from common.identity.names import Identity, Role
from common.identity.tokens import secret_matches
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.events import INFO, record
from manager.services.forward import known_error
from manager.store import Txn
from manager.store.kinds import new


class EnrolService(enrol_pb2_grpc.EnrolServiceServicer):
    """Serves on its own port, on the acting manager only; a host tries each manager of its token."""

    def __init__(
        self,
        context: Context,
        config: ManagerConfig,
        authority: CertificateAuthority,
        endpoints: Callable[[], list[str]],
    ) -> None:
        self._context = context
        self._config = config
        self._authority = authority
        self._endpoints = endpoints

    async def Enrol(self, request: EnrolRequest, context: object) -> EnrolResponse:
        """Make a host a node."""
        if not self._context.acting.valid:
            raise unavailable(
                "NOT_ACTING", "this manager does not act.", remedy="Ask another manager, or wait a little."
            )
        _check(request)
        key = _key_sha256(request.csr)
        try:
            await self._register(request, key)
        except ConsensusError as error:
            raise known_error(error) from error
        identity = Identity(self._config.cluster_id, Role.NODE, request.node)
        return enrol_pb2.EnrolResponse(
            certificate=self._authority.sign_csr(request.csr, identity, addresses=[request.address]),
            ca_certificate=self._authority.cert_pem,
            cluster_name=self._config.cluster_name,
            cluster_id=self._config.cluster_id,
            managers=self._endpoints(),
        )

    async def _register(self, request: EnrolRequest, key: bytes) -> None:
        """Spend the token and make the node, both or neither."""
        token = self._valid_token(await self._context.store.get(Token, request.token_id), request)
        node = await self._context.store.get(Node, request.node)
        if node is not None:
            if node.status.key_sha256 == key and token.used_by == request.node:
                return  # the same host again: it did not get our answer
            if node.status.former and node.status.key_sha256 == key and not token.used_by:
                await self._welcome_back(node, token, request)
                return
            if node.status.key_sha256 == key and not token.used_by:
                await self._certify_again(node, token)
                return
            raise already_exists(
                "node",
                request.node,
                remedy=_taken_remedy(node),
            )
        if token.used_by:
            raise unauthenticated(
                f"the token was used already, by node {token.used_by}.",
                reason="TOKEN_USED",
                remedy="Make a new one with `gugus cluster token create`: each serves one host.",
            )
        node = new(Node, request.node)
        node.spec.address = request.address
        node.spec.agent_port = request.agent_port or AGENT_PORT
        node.spec.witness = request.witness
        node.status.state = NODE_STATE_JOINING
        node.status.reason = "enrolled, not heard of yet"
        node.status.key_sha256 = key
        token.used_by = request.node
        txn = Txn(spare_reserve=True).put(node, expect_absent=True).put(token, expect_revision=token.meta.revision)
        text = "enrolled as a witness" if request.witness else "enrolled"
        await self._context.store.txn(record(txn, f"node/{request.node}", "NODE_ENROLLED", text, INFO))

    async def _certify_again(self, node: Node, token: Token) -> None:
        """Spend a token on a host that is a node already, as its key proves: its certificate has ended, or is to be another."""
        name = token.used_by = node.meta.name
        txn = Txn().put(token, expect_revision=token.meta.revision).expect(Node, name, revision=node.meta.revision)
        await self._context.store.txn(record(txn, f"node/{name}", "CERTIFICATE_RENEWED", "enrolled again", INFO))

    async def _welcome_back(self, node: Node, token: Token, request: EnrolRequest) -> None:
        """Take a host from before the recovery of the cluster in again: its key proves that it is the one.

        It stays a former node until it was heard and what it runs was taken in (`manager.ha.inherited`).
        """
        node.spec.address = request.address
        node.spec.agent_port = request.agent_port or AGENT_PORT
        node.status.reason = "joined anew after the recovery, not heard of yet"
        token.used_by = request.node
        txn = Txn().put(node, expect_revision=node.meta.revision).put(token, expect_revision=token.meta.revision)
        await self._context.store.txn(record(txn, f"node/{request.node}", "NODE_REJOINED", "joined anew", INFO))

    def _valid_token(self, token: Token | None, request: EnrolRequest) -> Token:
        if token is None or not secret_matches(request.token_secret, token.secret_sha256.hex()):
            raise unauthenticated(
                "the token is unknown here: it was revoked, or belongs to another cluster.",
                reason="TOKEN_UNKNOWN",
                remedy="Make a new one with `gugus cluster token create`.",
            )
        if token.expires_at.seconds <= time.time():
            raise unauthenticated(
                "the token has expired.",
                reason="TOKEN_EXPIRED",
                remedy="Make a new one with `gugus cluster token create`; see also --ttl.",
            )
        if token.node and token.node != request.node:
            raise unauthenticated(
                f'node: the token is for "{token.node}" only, not for "{request.node}".',
                reason="TOKEN_FOR_ANOTHER_NODE",
                remedy=f"Make one with `gugus cluster token create --node {request.node}`, or correct the node's name.",
            )
        return token


def _taken_remedy(node: Node) -> str:
    name = node.meta.name
    if node.status.former:
        return (
            f"{name} is from before the recovery of the cluster, and this host has another key than it had. If that host was installed "
            f"anew or is off for good: `gugus node remove {name} --off`, then join; else choose another name."
        )
    return f"Choose another name, or `gugus node remove {name}` if that host is gone for ever."


def _check(request: EnrolRequest) -> None:
    errors: list[GugusError] = []
    for field, message in (("node", validate.name(request.node)), ("address", validate.ip(request.address))):
        if message:
            errors.append(invalid(field, message))
    if request.agent_port > 65535:
        errors.append(invalid("agent_port", f"{request.agent_port} is no port; at most 65535."))
    if errors:
        raise several(errors)


def _key_sha256(csr_pem: bytes) -> bytes:
    try:
        request = x509.load_pem_x509_csr(csr_pem)
    except ValueError as error:
        raise invalid("csr", f"is no certificate signing request in PEM: {error}") from None
    return key_sha256(request.public_key())
