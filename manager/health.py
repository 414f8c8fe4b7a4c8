"""From the figures of a cluster's managers to what is wrong with them: each finding with a stable reason, a severity,
a sentence, and what to do.

Invariant: pure. The same sight gives the same findings, in `gugus cluster status` and in the alarms alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gugus.cluster.v1.cluster_pb2 import MEMBER_ROLE_LEADER, MEMBER_ROLE_STOPPED, Finding, MemberDisk, MemberStatus
from gugus.cluster.v1.event_pb2 import SEVERITY_ERROR, SEVERITY_INFO, SEVERITY_WARNING, Severity

from common.units import format_duration, format_size

LAG_ENTRIES = 1_000
"""A voter that lacks more entries is behind: the log keeps about so many for it (`Limits.keep_entries`), beyond which it
needs a whole snapshot, and until it has caught up the others do without it."""

SYNC_SLOW_US = 100_000
"""A 99th percentile of the syncs from which on a disk is slow: a change waits for two in a row, and the acting manager's
lease leaves its renewal 1 s."""

SYNC_BAD_US = 500_000
"""One that endangers leadership: twice as much is the shortest time after which followers look for another leader."""

SYNCS_MEANT = 100
"""Syncs before their 99th percentile is believed: among fewer it is just the slowest one."""

FREE_BYTES = 1 << 30
"""Room beside that for another snapshot below which a disk is nearly full: the journal grows by half of it at most between
two snapshots (10,000 entries of 48 KiB)."""

FREE_SHARE = 10
"""On a small file system a tenth of it will do instead."""

STATE_SHARE = 0.8
"""Of its quota, from which on the state is nearly full."""

MOST_VOTERS = 5
"""More voters survive more losses than hosts are lost at once, and make each change slower."""

CERTIFICATE_DAYS = 30
CERTIFICATE_LAST_DAYS = 7
"""Agents renew their certificates when four months are left (agent.certificates): by then they have failed for long."""

_NAMED = 3
"""Names that a sentence lists before it counts the rest."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The managers as one of them (`me`) sees them now.

    voters: their names. acting: who holds the managers' lease, "" when nobody. members: figures of those that answered,
    its own among them. silences: why each of the others did not.
    """

    cluster: str
    me: str
    voters: tuple[str, ...]
    acting: str
    members: Mapping[str, MemberStatus]
    silences: Mapping[str, str]
    disarmed: str = ""
    """Who switched HA off for the whole cluster, and why; "" while it is on."""
    former: tuple[str, ...] = ()
    """Nodes of the cluster before its recovery that have not joined anew."""
    idle_witnesses: tuple[str, ...] = ()
    """Witnesses that do not vote."""
    certificate_days: Mapping[str, float] = field(default_factory=dict)
    """For how many days the certificates of each host are good."""
    fence_agents: frozenset[str] = frozenset()
    """Programs that the nodes' fence devices are spoken to with."""
    short: str = ""
    """Which guests under HA would find no place after losses that the settings say must be possible; "" when there are none."""

    @property
    def own(self) -> MemberStatus:
        """What the manager that looks says of itself."""
        return self.members[self.me]

    @property
    def leading(self) -> MemberStatus | None:
        """The leader by its own word; None when it did not answer, or there is none."""
        claims = [member for member in self.members.values() if member.role == MEMBER_ROLE_LEADER]
        newest = max(claims, key=lambda member: member.term, default=None)
        return newest if newest is not None and newest.term >= self.own.term else None

    @property
    def leader(self) -> str:
        """Name of the leader, "" when none is known."""
        return self.leading.name if self.leading else self.own.leader

    @property
    def viewer(self) -> MemberStatus:
        """Whose connections count: the leader's, for it is the one whom voters must hear; without it, our own."""
        return self.leading or self.own

    @property
    def there(self) -> tuple[str, ...]:
        """Voters that take part, as far as the viewer knows."""
        reached = {self.viewer.name, *(peer.name for peer in self.viewer.peers if peer.connected)}
        stopped = {name for name, member in self.members.items() if member.role == MEMBER_ROLE_STOPPED}
        return tuple(voter for voter in self.voters if voter in reached - stopped)

    @property
    def majority(self) -> int:
        """Voters that must be there."""
        return len(self.voters) // 2 + 1

    def match_index(self, name: str) -> int:
        """Return up to where a member has the leader's log; 0 when that is not known."""
        leading = self.leading
        if leading is None:
            return 0
        if name == leading.name:
            return leading.last_log_index
        return next((peer.match_index for peer in leading.peers if peer.name == name), 0)

    def lag(self, name: str) -> int | None:
        """Return how many entries of the leader's log a member lacks; None when that is not known."""
        leading = self.leading
        if leading is None:
            return None
        match = self.match_index(name)
        if not match and name in self.members:  # the leader has not heard of it yet
            match = min(self.members[name].last_log_index, leading.last_log_index)
        return leading.last_log_index - match if match else None


def findings(sight: Sight) -> list[Finding]:
    """Return what is to be known of the managers, worst first."""
    found = [
        *_leadership(sight),
        *_voters(sight),
        *_each(sight),
        *_state(sight),
        *_certificates(sight),
        *_versions(sight),
    ]
    return sorted(found, key=lambda finding: -finding.severity)


def problems(found: list[Finding]) -> list[Finding]:
    """Return the findings that are to be mended."""
    return [finding for finding in found if finding.severity > SEVERITY_INFO]


def _leadership(sight: Sight) -> Iterator[Finding]:
    there, total = len(sight.there), len(sight.voters)
    if sight.me not in sight.voters or (sight.leading and sight.me not in _voters_of(sight.leading)):
        yield _of_node(
            "NOT_A_VOTER",
            sight.me,
            SEVERITY_ERROR,
            f"The manager on {sight.me}, which answers here, votes no more: its picture is old.",
            f"Ask another one (--endpoint HOST:PORT). `gugus cluster demote {sight.me}` stops this one.",
        )
        return
    if there < sight.majority:
        away = [voter for voter in sight.voters if voter not in sight.there]
        yield _of_cluster(
            "MAJORITY_LOST",
            sight,
            SEVERITY_ERROR,
            f"Only {there} of {total} voters {_is(there)} there, and {sight.majority} are needed: nothing can be changed.",
            f"Bring {_some(away)} back; if they are lost for ever, see docs/recovery.md.",
        )
    elif not sight.leader:
        yield _of_cluster(
            "NO_LEADER",
            sight,
            SEVERITY_ERROR,
            f"{there} of {total} voters are there, but they have no leader: nothing can be changed.",
            "They choose one within seconds; if not, look at `journalctl -u gugus-manager` and at their clocks and disks.",
        )
    elif not sight.acting:
        yield _of_cluster(
            "NOBODY_ACTS",
            sight,
            SEVERITY_WARNING,
            f"{sight.leader} leads, but no manager acts for the cluster yet.",
            "One will within seconds; if not, look at `journalctl -u gugus-manager` there.",
        )


def _voters(sight: Sight) -> Iterator[Finding]:
    there, total = len(sight.there), len(sight.voters)
    if sight.majority == there < total:
        away = [voter for voter in sight.voters if voter not in sight.there]
        yield _of_cluster(
            "QUORUM_AT_RISK",
            sight,
            SEVERITY_WARNING,
            f"{there} of {total} voters are there: one more loss stops all changes.",
            f"Bring {_some(away)} back, or promote another node and demote what is lost.",
        )
    if total == 2:
        sentence = "There are two voters, and each is needed: the loss of either stops all changes."
        yield _of_cluster("EVEN_VOTERS", sight, SEVERITY_WARNING, sentence, "Promote a third.")
    elif total % 2 == 0:
        sentence = f"There are {total} voters, which survive no more losses than {total - 1} do."
        yield _of_cluster("EVEN_VOTERS", sight, SEVERITY_WARNING, sentence, "Promote another one, or demote one.")
    elif total > MOST_VOTERS:
        sentence = f"There are {total} voters; each change waits for {sight.majority} of them."
        yield _of_cluster("MANY_VOTERS", sight, SEVERITY_WARNING, sentence, f"Demote down to {MOST_VOTERS}.")
    elif total == 1:
        sentence = "There is one voter: the loss of its disk loses the cluster's state."
        yield _of_cluster("ONE_VOTER", sight, SEVERITY_INFO, sentence, "Promote two more nodes.")
    for name in sight.idle_witnesses:
        sentence = f"{name} joined as a witness and does not vote: it is of no use yet."
        yield _of_node("WITNESS_IDLE", name, SEVERITY_WARNING, sentence, f"`gugus cluster promote {name}`.")


def _each(sight: Sight) -> Iterator[Finding]:
    for name in sight.voters:
        member = sight.members.get(name)
        yield from _presence(sight, name)
        if member is not None:
            yield from _disk(name, member.disk)
            yield from _fence_agents(sight, member)


def _presence(sight: Sight, name: str) -> Iterator[Finding]:
    member, silence = sight.members.get(name), sight.silences.get(name)
    lag = sight.lag(name)
    if member is not None and member.role == MEMBER_ROLE_STOPPED:
        sentence = f"The manager on {name} stopped taking part: {member.failure or 'it does not say why'}."
        remedy = f"Mend the cause, then `systemctl restart gugus-manager` on {name}; see its journal."
        yield _of_node("MEMBER_STOPPED", name, SEVERITY_ERROR, sentence, remedy)
    elif name not in sight.there:
        yield _away(sight, name, silence)
    elif silence is not None:
        sentence = f"{name} takes part, but does not tell of itself: {silence}."
        yield _of_node(
            "MEMBER_SILENT", name, SEVERITY_WARNING, sentence, "Is port 7443 open, and its release this one?"
        )
    elif lag is not None and lag > LAG_ENTRIES:
        sentence = f"{name} lags: it lacks {lag:,} entries of the log."
        remedy = "It catches up by itself; if not, look at its disk and at the network to it."
        yield _of_node("MEMBER_LAGS", name, SEVERITY_WARNING, sentence, remedy)


def _away(sight: Sight, name: str, silence: str | None) -> Finding:
    viewer = sight.viewer.name
    if silence is None:
        sentence = f"{name} answers, but {viewer} has no Raft connection with it."
        remedy = "Is port 7444 open between them, in both directions?"
    else:
        sentence = f"{name} is away: {viewer} has no connection with it, and it does not answer: {silence}."
        lost = f"; if it is lost for ever, `gugus cluster demote {name}` and promote another node"
        remedy = f"Bring it back{lost if len(sight.there) >= sight.majority else ''}."
    return _of_node("MEMBER_AWAY", name, SEVERITY_WARNING, sentence, remedy)


def _fence_agents(sight: Sight, member: MemberStatus) -> Iterator[Finding]:
    missing = sorted(sight.fence_agents - set(member.fence_agents))
    if missing and member.version == sight.own.version:  # an older release does not tell
        sentence = (
            f"The host of the manager on {member.name} lacks {_some(missing)}: while it acts, fence devices fail."
        )
        remedy = f"`apt-get install fence-agents` on {member.name}; leases prove lost hosts dead meanwhile."
        yield _of_node("FENCE_AGENT_MISSING", member.name, SEVERITY_WARNING, sentence, remedy)


def _disk(name: str, disk: MemberDisk) -> Iterator[Finding]:
    if disk.full:
        sentence = f"The disk of {name} is full: its manager accepts no writes."
        yield _of_node("DISK_FULL", name, SEVERITY_ERROR, sentence, "Free room; it goes on by itself.")
    elif disk.total_bytes and disk.free_bytes < room_needed(disk):
        sentence = f"The disk of {name} is nearly full: {format_size(disk.free_bytes)} of {format_size(disk.total_bytes)} are free."
        remedy = f"Free room, at least {format_size(room_needed(disk))}: a manager without room accepts no writes."
        yield _of_node("DISK_NEARLY_FULL", name, SEVERITY_WARNING, sentence, remedy)
    if disk.syncs >= SYNCS_MEANT and disk.sync_p99_us >= SYNC_SLOW_US:
        bad = disk.sync_p99_us >= SYNC_BAD_US
        sentence = f"The disk of {name} is {'far too' if bad else 'too'} slow: one sync in a hundred takes {_time(disk)} or more."
        remedy = "Does something else load it, or is it failing? Put the manager's state on a faster one."
        yield _of_node("DISK_SLOW", name, SEVERITY_ERROR if bad else SEVERITY_WARNING, sentence, remedy)
    if disk.cut_bytes:
        sentence = f"The last start of {name} cut a torn end of {format_size(disk.cut_bytes)} off its journal."
        remedy = "Nothing is to be done: those were writes under way at a crash, and nobody was promised them."
        yield _of_node("TAIL_CUT", name, SEVERITY_INFO, sentence, remedy)


def room_needed(disk: MemberDisk) -> int:
    """Return the free bytes below which a manager's disk is nearly full."""
    return min(disk.snapshot_bytes + FREE_BYTES, disk.total_bytes // FREE_SHARE)


def _state(sight: Sight) -> Iterator[Finding]:
    if sight.disarmed:
        yield _of_cluster(
            "HA_DISARMED",
            sight,
            SEVERITY_WARNING,
            f"HA is switched off ({sight.disarmed}): no guest is restarted elsewhere when its host is lost.",
            "`gugus cluster ha arm` when the work is done.",
        )
    if sight.former:
        yield _of_cluster(
            "FORMER_NODES",
            sight,
            SEVERITY_WARNING,
            f"The cluster was recovered, and {_some(sight.former)} {_is(len(sight.former))} not taken in yet: guests of before "
            "that are down are not started until then.",
            "`gugus-agent join --rejoin` there, or `gugus node remove NODE --off` for one that is off for good (docs/recovery.md).",
        )
    if sight.short:
        yield _of_cluster(
            "SPARE_ROOM_SHORT",
            sight,
            SEVERITY_WARNING,
            f"Too little room is left to survive every loss that the settings ask for: {sight.short}.",
            "Add a node or bring one back, make guests smaller or fewer, or ask for less: `gugus cluster set spare.nodes=0 spare.domain=`.",
        )
    size, quota = sight.viewer.state_bytes, sight.viewer.state_quota_bytes
    if quota and size >= STATE_SHARE * quota:
        full = size >= quota
        sentence = f"The state is {'' if full else 'nearly '}full: {format_size(size)} of {format_size(quota)}"
        yield _of_cluster(
            "STATE_FULL",
            sight,
            SEVERITY_ERROR if full else SEVERITY_WARNING,
            f"{sentence}{'; new objects are refused' if full else ''}.",
            "Delete guests, images and tokens that nobody needs; the cluster's own work goes on.",
        )


def _certificates(sight: Sight) -> Iterator[Finding]:
    for name, days in sorted(sight.certificate_days.items()):
        if days >= CERTIFICATE_DAYS:
            continue
        when = f"ends in {days:.0f} days" if days >= 1 else "ends within a day" if days >= 0 else "has ended"
        sentence = f"A certificate of {name} {when}, and was not renewed by its agent: nobody will speak with it then."
        remedy = (
            f"`journalctl -u gugus-agent` on {name} says why; restarting gugus-agent there tries at once. One that has ended, or whose "
            f"host was off for long: `gugus cluster token create --node {name}`, and there `gugus-agent join --force`."
        )
        severity = SEVERITY_ERROR if days < CERTIFICATE_LAST_DAYS else SEVERITY_WARNING
        yield _of_node("CERTIFICATE_ENDS", name, severity, sentence, remedy)


def _versions(sight: Sight) -> Iterator[Finding]:
    by_version: dict[str, list[str]] = {}
    for name in sight.voters:
        if name in sight.members:
            by_version.setdefault(sight.members[name].version, []).append(name)
    if len(by_version) > 1:
        each = "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(by_version.items()))
        sentence = f"The managers run different releases: {each}."
        yield _of_cluster("VERSIONS_DIFFER", sight, SEVERITY_INFO, sentence, "Finish the upgrade when you can.")


def _voters_of(leading: MemberStatus) -> set[str]:
    return {leading.name, *(peer.name for peer in leading.peers)}


def _time(disk: MemberDisk) -> str:
    return format_duration(disk.sync_p99_us / 1e6)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _of_cluster(reason: str, sight: Sight, severity: Severity.ValueType, sentence: str, remedy: str) -> Finding:
    about = f"cluster/{sight.cluster}"
    return Finding(reason=reason, severity=severity, about=about, sentence=sentence, remedy=remedy)


def _of_node(reason: str, name: str, severity: Severity.ValueType, sentence: str, remedy: str) -> Finding:
    return Finding(reason=reason, severity=severity, about=f"node/{name}", sentence=sentence, remedy=remedy)
