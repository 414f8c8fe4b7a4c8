"""`gugus cluster status`: what is wrong and what to do, worst first, and a row of figures for each manager."""

import time

from gugus.cluster.v1 import cluster_pb2
from gugus.cluster.v1.cluster_pb2 import ClusterStatus, Finding, MemberDisk, MemberRole, Voter
from gugus.cluster.v1.event_pb2 import SEVERITY_INFO

from client.cli.balance import show_balance
from client.cli.output import table
from client.cli.words import enum_word
from common.config import join_endpoint
from common.units import format_duration, format_size

COLUMNS = (
    "name", "address", "role", "state", "term", "applied", "lag", "journal", "snapshot", "sync p99", "free", "release",
)  # fmt: skip
_UNKNOWN = ("",) * 7
"""Of a manager that does not answer, all but the lag."""


def show_status(answer: ClusterStatus) -> None:
    """Write it for people."""
    print(_sentence(answer))
    for finding in answer.findings:
        _show_finding(finding)
    if not answer.findings:  # a manager of an older release has sentences only
        print("\n".join(f"problem: {problem}" for problem in answer.problems), end="\n" if answer.problems else "")
    if not answer.problems:
        print("Nothing is wrong.")
    show_balance(answer.balance)
    print()
    table(COLUMNS, [_row(answer, voter) for voter in answer.voters])


def role(voter: Voter) -> str:
    """Return what a manager is at the moment, in a word."""
    told = enum_word(MemberRole, voter.status.role, "MEMBER_ROLE_") if voter.HasField("status") else ""
    return told or ("leader" if voter.leader else "follower")


def _sentence(answer: ClusterStatus) -> str:
    connected = sum(voter.connected or voter.name == answer.answered_by for voter in answer.voters)
    leads = f"{answer.leader} leads (term {answer.term})" if answer.leader else f"nobody leads (term {answer.term})"
    acts = f"{answer.acting} acts (epoch {answer.epoch})" if answer.acting else "nobody acts"
    return (
        f"Cluster {answer.name} ({answer.cluster_id}), as {answer.answered_by} sees it: {connected} of "
        f"{len(answer.voters)} voters are there, {leads}, {acts}, entry {answer.commit_index} is committed and "
        f"{answer.applied_index} applied, revision {answer.revision}."
    )


def _show_finding(finding: Finding) -> None:
    kind = "problem" if finding.severity > SEVERITY_INFO else "note"
    lasts = f" (for {_age(finding.since.seconds)})" if finding.HasField("since") else ""
    print(f"{kind}: {finding.sentence}{lasts}")
    if finding.remedy:
        print(f"  what to do: {finding.remedy}")


def _row(answer: ClusterStatus, voter: Voter) -> tuple[str, ...]:
    endpoint = join_endpoint(voter.address, voter.port)
    if not voter.HasField("status"):
        return (voter.name, endpoint, role(voter), "does not answer", "", "", _lag(voter), *_UNKNOWN[2:])
    status, acts = voter.status, ", acts" if voter.name == answer.acting else ""
    return (
        voter.name,
        endpoint,
        f"{role(voter)}{acts}",
        _state(voter),
        str(status.term),
        str(status.applied_index),
        _lag(voter),
        *_disk(status.disk),
        status.version,
    )


def _state(voter: Voter) -> str:
    if voter.status.role == cluster_pb2.MEMBER_ROLE_STOPPED:
        return "stopped"
    return "ok" if voter.connected else "not connected"


def _lag(voter: Voter) -> str:
    if not voter.HasField("lag_entries"):
        return "unknown"
    entries = "entry" if voter.lag_entries == 1 else "entries"
    return f"{voter.lag_entries:,} {entries}" if voter.lag_entries else "none"


def _disk(disk: MemberDisk) -> tuple[str, ...]:
    taken = f", {_age(disk.snapshot_at.seconds)} ago" if disk.HasField("snapshot_at") else ""
    return (
        format_size(disk.journal_bytes) if disk.journal_bytes else "",
        f"{format_size(disk.snapshot_bytes)}{taken}" if disk.snapshot_bytes else "",
        f"{disk.sync_p99_us / 1000:.3g}ms" if disk.syncs else "",
        "none" if disk.full else format_size(disk.free_bytes) if disk.total_bytes else "",
    )


def _age(seconds: int) -> str:
    return format_duration(max(1, round(time.time() - seconds)))  # clocks of two hosts: never below
