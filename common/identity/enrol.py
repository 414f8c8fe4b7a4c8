"""First contact of a joining host: find, among the certificates that a server shows, the CA that the token pins.

Invariant: nothing but a match of SHA-256 makes a certificate trusted, and nothing is sent before that.
"""

import asyncio
import select
import socket
import time

import grpc
from cryptography.hazmat.primitives import hashes, serialization
from OpenSSL import SSL

from common.config import split_endpoint
from common.errors import GugusError, unavailable


class CaPinMismatch(GugusError):
    """The server is not of the cluster that the token was made for."""

    def __init__(self, endpoint: str, expected: str, seen: list[str]) -> None:
        shown = ", ".join(f"{s[:16]}…" for s in seen) or "none"
        super().__init__(
            grpc.StatusCode.UNAUTHENTICATED,
            "CA_PIN_MISMATCH",
            f"the server at {endpoint} does not belong to the cluster that this token was made for: the token pins "
            f"the CA {expected[:16]}…, the server shows {shown}.",
            remedy="Either the token is of another cluster, or something else answers at this address. "
            "Make a new token on the cluster that you mean to join, and check the address.",
            metadata={"endpoint": endpoint, "expected_sha256": expected},
        )


async def fetch_ca(endpoint: str, ca_sha256: str, *, timeout_s: float = 10.0) -> bytes:
    """Return the PEM of the CA certificate with the pinned SHA-256 that the server at "host:port" shows.

    Raises CaPinMismatch, or GugusError ENROL_UNREACHABLE when no TLS server answers within `timeout_s`.
    """
    try:
        return await asyncio.to_thread(_fetch, endpoint, ca_sha256, timeout_s)
    except (OSError, SSL.Error) as error:
        why = "it does not speak TLS" if isinstance(error, SSL.Error) else str(error) or type(error).__name__
        raise unavailable(
            "ENROL_UNREACHABLE",
            f"no manager answers for enrolment at {endpoint}: {why}.",
            remedy="Check that gugus-manager runs there and that no firewall is between.",
            metadata={"endpoint": endpoint},
        ) from error


def _fetch(endpoint: str, ca_sha256: str, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    with socket.create_connection(split_endpoint(endpoint), timeout=timeout_s) as sock:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_verify(SSL.VERIFY_NONE)  # the pin below is the verification
        context.set_alpn_protos([b"h2"])
        connection = SSL.Connection(context, sock)
        connection.set_connect_state()
        _handshake(connection, sock, deadline)
        seen = []
        for certificate in connection.get_peer_cert_chain(as_cryptography=True) or ():
            seen.append(certificate.fingerprint(hashes.SHA256()).hex())
            if seen[-1] == ca_sha256:
                return certificate.public_bytes(serialization.Encoding.PEM)
    raise CaPinMismatch(endpoint, ca_sha256, seen)


def _handshake(connection: SSL.Connection, sock: socket.socket, deadline: float) -> None:
    sock.setblocking(False)
    while True:
        wait_s = deadline - time.monotonic()
        if wait_s <= 0:
            raise TimeoutError("the TLS handshake took too long")
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            select.select([sock], [], [], wait_s)
        except SSL.WantWriteError:
            select.select([], [sock], [], wait_s)
        except SSL.SysCallError as error:
            raise ConnectionError(f"the connection broke in the TLS handshake: {error.args[-1]}") from error
        else:
            return
