"""An identity: one role of one name in one cluster, as certificates carry it (`gugus://<cluster id>/<role>/<name>`).

Invariant: parsing is strict, so that two different texts never mean the same identity.
"""

import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A host label, lower case (RFC 1123, section 2.1, and RFC 1035 for the 63 characters)."""

_URI = re.compile(rf"gugus://(?P<cluster>{LABEL.pattern})/(?P<role>node|manager|operator)/(?P<name>{LABEL.pattern})")
_COMMON_NAME_MAX = 64  # ub-common-name of RFC 5280, appendix A


class Role(StrEnum):
    """What a certificate lets its holder act as."""

    NODE = "node"
    MANAGER = "manager"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate speaks for. Raises ValueError when a part is not a lower-case host label."""

    cluster_id: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        for part, value in (("cluster id", self.cluster_id), ("name", self.name)):
            if not LABEL.fullmatch(value):
                raise ValueError(f'the {part} "{value}" is not a host label (lower-case letters, digits, inner "-")')

    @classmethod
    def parse(cls, uri: str) -> "Identity":
        """Read an identity from its URI. Raises ValueError unless it is exactly of the form that `uri` gives."""
        match = _URI.fullmatch(uri)
        if not match:
            raise ValueError(f'"{uri}" is not of the form gugus://<cluster id>/<node|manager|operator>/<name>')
        return cls(match["cluster"], Role(match["role"]), match["name"])

    @property
    def uri(self) -> str:
        """The URI that stands as subject alternative name in the certificate."""
        return f"gugus://{self.cluster_id}/{self.role}/{self.name}"

    @property
    def common_name(self) -> str:
        """The subject's common name, for people; cut to what X.509 allows. Never used to decide anything."""
        return f"{self.role}:{self.name}"[:_COMMON_NAME_MAX]

    @property
    def dns_name(self) -> str:
        """The DNS name by which a TLS client verifies exactly this identity; it is in no zone."""
        return f"{self.name}.{any_of(self.role, self.cluster_id)}"

    def __str__(self) -> str:
        return f"{self.role} {self.name}"


def any_of(role: Role, cluster_id: str) -> str:
    """Return the DNS name that every certificate of a role in a cluster carries: "some manager of this cluster"."""
    return f"{role}.{cluster_id}.gugus"


def new_cluster_id() -> str:
    """Return a fresh random cluster id (64 bits as 16 hexadecimal digits)."""
    return secrets.token_hex(8)
