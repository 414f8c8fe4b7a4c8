"""Who is who in a cluster: the certificate authority, certificates, join tokens and the files that hold them."""

from common.identity.ca import (
    CertificateAuthority,
    Credentials,
    expires_at,
    fingerprint,
    identity_of,
    key_to_pem,
    make_csr,
    new_key,
)
from common.identity.enrol import CaPinMismatch, fetch_ca
from common.identity.names import Identity, Role, any_of, new_cluster_id
from common.identity.store import Pki
from common.identity.tls import client_context, peer_identity, server_context
from common.identity.tokens import JoinToken, hash_secret, secret_matches

__all__ = [
    "CaPinMismatch",
    "CertificateAuthority",
    "Credentials",
    "Identity",
    "JoinToken",
    "Pki",
    "Role",
    "any_of",
    "client_context",
    "expires_at",
    "fetch_ca",
    "fingerprint",
    "hash_secret",
    "identity_of",
    "key_to_pem",
    "make_csr",
    "new_cluster_id",
    "new_key",
    "peer_identity",
    "secret_matches",
    "server_context",
]
