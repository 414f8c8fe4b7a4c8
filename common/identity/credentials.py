"""A certificate with its key, as it is carried from files to connections.

What is in the certificate is read only when asked for: the command line never does, and starts faster without the
library that can.
"""

from dataclasses import dataclass, field
from datetime import datetime

from common.identity.names import Identity


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate, its private key and the CA they are good under, all PEM."""

    ca_pem: bytes
    cert_pem: bytes
    key_pem: bytes = field(repr=False)

    @property
    def identity(self) -> Identity:
        """Whom the certificate speaks for. Raises ValueError when it is none of ours."""
        from common.identity.ca import identity_of

        return identity_of(self.cert_pem)

    @property
    def not_after(self) -> datetime:
        """When the certificate ends (UTC)."""
        from common.identity.ca import expires_at

        return expires_at(self.cert_pem)

    @property
    def chain_pem(self) -> bytes:
        """The certificate followed by the CA's, which a server sends so that a joining host can find the pinned CA."""
        return self.cert_pem.rstrip() + b"\n" + self.ca_pem
