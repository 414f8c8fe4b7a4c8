"""What callers of consensus see: members, timings, leadership, errors, and the state machine that they provide.

Invariant: values only; nothing here knows the library, a thread or a socket.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

MAX_PAYLOAD_BYTES = 48 * 1024 - 1
"""Largest payload of a proposal: below 48 KiB, so that an entry never reaches the library's broken path for 64 KiB."""

MAX_PIECE_BYTES = 4 * 1024 * 1024
"""Largest piece of a state machine's snapshot; what claims to be larger is refused before it is unpacked."""

RAFT_PORT = 7444
"""Default Raft port of a manager."""


class StateMachine(Protocol):
    """The replicated state. All methods are called in the consensus thread, never concurrently."""

    def apply(self, index: int, payload: bytes) -> bytes:
        """Apply a committed payload and return its result. Deterministic; an error is a result.

        It raises only when going on would make this member differ from others: for what a newer release wrote. Then the member stops.
        """
        ...

    def snapshot(self) -> Iterator[bytes]:
        """Return the state as of this call, in pieces of at most MAX_PIECE_BYTES.

        The pieces may be drawn later and in another thread, while `apply` goes on.
        """
        ...

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Replace the whole state by what `snapshot` yielded. Raises ValueError when it cannot; then nothing has changed."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A voter: its name (as in its certificate), where its Raft port is reached, and which life of that name it is.

    `uid` is that of its data folder (incarnation.py); empty where it is not known, which stands for any.
    """

    name: str
    host: str
    port: int = RAFT_PORT
    uid: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.host or not 0 < self.port < 65536:
            raise ValueError(f"member {self.name!r} at {self.host!r}:{self.port}: needs a name, a host, a port 1-65535")


@dataclass(frozen=True, slots=True)
class Timings:
    """Times in seconds. The relation between them is that of section 5.6 of the Raft paper: round trip << election."""

    election_min_s: float = 1.0
    """A follower that hears no leader campaigns after between this and `election_max_s`."""
    election_max_s: float = 1.6
    heartbeat_s: float = 0.25
    """Time between two messages of an idle leader to a voter: four of them fit into the shortest election timeout."""
    leader_fallback_s: float = 1.5
    """A leader that hears no majority for so long stops being one: within the election timeout of the others."""
    retransmit_s: float = 0.6
    """A message with entries that was not answered is sent again after this."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that bound memory, messages and the length of the log."""

    compact_after_entries: int = 20_000
    """Entries applied since the last snapshot that make the next one due."""
    compact_after_bytes: int = 32 * 1024 * 1024
    """Bytes of commands since the last snapshot that make the next one due, or half the snapshot's size if that is more."""
    keep_entries: int = 1_000
    """Entries before a snapshot that stay in the log, so that a member a little behind needs no snapshot."""
    append_bytes: int = 256 * 1024
    """Bytes of commands in one message."""
    window_messages: int = 2
    """Messages with entries sent to a member and not yet answered: under load more entries then share a message and a sync."""
    chunk_bytes: int = 256 * 1024
    """Bytes of a snapshot in one message."""
    pending_proposals: int = 10_000
    """Proposals waiting for their commit; more are refused."""
    snapshot_bytes: int = 1 << 32
    """Largest snapshot accepted from a leader."""
    segment_bytes: int = 16 * 1024 * 1024
    """Size of a segment of the journal, less its reserve."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of the cluster's CA certificate and of this manager's certificate and key, PEM."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ConsensusConfig:
    """One member's configuration.

    `voters` are used at the first start only (later the disk knows them) and for addresses of peers not yet learnt.
    `joining` says at the first start that the cluster exists already: the member waits to be added and never
    campaigns before it has learnt from the cluster that it is a voter. A founding member has it False.
    """

    me: str
    voters: tuple[Member, ...]
    data_dir: Path
    tls: TlsFiles
    listen_host: str = "0.0.0.0"  # noqa: S104 - a server of the cluster; access is by certificate
    listen_port: int = RAFT_PORT
    joining: bool = False
    timings: Timings = field(default_factory=Timings)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        names = [voter.name for voter in self.voters]
        if len(set(names)) != len(names):
            raise ValueError(f"voters: a name appears twice in {names}")
        if self.me not in names:
            raise ValueError(f"me: {self.me!r} is none of the voters {names}")


class Role(StrEnum):
    """What a member is at the moment."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Another member as seen from here; `match_index` (known equal, on its disk) is 0 unless we lead."""

    name: str
    connected: bool
    match_index: int


@dataclass(frozen=True, slots=True)
class StorageStatus:
    """How this member's disk does: journal, snapshot, and the time that syncs take."""

    journal_bytes: int = 0
    """Bytes of all segments of the journal."""
    journal_segments: int = 0
    snapshot_bytes: int = 0
    snapshot_at_s: float = 0.0
    """Wall clock when the newest snapshot was made or received, seconds since 1970; 0 when that is not known."""
    syncs: int = 0
    """Syncs of the journal since the member started."""
    sync_seconds: float = 0.0
    """Time that all of them took."""
    sync_p99_s: float = 0.0
    """99th percentile of the last 1,000 syncs."""
    free_bytes: int = 0
    """Room on the file system of the data folder, when it was last looked at."""
    total_bytes: int = 0
    full: bool = False
    """No room for another segment: writes are refused until there is."""
    cut_bytes: int = 0
    """Torn tail that the last start cut from the journal: writes under way at a crash, promised to nobody."""


@dataclass(frozen=True, slots=True)
class Leadership:
    """A member's view at one moment. Role LEADER is Raft's and no fencing: two may believe it for a while."""

    role: Role = Role.STOPPED
    term: int = 0
    leader: str | None = None
    commit_index: int = 0
    applied_index: int = 0
    last_log_index: int = 0
    snapshot_index: int = 0
    voters: tuple[Member, ...] = ()
    peers: tuple[PeerStatus, ...] = ()
    failure: str | None = None
    """Why the member stopped by itself, if it did."""
    level: int = 1
    """The cluster's level: which rules its members apply (docs/decisions/0007)."""
    storage: StorageStatus = StorageStatus()


class ConsensusError(Exception):
    """Base of what consensus raises."""


class NotLeader(ConsensusError):
    """This member does not lead; nothing was proposed. `leader` is who does, if known."""

    def __init__(self, leader: str | None) -> None:
        super().__init__(f"not the leader; {f'ask {leader}' if leader else 'no leader is known, try again shortly'}")
        self.leader = leader


class ProposalTimeout(ConsensusError):
    """The outcome is unknown: the payload may be committed, now, later or never."""


class Unavailable(ConsensusError):
    """Consensus cannot serve this now and nothing was proposed."""


class PayloadTooLarge(ConsensusError, ValueError):
    """A payload of 48 KiB or more."""

    def __init__(self, size: int) -> None:
        super().__init__(f"payload: {size} bytes; at most {MAX_PAYLOAD_BYTES} fit in one entry, split the transaction")


class MembershipRefused(ConsensusError):
    """A change of voters that cannot be made now, and why."""


class CorruptState(ConsensusError):
    """A file on the disk is damaged in a way that a power cut does not explain; the member refuses to start."""
