"""What is found of managers, from their figures alone."""

from dataclasses import replace

import pytest
from gugus.cluster.v1 import cluster_pb2
from gugus.cluster.v1.cluster_pb2 import MEMBER_ROLE_FOLLOWER, MEMBER_ROLE_LEADER, MEMBER_ROLE_STOPPED, MemberStatus
from gugus.cluster.v1.event_pb2 import SEVERITY_ERROR, SEVERITY_INFO, SEVERITY_WARNING

from manager.health import FREE_BYTES, LAG_ENTRIES, SYNCS_MEANT, Sight, findings

LAST = 50_000
DISK = cluster_pb2.MemberDisk(syncs=10_000, sync_p99_us=900, free_bytes=50 << 30, total_bytes=100 << 30)


def sight(
    count: int = 3, away: tuple[str, ...] = (), silent: tuple[str, ...] = (), me: str = "n1", leader: str = "n1"
) -> Sight:
    """Return a healthy cluster's sight, but for those whom Raft does not reach (away) or whose API is silent."""
    voters = [f"n{index}" for index in range(1, count + 1)]
    members = {}
    for name in voters:
        role = MEMBER_ROLE_LEADER if name == leader else MEMBER_ROLE_FOLLOWER
        member = MemberStatus(
            name=name,
            version="1.0",
            role=role,
            term=7,
            leader=leader,
            last_log_index=LAST,
            applied_index=LAST,
            disk=DISK,
        )
        for peer in voters:
            if peer != name:
                match = LAST if name == leader else 0
                member.peers.add(name=peer, connected=peer not in away, match_index=match)
        members[name] = member
    return Sight(
        cluster="test",
        me=me,
        voters=tuple(voters),
        acting=leader,
        members={name: member for name, member in members.items() if name not in {*away, *silent} or name == me},
        silences=dict.fromkeys({*away, *silent} - {me}, "Connection refused"),
    )


def reasons(of: Sight) -> list[str]:
    return [finding.reason for finding in findings(of)]


def sentence(of: Sight, reason: str) -> str:
    return next(finding.sentence for finding in findings(of) if finding.reason == reason)


@pytest.mark.parametrize("count", [3, 5])
def test_of_a_healthy_cluster_nothing_is_found_by_any_manager(count: int) -> None:
    for me in ("n1", "n2", "n3"):
        assert findings(sight(count, me=me)) == []


def test_host_of_a_manager_that_lacks_a_fence_agent_is_found() -> None:
    seen = replace(sight(), fence_agents=frozenset({"fence_ipmilan", "fence_apc"}))
    for name, has in (("n1", ["fence_apc", "fence_ipmilan"]), ("n2", ["fence_apc"]), ("n3", [])):
        seen.members[name].fence_agents.extend(has)
    seen.members["n3"].version = "0.9"
    assert reasons(seen) == ["FENCE_AGENT_MISSING", "VERSIONS_DIFFER"], "an older release does not tell"
    assert "n2 lacks fence_ipmilan" in sentence(seen, "FENCE_AGENT_MISSING")


@pytest.mark.parametrize(
    ("days", "severity", "words"),
    [
        (29.6, SEVERITY_WARNING, "ends in 30 days"),
        (6.4, SEVERITY_ERROR, "ends in 6 days"),
        (0.5, SEVERITY_ERROR, "ends within a day"),
        (-2, SEVERITY_ERROR, "has ended"),
    ],
)
def test_certificates_that_end_are_told_of_in_time(days: float, severity: int, words: str) -> None:
    (found,) = findings(replace(sight(), certificate_days={"n1": 31.0, "n9": days}))
    assert (found.reason, found.about, found.severity) == ("CERTIFICATE_ENDS", "node/n9", severity)
    assert words in found.sentence


def test_one_voter_is_worth_a_note_and_even_numbers_a_warning() -> None:
    assert [(f.reason, f.severity) for f in findings(sight(1))] == [("ONE_VOTER", SEVERITY_INFO)]
    assert [(f.reason, f.severity) for f in findings(sight(2))] == [("EVEN_VOTERS", SEVERITY_WARNING)]
    assert "each is needed" in sentence(sight(2), "EVEN_VOTERS")
    assert "no more losses than 3 do" in sentence(sight(4), "EVEN_VOTERS")
    assert reasons(sight(7)) == ["MANY_VOTERS"]


def test_two_of_three_are_a_quorum_at_risk_and_four_of_five_are_not() -> None:
    assert reasons(sight(3, away=("n3",))) == ["QUORUM_AT_RISK", "MEMBER_AWAY"]
    assert sentence(sight(3, away=("n3",)), "QUORUM_AT_RISK") == (
        "2 of 3 voters are there: one more loss stops all changes."
    )
    assert reasons(sight(5, away=("n3",))) == ["MEMBER_AWAY"]
    assert reasons(sight(5, away=("n3", "n4"))) == ["QUORUM_AT_RISK", "MEMBER_AWAY", "MEMBER_AWAY"]


def test_a_lost_majority_comes_first_whether_or_not_the_leader_knows_yet() -> None:
    for leader in ("n1", ""):
        found = findings(sight(3, away=("n2", "n3"), leader=leader))
        assert (found[0].reason, found[0].severity) == ("MAJORITY_LOST", SEVERITY_ERROR)
        assert "Only 1 of 3 voters is there, and 2 are needed" in found[0].sentence
        assert "n2, n3" in found[0].remedy


def test_without_a_leader_it_is_said_that_the_others_are_there() -> None:
    assert reasons(sight(leader="")) == ["NO_LEADER"]
    assert "3 of 3 voters are there" in sentence(sight(leader=""), "NO_LEADER")


def test_a_leader_that_only_others_hear_is_believed_and_the_cut_off_one_is_away() -> None:
    """n1 is asked, and hears nothing over Raft; the API of the others answers."""
    seen = sight(leader="n2", me="n1")
    own = seen.members["n1"]
    own.leader = ""
    for peer in own.peers:
        peer.connected = False
    next(peer for peer in seen.members["n2"].peers if peer.name == "n1").connected = False
    assert seen.leader == "n2"
    assert reasons(seen) == ["QUORUM_AT_RISK", "MEMBER_AWAY"]
    assert "n1 answers, but n2 has no Raft connection with it" in sentence(seen, "MEMBER_AWAY")


def test_a_leader_of_an_older_term_is_not_believed() -> None:
    seen = sight(leader="n2", me="n1")
    seen.members["n1"].term, seen.members["n1"].leader = 8, ""
    assert seen.leader == ""


def test_a_silent_api_is_told_from_a_member_that_is_away() -> None:
    assert reasons(sight(silent=("n3",))) == ["MEMBER_SILENT"]
    assert "Connection refused" in sentence(sight(silent=("n3",)), "MEMBER_SILENT")


def test_a_removed_manager_says_so_of_itself() -> None:
    seen = sight(me="n3")
    del seen.members["n1"].peers[1]  # the leader has n2 only
    assert reasons(seen)[0] == "NOT_A_VOTER"


def test_lag_is_told_in_entries_as_the_leader_sees_it() -> None:
    seen = sight(me="n2")
    peer = seen.members["n1"].peers[1]
    peer.match_index = LAST - LAG_ENTRIES
    assert (seen.lag("n3"), findings(seen)) == (LAG_ENTRIES, [])
    peer.match_index -= 4_230
    assert sentence(seen, "MEMBER_LAGS") == "n3 lags: it lacks 5,230 entries of the log."
    peer.match_index, seen.members["n3"].last_log_index = 0, LAST - 7
    assert seen.lag("n3") == 7, "the leader has not heard of it yet: its own word"
    assert sight(leader="").lag("n3") is None


def test_a_stopped_member_tells_why_and_does_not_count() -> None:
    seen = sight()
    seen.members["n3"].role, seen.members["n3"].failure = MEMBER_ROLE_STOPPED, "OSError: no"
    assert reasons(seen) == ["MEMBER_STOPPED", "QUORUM_AT_RISK"]
    assert "stopped taking part: OSError: no." in sentence(seen, "MEMBER_STOPPED")


@pytest.mark.parametrize(
    ("p99_us", "syncs", "expected"),
    [
        (99_999, 1_000, []),
        (100_000, 1_000, [("DISK_SLOW", SEVERITY_WARNING)]),
        (500_000, 1_000, [("DISK_SLOW", SEVERITY_ERROR)]),
        (500_000, SYNCS_MEANT - 1, []),
    ],
)
def test_a_slow_disk_is_found_once_there_are_syncs_enough(
    p99_us: int, syncs: int, expected: list[tuple[str, int]]
) -> None:
    seen = sight()
    seen.members["n2"].disk.sync_p99_us, seen.members["n2"].disk.syncs = p99_us, syncs
    assert [(f.reason, f.severity) for f in findings(seen)] == expected
    assert all(f.about == "node/n2" for f in findings(seen))


@pytest.mark.parametrize(
    ("free", "total", "snapshot", "expected"),
    [
        (FREE_BYTES, 100 << 30, 0, []),
        (FREE_BYTES - 1, 100 << 30, 0, ["DISK_NEARLY_FULL"]),
        (FREE_BYTES, 100 << 30, 1, ["DISK_NEARLY_FULL"]),
        (100 << 20, 900 << 20, 0, []),
        (80 << 20, 900 << 20, 0, ["DISK_NEARLY_FULL"]),
        (0, 0, 0, []),
    ],
)
def test_a_nearly_full_disk_is_found(free: int, total: int, snapshot: int, expected: list[str]) -> None:
    seen = sight()
    disk = seen.members["n2"].disk
    disk.free_bytes, disk.total_bytes, disk.snapshot_bytes = free, total, snapshot
    assert reasons(seen) == expected


def test_a_full_disk_is_an_error_and_its_manager_accepts_no_writes() -> None:
    seen = sight()
    seen.members["n2"].disk.full = True
    found = findings(seen)
    assert [(f.reason, f.severity) for f in found] == [("DISK_FULL", SEVERITY_ERROR)]
    assert "accepts no writes" in found[0].sentence


@pytest.mark.parametrize(
    ("size", "expected"),
    [(79, []), (80, [("STATE_FULL", SEVERITY_WARNING)]), (100, [("STATE_FULL", SEVERITY_ERROR)])],
)
def test_a_state_near_its_quota_is_found(size: int, expected: list[tuple[str, int]]) -> None:
    seen = sight()
    seen.members["n1"].state_bytes, seen.members["n1"].state_quota_bytes = size, 100
    assert [(f.reason, f.severity) for f in findings(seen)] == expected


def test_a_torn_tail_and_different_releases_are_notes() -> None:
    seen = sight()
    seen.members["n2"].disk.cut_bytes, seen.members["n3"].version = 512, "1.1"
    assert [(f.reason, f.severity) for f in findings(seen)] == [
        ("TAIL_CUT", SEVERITY_INFO),
        ("VERSIONS_DIFFER", SEVERITY_INFO),
    ]
    assert "1.0 on n1, n2; 1.1 on n3" in sentence(seen, "VERSIONS_DIFFER")


def test_whatever_is_to_be_mended_says_what_to_do_in_sentences() -> None:
    seen = sight(5, away=("n4", "n5"), silent=("n3",))
    seen.members["n2"].disk.full, seen.members["n1"].disk.sync_p99_us = True, 600_000
    found = findings(seen)
    assert [f.severity for f in found] == sorted((f.severity for f in found), reverse=True)
    for finding in found:
        assert finding.remedy.endswith((".", "?"))
        assert finding.sentence.endswith(".")


def test_hosts_of_before_a_recovery_are_named_until_they_are_taken_in() -> None:
    seen = replace(sight(3), former=("n7", "n8"))
    assert reasons(seen) == ["FORMER_NODES"]
    assert "n7, n8 are not taken in yet" in sentence(seen, "FORMER_NODES")
