"""Certificates of a test cluster, and members on loopback with real TLS and real disks."""

import datetime
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manager.consensus import Consensus, ConsensusConfig, Limits, Member, Timings, TlsFiles

FAST = Timings(election_min_s=0.3, election_max_s=0.6, heartbeat_s=0.05, leader_fallback_s=0.6, retransmit_s=0.2)


DEFAULT = Limits()


class Ca:
    def __init__(self, folder: Path, cluster: str = "c1") -> None:
        self.folder, self.cluster = folder, cluster
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        self.certificate = self._build(self.name, self.key.public_key(), x509.BasicConstraints(True, None))
        (folder / "ca.crt").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            self.name, subject, key, x509.random_serial_number(), now, now + datetime.timedelta(1)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name: str, role: str = "manager", cluster: str | None = None) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        uri = x509.UniformResourceIdentifier(f"gugus://{cluster or self.cluster}/{role}/{name}")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role}:{name}")])
        certificate = self._build(subject, key.public_key(), x509.SubjectAlternativeName([uri]))
        stem = self.folder / f"{role}-{name}-{cluster or self.cluster}"
        files = TlsFiles(self.folder / "ca.crt", stem.with_suffix(".crt"), stem.with_suffix(".key"))
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


class Log:
    """A state machine that keeps its payloads."""

    def __init__(self) -> None:
        self.applied: list[bytes] = []

    def apply(self, index: int, payload: bytes) -> bytes:
        self.applied.append(payload)
        return b"ok:" + payload

    def snapshot(self) -> Iterator[bytes]:
        yield from list(self.applied)

    def restore(self, pieces: Iterable[bytes]) -> None:
        self.applied = list(pieces)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder, self.ca = folder, Ca(folder)
        self.members: dict[str, Member] = {}
        self.up: dict[str, Consensus] = {}
        self.logs: dict[str, Log] = {}

    def member(self, name: str) -> Member:
        return self.members.setdefault(name, Member(name, "127.0.0.1", free_port()))

    async def start(self, name: str, voters: list[str], joining: bool = False, limits: Limits = DEFAULT) -> Consensus:
        self.logs[name] = Log()
        consensus = Consensus(
            ConsensusConfig(
                name, tuple(self.member(v) for v in voters), self.folder / f"data-{name}", self.ca.issue(name),
                "127.0.0.1", self.member(name).port, joining, FAST, limits,
            ),
            self.logs[name],
        )  # fmt: skip
        await consensus.start()
        self.up[name] = consensus
        return consensus

    async def stop(self, name: str) -> None:
        await self.up.pop(name).stop()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for name in list(cluster.up):
        await cluster.stop(name)
