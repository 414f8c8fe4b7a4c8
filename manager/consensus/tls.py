"""Who is on the other side: contexts for mutual TLS 1.3, and the identity in a certificate (rule H10).

Invariant: a context made here never completes a handshake with a peer whose certificate is not of the cluster's CA.
"""

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path

from cryptography import x509

from common.identity.names import Identity, Role

from .types import TlsFiles

UNACKED_TIMEOUT_MS = 3_000
"""TCP_USER_TIMEOUT (RFC 5482): a connection into a power cut or partition ends after this, not after minutes."""
_KEEPALIVE_IDLE_S = 10
_KEEPALIVE_INTERVAL_S = 5
_KEEPALIVE_PROBES = 3


class PeerRefused(Exception):
    """A peer that is not who it must be."""


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context for who is called. Raises OSError, ssl.SSLError."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    context.num_tickets = 0  # sessions are not resumed
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context for who calls. Raises OSError, ssl.SSLError."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)


def own_identity(certificate: Path, me: str) -> Identity:
    """Read our identity from our certificate file. Raises OSError, and ValueError when it is not manager `me`."""
    parsed = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith("gugus://")]
    identity = Identity.parse(uris[0]) if len(uris) == 1 else None
    if identity is None or identity.role is not Role.MANAGER or identity.name != me:
        raise ValueError(f"{certificate}: is for {uris}, not for manager {me!r}; issue the manager certificate again")
    return identity


def peer_identity(transport: asyncio.BaseTransport) -> Identity | None:
    """Return whom the peer's certificate, already verified, speaks for; None when that is not exactly one identity."""
    certificate = transport.get_extra_info("peercert") or {}
    uris = [
        value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI" and value.startswith("gugus:")
    ]
    with suppress(ValueError):
        return Identity.parse(uris[0]) if len(uris) == 1 else None
    return None


def tune(transport: asyncio.BaseTransport) -> None:
    """Send small messages at once, and notice a host that is gone, also while nothing is to be said."""
    raw: socket.socket = transport.get_extra_info("socket")
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_USER_TIMEOUT, UNACKED_TIMEOUT_MS),
        (socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, _KEEPALIVE_PROBES),
    ):
        raw.setsockopt(socket.IPPROTO_TCP, option, value)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # the identity is the URI in the certificate, checked after the handshake
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(str(files.ca))
    context.load_cert_chain(str(files.certificate), str(files.key))
    return context
