"""Certificates for both clusters, from the CA code that production uses, in files that both understand."""

from dataclasses import dataclass
from pathlib import Path

from common.files import write_atomic
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role, new_cluster_id

HOST = "127.0.0.1"
"""Where all members listen."""


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of a certificate, its key and the CA's certificate, PEM."""

    ca: Path
    certificate: Path
    key: Path

    def load(self) -> Credentials:
        """Read them. Raises OSError."""
        return Credentials(self.ca.read_bytes(), self.certificate.read_bytes(), self.key.read_bytes())


class Pki:
    """One CA, which both clusters trust, and a folder for what it issues."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._cluster_id = new_cluster_id()
        self._authority = CertificateAuthority.create(self._cluster_id, "bench")
        write_atomic(folder / "ca.crt", self._authority.cert_pem)

    def manager(self, name: str) -> Files:
        """Certify a member."""
        return self._issue(Role.MANAGER, name)

    def operator(self) -> Files:
        """Certify the load generator."""
        return self._issue(Role.OPERATOR, "load")

    def _issue(self, role: Role, name: str) -> Files:
        issued = self._authority.issue(Identity(self._cluster_id, role, name), addresses=[HOST])
        stem = self._folder / f"{role}-{name}"
        files = Files(self._folder / "ca.crt", stem.with_suffix(".crt"), stem.with_suffix(".key"))
        write_atomic(files.certificate, issued.cert_pem)
        write_atomic(files.key, issued.key_pem, 0o600)
        return files
