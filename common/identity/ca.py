"""The cluster's certificate authority: it decides whom a certificate speaks for, and signs nothing else.

Invariant: the identity in a certificate is the caller's decision, never taken from a signing request.
"""

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import GugusError, invalid
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role, any_of

CA_VALIDITY = timedelta(days=3650)
CERTIFICATE_VALIDITY = timedelta(days=365)
BACKDATE = timedelta(hours=1)
"""How long before its making a certificate is valid already, so that a host whose clock is behind accepts it."""


class CertificateAuthority:
    """The one CA of a cluster (EC P-256, valid 10 years)."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, cluster_id: str, cluster_name: str) -> "CertificateAuthority":
        """Make a new CA for a cluster; the subject carries the cluster's name and id."""
        return cls._self_signed(new_key(), cluster_id, cluster_name)

    def renamed(self, cluster_id: str, cluster_name: str) -> "CertificateAuthority":
        """Return a CA of the same key for another cluster id; certificates of the old one are refused by the new one's name."""
        return self._self_signed(self._key, cluster_id, cluster_name)

    @classmethod
    def _self_signed(
        cls, key: ec.EllipticCurvePrivateKey, cluster_id: str, cluster_name: str
    ) -> "CertificateAuthority":
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_name),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, cluster_id),
                x509.NameAttribute(NameOID.COMMON_NAME, "Gugus cluster CA"),
            ]
        )
        builder = (
            _builder(name, name, key.public_key(), CA_VALIDITY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, ca_pem: bytes, key_pem: bytes) -> "CertificateAuthority":
        """Load a CA. Raises ValueError when either part is damaged or they do not belong together."""
        key = serialization.load_pem_private_key(key_pem, password=None)
        certificate = x509.load_pem_x509_certificate(ca_pem)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise ValueError("the CA's key does not belong to its certificate")
        return cls(certificate, key)

    @property
    def cert_pem(self) -> bytes:
        """The CA certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The CA's private key; whoever has it can be anyone."""
        return key_to_pem(self._key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER certificate, hexadecimal: what join tokens pin."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def cluster_id(self) -> str:
        """The id of the cluster that this CA was made for."""
        return str(self._certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value)

    def issue(
        self, identity: Identity, *, addresses: Sequence[str] = (), valid_for: timedelta = CERTIFICATE_VALIDITY
    ) -> Credentials:
        """Make a fresh key and its certificate. `addresses` are IP addresses and DNS names of the host."""
        key = new_key()
        return Credentials(self.cert_pem, self._sign(key.public_key(), identity, addresses, valid_for), key_to_pem(key))

    def sign_csr(
        self,
        csr_pem: bytes,
        identity: Identity,
        *,
        addresses: Sequence[str] = (),
        valid_for: timedelta = CERTIFICATE_VALIDITY,
    ) -> bytes:
        """Certify the key of a signing request for `identity`; nothing but the key is taken from the request.

        Raises GugusError (field `csr_pem`) when the request is damaged, not signed by its key, or of a weak kind.
        """
        try:
            csr = x509.load_pem_x509_csr(csr_pem)
            key = csr.public_key()
            signed = csr.is_signature_valid
        except (ValueError, InvalidSignature) as error:
            raise _bad_csr(f"is not a PKCS#10 request in PEM ({error})") from None
        if not signed:
            raise _bad_csr("is not signed by the key that it names")
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise _bad_csr("must hold a key of the curve P-256")
        return self._sign(key, identity, addresses, valid_for)

    def _sign(
        self, key: ec.EllipticCurvePublicKey, identity: Identity, addresses: Sequence[str], valid_for: timedelta
    ) -> bytes:
        if identity.cluster_id != self.cluster_id:
            raise ValueError(f"this CA is of cluster {self.cluster_id} and does not sign for {identity.uri}")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name)])
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(subject, self._certificate.subject, key, valid_for)
            .add_extension(x509.SubjectAlternativeName(_alternative_names(identity, addresses)), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(issuer_key, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key (P-256)."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Encode a private key as unencrypted PKCS#8; keep it in files of mode 0600 only."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_csr(identity: Identity, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Make a signing request (PEM) that proves possession of `key`; the names in it are for people only."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM)


def fingerprint(cert_pem: bytes) -> str:
    """Return SHA-256 of the DER form of a PEM certificate, hexadecimal. Raises ValueError when it is damaged."""
    return x509.load_pem_x509_certificate(cert_pem).fingerprint(hashes.SHA256()).hex()


@lru_cache(maxsize=1024)
def identity_of(cert_pem: bytes) -> Identity:
    """Return whom a certificate speaks for: its only URI. Raises ValueError. The signature is TLS's to verify."""
    certificate = x509.load_pem_x509_certificate(cert_pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("the certificate has no subject alternative names") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"the certificate has {len(uris)} URIs, expected the one that names its holder")
    return Identity.parse(uris[0])


@lru_cache(maxsize=1024)
def key_of(cert_pem: bytes) -> bytes:
    """Return `key_sha256` of the key that a certificate (PEM) is for. Raises ValueError when it is damaged."""
    return key_sha256(x509.load_pem_x509_certificate(cert_pem).public_key())


def key_sha256(key: PublicKeyTypes) -> bytes:
    """Return SHA-256 of a public key's DER form: what tells two hosts of one name apart."""
    public = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).digest()


def expires_at(cert_pem: bytes) -> datetime:
    """Return when a certificate ends (UTC). Raises ValueError when it is damaged."""
    return x509.load_pem_x509_certificate(cert_pem).not_valid_after_utc


def _alternative_names(identity: Identity, addresses: Sequence[str]) -> list[x509.GeneralName]:
    """Names of a certificate: its URI; for hosts also the names by which clients verify them, and their addresses."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    if identity.role is Role.OPERATOR:
        return names
    for name in (identity.dns_name, any_of(identity.role, identity.cluster_id), identity.name):
        names.append(x509.DNSName(name))
    for address in dict.fromkeys(addresses):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            if address != identity.name:
                names.append(x509.DNSName(address))
    return names


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid_for: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + valid_for)
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _bad_csr(message: str) -> GugusError:
    return invalid("csr_pem", message, reason="CSR_INVALID", remedy="Run the join again; it makes a fresh request.")
