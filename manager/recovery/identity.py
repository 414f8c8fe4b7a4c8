"""Certificates and configuration of a host in its cluster's new life: the same keys, the new id.

Invariant: every step looks at what is there and may be repeated; keys are never made anew where there is one, so that the node's key, which
the state knows, and the owners of the files stay as they are.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.config import ManagerConfig, Voter, dump, load_agent
from common.errors import GugusError, precondition
from common.files import write_atomic
from common.identity.ca import CertificateAuthority, key_of, make_csr
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.identity.store import Pki

OPERATOR = "admin"
"""Name in the certificate of an operator that is made where there is none."""


def node_key_sha256(pki: Pki) -> bytes:
    """Return SHA-256 of the key that this host is a node by; empty when it is none."""
    return key_of(pki.crt(Role.NODE).read_bytes()) if pki.has(Role.NODE) else b""


def renew_pki(pki: Pki, cluster_name: str, cluster_id: str, name: str, address: str) -> None:
    """Give the CA and this host's certificates the new id. An operator is made when there is none: somebody has to go on."""
    authority = pki.load_ca()
    if authority.cluster_id != cluster_id:
        authority = authority.renamed(cluster_id, cluster_name)
    pki.save_ca(authority, replace=True)
    for role in (Role.NODE, Role.MANAGER):
        if pki.key(role).exists():
            pki.save(
                role, _certified(pki, role, authority, Identity(cluster_id, role, name), (address, name)), replace=True
            )
    operator = Identity(cluster_id, Role.OPERATOR, _operator(pki))
    if pki.key(Role.OPERATOR).exists():
        pki.save(Role.OPERATOR, _certified(pki, Role.OPERATOR, authority, operator, ()), replace=True)
    else:
        pki.save(Role.OPERATOR, authority.issue(operator), replace=True)


def renew_configuration(etc: Path, config: ManagerConfig, cluster_id: str) -> ManagerConfig:
    """Name the new cluster, and this host as its only manager, in the files of a folder; return the manager's new configuration.

    The manager's comes last: it is what names the old cluster as long as anything does.
    """
    me = Voter(name=config.name, address=config.address, raft_port=config.raft_port, port=config.port)
    agent_file, client_file = etc / "agent.yaml", etc / "client.yaml"
    if agent_file.exists():
        agent = dataclasses.replace(load_agent(agent_file), cluster_id=cluster_id, managers=(me.endpoint,))
        write_atomic(agent_file, dump(agent).encode())
    write_atomic(client_file, _client(client_file, config, cluster_id, me.endpoint).encode())
    renewed = dataclasses.replace(config, cluster_id=cluster_id, voters=(me,), bootstrap=False)
    write_atomic(etc / "manager.yaml", dump(renewed).encode())
    return renewed


def _certified(
    pki: Pki, role: Role, authority: CertificateAuthority, identity: Identity, addresses: Sequence[str]
) -> Credentials:
    key_pem = pki.key(role).read_bytes()
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except ValueError as error:
        raise _unusable(pki.key(role), str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unusable(pki.key(role), "it is none of the curve P-256")
    certificate = authority.sign_csr(make_csr(identity, key), identity, addresses=addresses)
    return Credentials(authority.cert_pem, certificate, key_pem)


def _operator(pki: Pki) -> str:
    return pki.credentials(Role.OPERATOR).identity.name if pki.has(Role.OPERATOR) else OPERATOR


def _client(file: Path, config: ManagerConfig, cluster_id: str, endpoint: str) -> str:
    """Return the client's configuration; what else an existing one says is kept."""
    there = yaml.safe_load(file.read_text()) if file.exists() else None
    settings = there if isinstance(there, dict) else {}
    pki = Pki(config.pki_dir)
    files = {"ca_crt": pki.ca_crt, "operator_crt": pki.crt(Role.OPERATOR), "operator_key": pki.key(Role.OPERATOR)}
    settings |= {"cluster_name": config.cluster_name, "cluster_id": cluster_id, "endpoints": [endpoint]}
    return yaml.safe_dump({**{name: str(path) for name, path in files.items()}, **settings}, sort_keys=False)


def _unusable(path: Path, why: str) -> GugusError:
    return precondition("PKI_INVALID", f"{path} cannot be used: {why}.", subject=str(path))
