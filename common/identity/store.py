"""The folder of keys and certificates of a host, `/etc/gugus/pki`.

Invariant: private keys are mode 0600 from their first byte, and nothing is ever overwritten silently.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import GugusError, precondition
from common.files import write_atomic
from common.identity.credentials import Credentials
from common.identity.names import Role

if TYPE_CHECKING:
    from common.identity.ca import CertificateAuthority

KEY_MODE = 0o600
CERTIFICATE_MODE = 0o644
FOLDER_MODE = 0o755


class Pki:
    """Reads and writes `ca.crt`, `ca.key` and `<role>.crt`, `<role>.key` of a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def ca_crt(self) -> Path:
        """The CA certificate."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """The CA's private key; on manager hosts only."""
        return self.folder / "ca.key"

    def crt(self, role: Role) -> Path:
        """The certificate of a role."""
        return self.folder / f"{role}.crt"

    def key(self, role: Role) -> Path:
        """The private key of a role."""
        return self.folder / f"{role}.key"

    def has(self, role: Role) -> bool:
        """Whether credentials of a role are there."""
        return self.crt(role).exists() and self.key(role).exists() and self.ca_crt.exists()

    def credentials(self, role: Role) -> Credentials:
        """Read the credentials of a role. Raises GugusError PKI_MISSING or PKI_INVALID, naming the file."""
        credentials = Credentials(_read(self.ca_crt), _read(self.crt(role)), _read(self.key(role)))
        try:
            identity = credentials.identity
        except ValueError as error:
            raise _invalid(self.crt(role), str(error)) from error
        if identity.role is not role:
            raise _invalid(self.crt(role), f"it speaks for {identity}, not for a {role}")
        return credentials

    def load_ca(self) -> "CertificateAuthority":
        """Read the CA with its key. Raises GugusError PKI_MISSING or PKI_INVALID."""
        from common.identity.ca import CertificateAuthority  # here: who has no CA starts faster without it

        try:
            return CertificateAuthority.load(_read(self.ca_crt), _read(self.ca_key))
        except ValueError as error:
            raise _invalid(self.ca_key, str(error)) from error

    def save_ca(self, ca: "CertificateAuthority", *, replace: bool = False) -> None:
        """Write the CA with its key. Raises GugusError PKI_EXISTS when another is there and `replace` is not set."""
        self._write({self.ca_crt: ca.cert_pem, self.ca_key: ca.key_pem}, replace)

    def save_ca_cert(self, ca_pem: bytes, *, replace: bool = False) -> None:
        """Write the CA certificate alone. Raises GugusError PKI_EXISTS like `save_ca`."""
        self._write({self.ca_crt: ca_pem}, replace)

    def save(self, role: Role, credentials: Credentials, *, replace: bool = False) -> None:
        """Write the credentials of a role. Raises GugusError PKI_EXISTS like `save_ca`."""
        files = {
            self.ca_crt: credentials.ca_pem,
            self.key(role): credentials.key_pem,
            self.crt(role): credentials.cert_pem,
        }
        self._write(files, replace)

    def _write(self, files: dict[Path, bytes], replace: bool) -> None:
        """Check everything before the first write; write what differs, so that a repetition is harmless."""
        changed = {path: data for path, data in files.items() if not path.exists() or path.read_bytes() != data}
        taken = [str(path) for path in changed if path.exists()]
        if taken and not replace:
            raise precondition(
                "PKI_EXISTS",
                f"{', '.join(taken)} already exists with other content: this host belongs to a cluster.",
                remedy="To give that up for good, move the folder away first.",
                subject=str(self.folder),
            )
        self.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        for path, data in changed.items():
            write_atomic(path, data, KEY_MODE if path.suffix == ".key" else CERTIFICATE_MODE)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise precondition(
            "PKI_MISSING",
            f"{path} does not exist.",
            remedy="`gugus cluster init` (first host) or `gugus-agent join TOKEN` (others) makes it.",
            subject=str(path),
        ) from None
    except OSError as error:
        raise precondition(
            "PKI_UNREADABLE",
            f"{path} cannot be read: {error.strerror}.",
            remedy="Private keys are readable by their owner only: run this as root.",
            subject=str(path),
        ) from error


def _invalid(path: Path, why: str) -> GugusError:
    return precondition("PKI_INVALID", f"{path} cannot be used: {why}.", subject=str(path))
