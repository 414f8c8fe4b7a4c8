"""What a surviving manager's folder holds, and whether it is right to make a new cluster of it.

Invariant: nothing is written here.
"""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.event_pb2 import Event
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node

from common.config import ManagerConfig
from common.errors import GugusError, precondition
from common.held_lease import held_s
from manager.consensus import CorruptState, Member
from manager.consensus.disk import FolderDisk
from manager.consensus.offline import Remains, examine, read_state
from manager.store import StoreState
from manager.store.kinds import T, decode, key_for

PROBE_TIMEOUT_S = 1.0
"""A manager that lives answers a connection within milliseconds."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is. answering: other voters at whose Raft port something answers. newest: the last event in the state."""

    remains: Remains
    state: StoreState
    clusters: Sequence[Cluster]
    nodes: Sequence[Node]
    guests: Sequence[Guest]
    newest: Event | None
    others: Sequence[Member]
    answering: Sequence[str]


def look(config: ManagerConfig, folder: Path) -> Survey:
    """Read a stopped member's folder. Raises GugusError STATE_UNREADABLE."""
    if not folder.is_dir():
        raise precondition(
            "NO_STATE",
            f"{folder} does not exist: this host holds no state of a cluster.",
            remedy="Recover on a host that was a voter, or `gugus cluster restore` with a backup.",
            subject=str(folder),
        )
    disk, state = FolderDisk(folder), StoreState()
    try:
        remains = examine(disk)
        read_state(disk, state)  # its pieces are drawn from `state` when they are needed
    except (CorruptState, OSError, ValueError) as error:
        raise precondition(
            "STATE_UNREADABLE",
            f"what {folder} holds cannot be read: {error}.",
            remedy="Recover on another surviving voter, or `gugus cluster restore` with a backup.",
            subject=str(folder),
        ) from error
    finally:
        disk.close()
    others = [voter for voter in remains.voters if voter.name != config.name]
    events = _all(state, Event)
    return Survey(
        remains,
        state,
        _all(state, Cluster),
        _all(state, Node),
        _all(state, Guest),
        max(events, key=lambda event: event.at.ToNanoseconds(), default=None),
        others,
        [voter.name for voter in others if _answers(voter)],
    )


def check(config: ManagerConfig, survey: Survey) -> None:
    """Raise a GugusError that says why no new cluster is to be made of this state, if one is not."""
    if len(survey.clusters) != 1:
        raise precondition(
            "STATE_INVALID",
            "this host's copy of the state holds no cluster: it was being added when the others were lost.",
            remedy="Recover on another surviving voter, or `gugus cluster restore` with a backup.",
        )
    if not any(voter.name == config.name and voter.uid in ("", survey.remains.uid) for voter in survey.remains.voters):
        raise precondition(
            "NOT_A_VOTER",
            f"{config.name} is none of the voters that its copy of the state names: others may have gone on without it.",
            remedy="Recover on a host that is one, or `gugus cluster restore` with a backup.",
        )
    if not survey.others:
        raise precondition(
            "NOTHING_LOST",
            f"{config.name} is the only voter: nothing is lost.",
            remedy="`systemctl start gugus-manager`, and look at its log if it does not start.",
        )
    if len(survey.answering) + 1 > len(survey.remains.voters) // 2:
        raise _lives(
            f"{', '.join(survey.answering)} answer at their Raft ports: with {config.name} they are a majority"
        )
    if (left_s := _lease_left_s(config)) > 0:
        raise _lives(
            f"this host's agent holds a lease for {left_s:.0f} more seconds, which an acting manager gave to it just now"
        )


def newest_age_s(survey: Survey) -> float | None:
    """Return how old the newest event in the state is, by this host's wall clock; None without events."""
    return None if survey.newest is None else max(0.0, time.time() - survey.newest.at.ToNanoseconds() / 1e9)


def _lease_left_s(config: ManagerConfig) -> float:
    try:
        return held_s(config.run_dir)
    except (OSError, ValueError) as error:
        raise precondition(
            "LEASE_UNKNOWN",
            f"it cannot be told whether this host's agent holds a lease: {error}.",
            remedy="Run this as root, with the agent running.",
        ) from error


def _lives(how: str) -> GugusError:
    return precondition(
        "MAJORITY_LIVES",
        f"the cluster is not lost: {how}.",
        remedy="Start gugus-manager here and look at `gugus cluster status` on each voter. To recover nevertheless, stop gugus-manager "
        "on the other voters first: guests would run twice if both clusters lived.",
    )


def _answers(voter: Member) -> bool:
    try:
        with socket.create_connection((voter.host, voter.port), PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


def _all(state: StoreState, kind: type[T]) -> list[T]:
    _, entries = state.list(key_for(kind, ""))
    return [decode(kind, entry.value, entry.mod_revision) for entry in entries]
