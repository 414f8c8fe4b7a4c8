"""New certificates for hosts that are nodes already: asked for over the connection that the present one makes."""

from cryptography import x509
from gugus.cluster.v1.heartbeat_pb2 import RenewCertificateRequest
from gugus.cluster.v1.node_pb2 import Node

from common.errors import invalid, permission_denied, precondition
from common.identity.ca import CertificateAuthority, key_of, key_sha256
from common.identity.names import Identity, Role
from manager.events import INFO, record
from manager.store import Store, Txn


class Renewal:
    """Certifies anew what a host was certified for before: its node, and its manager if it votes."""

    def __init__(self, store: Store, authority: CertificateAuthority) -> None:
        self._store, self._authority = store, authority

    async def renew(self, node: Node, request: RenewCertificateRequest, certificate: bytes) -> bytes:
        """Return a new certificate. certificate: the one that the host speaks with now. Raises GugusError."""
        name, role = node.meta.name, Role.MANAGER if request.manager else Role.NODE
        if request.manager and not node.status.voter:
            raise precondition(
                "NODE_NOT_VOTER", f"node {name} does not vote.", remedy=f"`gugus cluster promote {name}` first."
            )
        if not request.manager and _key_sha256(request.csr) != key_of(certificate):
            raise permission_denied(
                "csr: it is of another key than the present certificate; a host is known by its key.",
                reason="KEY_DIFFERS",
                remedy=f"Ask with the present key, or `gugus node remove {name}` and join anew.",
            )
        identity = Identity(self._authority.cluster_id, role, name)
        signed = self._authority.sign_csr(request.csr, identity, addresses=[node.spec.address, name])
        text = f"the certificate of its {'manager' if request.manager else 'agent'} was renewed"
        await self._store.txn(record(Txn(), f"node/{name}", "CERTIFICATE_RENEWED", text, INFO))
        return signed


def _key_sha256(csr_pem: bytes) -> bytes:
    try:
        return key_sha256(x509.load_pem_x509_csr(csr_pem).public_key())
    except ValueError as error:
        raise invalid("csr", f"is no certificate signing request in PEM: {error}") from None
