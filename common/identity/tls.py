"""TLS for ports that do not speak gRPC (Raft, metrics): the same rule, mutual and 1.2 or newer, for the ssl module."""

import ssl
from pathlib import Path
from tempfile import TemporaryDirectory

from common.files import write_atomic
from common.identity.ca import identity_of
from common.identity.credentials import Credentials
from common.identity.names import Identity


def server_context(
    credentials: Credentials, *, require_client_certificate: bool = True, trust: bytes = b""
) -> ssl.SSLContext:
    """Return a context for servers: a peer must show a certificate of the same CA, unless it proves itself otherwise.

    trust: certificate (PEM) of another CA, which is then the only one whose peers are let in. Raises ValueError when it is none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED if require_client_certificate else ssl.CERT_NONE
    return _filled(context, credentials, trust)


def client_context(credentials: Credentials, *, trust: bytes = b"") -> ssl.SSLContext:
    """Return a context for clients; connect with `server_hostname=` the `Identity.dns_name` that is meant.

    trust: as in `server_context`.
    """
    return _filled(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), credentials, trust)  # verifies chain and name by default


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket) -> Identity:
    """Return who is at the other end of a mutual TLS connection. Raises ValueError when it shows no identity."""
    der = connection.getpeercert(binary_form=True)
    if not der:
        raise ValueError("the peer showed no certificate")
    return identity_of(ssl.DER_cert_to_PEM_cert(der).encode())


def _filled(context: ssl.SSLContext, credentials: Credentials, trust: bytes = b"") -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=(trust or credentials.ca_pem).decode())
    except ssl.SSLError as error:
        raise ValueError(f"that is no certificate of an authority: {error}") from error
    with TemporaryDirectory(prefix="gugus-tls-") as folder:  # mode 0700; the ssl module reads keys from files only
        path = Path(folder, "chain.key")
        write_atomic(path, credentials.key_pem.rstrip() + b"\n" + credentials.chain_pem, 0o600)
        context.load_cert_chain(path)
    return context
