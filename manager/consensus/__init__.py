"""Consensus: pysyncobj made fit without a fork (rules H1 to H12), behind a face that hides it.

Invariant: nothing outside this package imports the library, and nothing in the face depends on it.
"""

from .face import Consensus
from .types import (
    MAX_PAYLOAD_BYTES,
    ConsensusConfig,
    ConsensusError,
    CorruptState,
    Leadership,
    Limits,
    Member,
    MembershipRefused,
    NotLeader,
    PayloadTooLarge,
    PeerStatus,
    ProposalTimeout,
    Role,
    StateMachine,
    StorageStatus,
    Timings,
    TlsFiles,
    Unavailable,
)

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Consensus",
    "ConsensusConfig",
    "ConsensusError",
    "CorruptState",
    "Leadership",
    "Limits",
    "Member",
    "MembershipRefused",
    "NotLeader",
    "PayloadTooLarge",
    "PeerStatus",
    "ProposalTimeout",
    "Role",
    "StateMachine",
    "StorageStatus",
    "Timings",
    "TlsFiles",
    "Unavailable",
]
