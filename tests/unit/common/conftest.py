"""A cluster CA and credentials of each role, made once a session because keys are slow to make."""

import pytest

from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role

CLUSTER_ID = "0123456789abcdef"


@pytest.fixture(scope="session")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(CLUSTER_ID, "test")


@pytest.fixture(scope="session")
def foreign_ca() -> CertificateAuthority:
    return CertificateAuthority.create(CLUSTER_ID, "test")


@pytest.fixture(scope="session")
def manager(ca: CertificateAuthority) -> Credentials:
    return ca.issue(Identity(CLUSTER_ID, Role.MANAGER, "n1"), addresses=["127.0.0.1"])


@pytest.fixture(scope="session")
def node(ca: CertificateAuthority) -> Credentials:
    return ca.issue(Identity(CLUSTER_ID, Role.NODE, "n2"), addresses=["127.0.0.1"])


@pytest.fixture(scope="session")
def operator(ca: CertificateAuthority) -> Credentials:
    return ca.issue(Identity(CLUSTER_ID, Role.OPERATOR, "root"))
