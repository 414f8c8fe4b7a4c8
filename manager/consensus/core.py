"""One Raft member without threads, sockets or clocks of its own: the library made fit by rules H1 to H8, H11 and H12.

Invariant: nothing that promises an entry, a term or a vote leaves before it is durable, and no entry is applied before
it is. Whoever drives a core calls `receive` for each message, and `turn` after any of them and when `deadline` says;
exceptions from `turn` or `receive` are fatal: the member must stop (a disk that failed cannot be trusted again).

`_SyncObj__name` are the library's private methods and fields; overriding them in a subclass is how the rules get in.
"""

import math
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from .acquaintances import Acquaintances
from .command import RaiseLevel, decode_command, encode_data
from .disk import Disk
from .disk_figures import DiskFigures
from .incarnation import founders, open_uid
from .journal import Journal
from .level import Levels
from .library import (
    CANDIDATE,
    COMMAND,
    FOLLOWER,
    LEADER,
    NO_OP,
    Message,
    Node,
    SyncObj,
    SyncObjConf,
    Transport,
    node_of,
    now,
)
from .membership import Membership
from .prevote import PreVote
from .reads import ReadRounds
from .replication import Replication
from .segment import REMEDY
from .snapshot import SNAPSHOT_FILE, SnapshotFile
from .snapshots import Background, Snapshots
from .types import (
    MAX_PAYLOAD_BYTES,
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
    Timings,
    Unavailable,
)

Outcome = Callable[[bytes | Exception], None]
"""Called once with the result of a proposal, or with why there is none."""

_COUNTED = frozenset({"response_vote", "next_node_idx", "snapshot_received", "pre_vote_granted", "higher_term"})
"""Messages that count towards a majority, or against our leadership: only those of the voters themselves."""

_SENT_BEFORE_SYNC = frozenset({"append_entries", "snapshot_chunk"})
"""Messages that promise nothing of the sender's own log: the leader counts itself only after its sync."""

_PAST_S = 0.001
"""The library acts when a time has passed, not when it is reached."""
_LEADER_GONE_S = (0.02, 0.2)
"""Pause before a follower whose leader hung up asks the others: spread, so that one comes first."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a core is told at construction. `voters`, `joining` and `uid` matter at the first start only.

    uid: that of the data folder; empty to have one made.
    """

    me: str
    voters: tuple[Member, ...]
    joining: bool = False
    timings: Timings = field(default_factory=Timings)
    limits: Limits = field(default_factory=Limits)
    uid: str = ""


class _Wire(Transport):  # type: ignore[misc]
    """The library's transport: hands what it sends to the core."""

    def __init__(self, core: "RaftCore") -> None:
        super().__init__(core, None, [])
        self._core = core

    def send(self, node: Node, message: Message) -> bool:
        """Give a message to the core; the library never asks whether it arrived."""
        self._core.outgoing(node.id, message)
        return True


class RaftCore(SyncObj):  # type: ignore[misc]
    """A member. Raises CorruptState or OSError at construction when its disk cannot be used."""

    _SyncObj__newAppendEntriesTime: float

    def __init__(
        self,
        setup: Setup,
        disk: Disk,
        machine: StateMachine,
        send: Callable[[str, Message], None],
        rng: random.Random,
        background: Background,
    ) -> None:
        self.me = setup.me
        self.timings = setup.timings
        self.limits = setup.limits
        self.rng = rng
        self.machine = machine
        self.disk = disk
        self.journal = self.open_journal(disk)
        self.uid = open_uid(disk, setup.uid, rng, first_start=SNAPSHOT_FILE not in disk.names())
        self.acquaintances = Acquaintances(self, setup.voters)
        self.snapshots = self._open_snapshots(setup, background)
        newest = self.snapshots.newest
        self.levels = Levels(newest.level)
        self.after_apply: Callable[[], None] = lambda: None
        """Called in each turn when what was committed has been applied and answered."""
        self.send_due = False
        """Entries or snapshot pieces may wait for some member."""
        self.beat_due = False
        """Every member is due a message, with or without entries."""
        self.answered_round = 0
        self._quiet = False
        self._send = send
        self._held: list[tuple[str, Message]] = []
        self._figures = DiskFigures(disk, self.journal, self.snapshots)
        self._room_due: float | None = None
        self._outcomes: dict[int, Outcome] = {}
        self._leader_heard: float | None = None
        self._pre_vote = PreVote(self)
        self.replication = Replication(self)
        self.reads = ReadRounds(self)
        self.membership = Membership(self)
        super().__init__(node_of(setup.me), [], _library_config(setup.timings, self.journal), transport=_Wire(self))
        self._SyncObj__raftLastApplied = newest.index
        self._SyncObj__raftCommitIndex = max(self.journal.getRaftCommitIndex(), newest.index)
        self.membership.apply(newest.voters)
        self._SyncObj__applyLogEntries()
        self.journal.sync()
        if self.voter_names == {self.me}:
            self._SyncObj__raftElectionDeadline = now()

    # -- what its driver calls

    def turn(self) -> bool:
        """Do all that is due: send, sync, apply, decide. Return whether another turn is due at once."""
        if self.send_due:  # entries travel while our own disk syncs them
            self.send_due = False
            self.replication.send_all(beat=False)
        self._onTick()
        self.after_apply()
        self.reads.step()
        self.membership.step()
        self.membership.raise_level()
        self._look_for_room()
        self.replication.send_notes()
        if self.send_due or self.beat_due:
            beat, self.send_due, self.beat_due = self.beat_due, False, False
            self.replication.send_all(beat)
        again = self.journal.dirty and self.is_leader
        self.journal.sync()
        held, self._held = self._held, []
        for name, message in held:
            self._send(name, message)
        return again

    def deadline(self) -> float:
        """Return when the next turn is due if nothing happens before, on the clock of `now`."""
        if self.is_leader:
            due = [self._SyncObj__newAppendEntriesTime, self._fallback_at(), self.replication.deadline()]
        else:
            due = [self._SyncObj__raftElectionDeadline]
        if self._room_due is not None:
            due.append(self._room_due)
        return min(due) + _PAST_S

    def receive(self, sender: str, message: Message) -> None:
        """Handle a decoded message of an authenticated member; one of somebody who is none of ours is dropped."""
        kind = message["type"]
        if sender not in self.contacts or (kind in _COUNTED and not self.acquaintances.is_same_life(sender)):
            return
        if kind in ("append_entries", "snapshot_chunk", "request_vote") and message["term"] < self.term:
            self.outgoing(sender, {"type": "higher_term", "term": self.term})  # H7
            return
        handlers = {
            "append_entries": self._on_append_entries,
            "snapshot_chunk": self._on_snapshot_chunk,
            "request_vote": self._on_request_vote,
            "response_vote": self._on_vote,
            "next_node_idx": self._on_answer,
            "snapshot_received": self._on_answer,
            "higher_term": self._on_higher_term,
            "pre_vote": self._pre_vote.on_question,
            "pre_vote_granted": self._pre_vote.on_grant,
            "timeout_now": self._on_timeout_now,
            "leader_hint": self._on_leader_hint,
        }
        handlers[kind](sender, message)

    def propose(self, payload: bytes, outcome: Outcome) -> None:
        """Append a payload to the log. Raises NotLeader, Unavailable, PayloadTooLarge; then nothing was done."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(len(payload))
        if not self.is_leader:
            raise NotLeader(self.leader)
        if len(self._outcomes) >= self.limits.pending_proposals:
            raise Unavailable(f"{len(self._outcomes)} proposals wait for their commit; is a majority of voters up?")
        self.append(encode_data(payload), outcome)

    def append(self, command: bytes, outcome: Outcome) -> int:
        """Append a command as the leader and return its index; the outcome is unknown if we step down before.

        Raises Unavailable when the disk has no room; then nothing was done.
        """
        if self.journal.full:
            raise Unavailable(f"the disk of {self.me} is full: it accepts no write; free some room there")
        return self._append(bytes([COMMAND]) + command, outcome)

    def append_no_op(self, outcome: Outcome) -> int:
        """Append an empty entry, for which there is always room."""
        return self._append(bytes([NO_OP]), outcome)

    def _append(self, entry: bytes, outcome: Outcome) -> int:
        index = self.journal.last_index + 1
        self.journal.add(entry, index, self.term)
        self._outcomes[index] = outcome
        self._SyncObj__commandsWaitingCommit[index].append((self.term, self._resolver(index)))
        self.send_due = True
        return index

    def hand_over(self, name: str | None) -> str:
        """Ask a voter, or the most suitable one, to take over leadership; return its name. It may fail silently.

        Raises NotLeader, and MembershipRefused when the voter is not reached or lacks entries.
        """
        if not self.is_leader:
            raise NotLeader(self.leader)
        ready = sorted(
            v for v in self.voter_names & self.connected_names if self.match_index(v) == self.journal.last_index
        )
        if not ready or (name is not None and name not in ready):
            raise MembershipRefused(f"{name or 'no other voter'} is reached and has the whole log; ready: {ready}")
        successor = name or ready[0]
        self.outgoing(successor, {"type": "timeout_now", "term": self.term})
        return successor

    def peer_connected(self, name: str) -> None:
        """Note that messages reach a member now."""
        self._SyncObj__onNodeConnected(node_of(name))
        self.replication.forget(name)
        self.beat_due = self.beat_due or self.is_leader

    def peer_disconnected(self, name: str) -> None:
        """Note that messages reach a member no longer."""
        self._SyncObj__onNodeDisconnected(node_of(name))
        self.replication.forget(name)

    def peer_greeted(self, name: str, level: int, uid: str = "") -> None:
        """Note that a member connected to us: the newest level that its release can apply, 0 when that connection ended, and
        the uid of its data folder.

        A leader whose connection ends has most likely died: we do not wait for its silence. Nothing rests on it being true,
        for a majority must have lost its leader before a term is raised (H6).
        """
        self.levels.heard(name, level)
        self.acquaintances.greeted(name, uid if level else "")
        if not level and name == self.leader and not self.is_leader:
            self._leader_heard = None
            soon = now() + self.rng.uniform(*_LEADER_GONE_S)
            self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, soon)

    def introduced(self, member: Member) -> None:
        """Take note of a manager of our cluster that called and that we do not know."""
        self.acquaintances.introduced(member)

    @property
    def contacts(self) -> dict[str, Member]:
        """Members to talk with, by name."""
        return self.acquaintances.contacts

    def leadership(self) -> Leadership:
        """Return the present view."""
        connected = self.connected_names
        return Leadership(
            role=Role.LEADER if self.is_leader else Role.CANDIDATE if self.state == CANDIDATE else Role.FOLLOWER,
            term=self.term,
            leader=self.leader,
            commit_index=self.commit_index,
            applied_index=self.applied_index,
            last_log_index=self.journal.last_index,
            snapshot_index=self.snapshots.newest.index,
            voters=self.voters,
            peers=tuple(
                PeerStatus(v.name, v.name in connected, self.match_index(v.name) if self.is_leader else 0)
                for v in self.voters
                if v.name != self.me
            ),
            level=self.levels.level,
            storage=self._figures.status(),
        )

    def close(self) -> None:
        """Close the files and fail what waits."""
        self._fail_waiting("the member stops")
        self.disk.close()

    # -- views of the library's state

    @property
    def term(self) -> int:
        """Current term."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def state(self) -> int:
        """FOLLOWER, CANDIDATE or LEADER."""
        return int(self._SyncObj__raftState)

    @property
    def is_leader(self) -> bool:
        """Whether this member believes that it leads."""
        return self.state == LEADER

    @property
    def leader(self) -> str | None:
        """Name of the leader of this term, if known."""
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    @property
    def commit_index(self) -> int:
        """Highest index known committed."""
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        """Highest index applied."""
        return int(self._SyncObj__raftLastApplied)

    @property
    def voters(self) -> tuple[Member, ...]:
        """The voters in force here."""
        return self.membership.voters

    @property
    def voter_names(self) -> frozenset[str]:
        """Their names."""
        return self.membership.voter_names

    @property
    def connected_names(self) -> set[str]:
        """Members that messages reach."""
        return {node.id for node in self._SyncObj__connectedNodes}

    @property
    def term_started(self) -> bool:
        """Whether an entry of our own term as leader is committed and applied (Raft paper, section 5.4.2 and 8)."""
        return self.is_leader and self.applied_index >= self._SyncObj__noopIDx

    def match_index(self, name: str) -> int:
        """Return up to where a member's log is known to be ours."""
        return int(self._SyncObj__raftMatchIndex.get(node_of(name), 0))

    def leader_alive(self) -> bool:
        """Whether a leader was heard, or is us, within the shortest election timeout (H5)."""
        heard = self._leader_heard
        return self.is_leader or (heard is not None and now() - heard < self.timings.election_min_s)

    # -- messages

    def outgoing(self, name: str, message: Message) -> None:
        """Send a message, held back until the next sync if it promises anything (H8)."""
        if message["type"] == "request_vote":
            message = {**message, "transfer": self._pre_vote.by_transfer}
        if message["type"] in _SENT_BEFORE_SYNC:
            self._send(name, message)
        else:
            self._held.append((name, message))

    def to_library(self, sender: str, message: Message) -> None:
        """Let the library handle a message."""
        self._SyncObj__onMessageReceived(node_of(sender), message)

    def heard_leader(self, sender: str, term: int) -> bool:
        """Note a message of the leader of `term` (not older than ours); False if that is impossible and dropped."""
        if self.is_leader and term == self.term:
            return False
        self._leader_heard = now()
        self.acquaintances.leader_heard(sender)
        self._pre_vote.cancel()
        return True

    def capped_commit(self, message: Message) -> int:
        """Return the leader's commit index as far as this message vouches for our log (H2)."""
        return int(min(message["commit_index"], message["prevLogIdx"] + len(message["entries"])))

    def _on_append_entries(self, sender: str, message: Message) -> None:
        if not self.heard_leader(sender, message["term"]):
            return
        fitting = self.journal.fitting(message["entries"])
        if fitting < len(message["entries"]):
            message = {**message, "entries": message["entries"][:fitting]}
        commit = self.capped_commit(message)
        self.answered_round, self.journal.leader_commit = message["round"], commit
        self._quiet = message["quiet"]
        try:
            self.to_library(sender, {**message, "commit_index": commit})
        finally:
            self.answered_round = self.journal.leader_commit = 0
            self._quiet = False

    def _on_snapshot_chunk(self, sender: str, message: Message) -> None:
        if not self.heard_leader(sender, message["term"]):
            return
        self.to_library(sender, {"type": "append_entries", "term": message["term"], "commit_index": 0})
        self.answered_round = message["round"]
        self.replication.on_chunk(sender, message)
        self.answered_round = 0

    def _on_request_vote(self, sender: str, message: Message) -> None:
        if not message["transfer"] and self.leader_alive():  # H5
            return
        if not self.acquaintances.is_same_life(sender):  # it may have forgotten what it promised and what it had
            return
        theirs = (message["last_log_term"], message["last_log_index"])
        if theirs >= self.log_to_judge_by():  # if the library would judge by the tail of a removed voter: see there
            own = self.journal.last_index
            raised = max(theirs, (self.journal.term_at(own) or 0, own))
            message = {**message, "last_log_term": raised[0], "last_log_index": raised[1]}
        self.to_library(sender, message)

    def log_to_judge_by(self) -> tuple[int, int]:
        """Return term and index that a candidate's log must reach for our vote.

        A voter: the end of its log. One that was removed, as far as it knows, asks for what it knows to be committed only: behind
        that its log has no say any more, for a majority of the voters after it had to have what was committed since, and any
        majority that includes our vote has one of them. Else a voter that has not heard of the removal could need our vote and
        never get it, since nobody takes our last entries.
        """
        index = self.journal.last_index if self.me in self.voter_names else self.commit_index
        return self.journal.term_at(index) or 0, index

    def _on_vote(self, sender: str, message: Message) -> None:
        if sender in self.voter_names and self._pre_vote.first_vote(sender, message["term"]):
            self.to_library(sender, message)

    def _on_answer(self, sender: str, message: Message) -> None:
        if self.is_leader and message["term"] == self.term:  # H3
            self.replication.on_answer(sender, message)
            self.reads.on_answer(sender, message["round"])

    def _on_higher_term(self, _sender: str, message: Message) -> None:
        if message["term"] > self.term:
            self._SyncObj__setCurrentTerm(message["term"], None)
            self.step_down()

    def _on_timeout_now(self, sender: str, message: Message) -> None:
        if message["term"] == self.term and sender == self.leader:
            self._pre_vote.skip()

    def _on_leader_hint(self, _sender: str, message: Message) -> None:
        """A voter tells of a leader that may have become a voter while we were away."""
        with suppress(ValueError):
            self.acquaintances.introduced(Member(message["name"], message["host"], message["port"], message["uid"]))

    def step_down(self) -> None:
        """Become a follower that knows no leader."""
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None

    def install(self, file: SnapshotFile) -> None:
        """Replace state, voters and, unless it agrees, the log by a verified snapshot that is ahead of our commits.

        Raises CorruptState when the state machine cannot read it; then nothing has changed.
        """
        self.snapshots.take_over(file)
        index, term = file.snapshot.index, file.snapshot.term
        self.levels.apply(file.snapshot.level)
        if self.journal.term_at(index) != term:
            self.journal.reset(index, term)
        self._SyncObj__raftLastApplied = self._SyncObj__raftCommitIndex = index
        self.journal.setRaftCommitIndex(index)
        self.membership.apply(file.snapshot.voters)

    # -- overrides of the library

    def open_journal(self, disk: Disk) -> Journal:
        """Return the journal; a seam for tests that break a rule on purpose."""
        return Journal(disk, self.limits.segment_bytes)

    def _onTick(self, timeToWait: float = 0.0) -> None:  # noqa: N803 - the library's name
        self.journal.sync()
        self._SyncObj__applyLogEntries()  # a committed change of voters is in force before we may campaign
        self._pre_vote.step()
        super()._onTick(0.0)
        self._pre_vote.by_transfer = False

    def _checkCommandsToApply(self) -> None:
        """Nothing is queued in the library and nothing is forwarded to a leader: see `append`."""

    def _SyncObj__doApplyCommand(self, command: bytes) -> bytes:
        if command[0] != COMMAND:
            return b""
        try:
            content = decode_command(command[1:])
        except ValueError as error:
            raise CorruptState(
                f"journal: entry {self.applied_index + 1} cannot be applied: {error}; {REMEDY}"
            ) from error
        if isinstance(content, bytes):
            return self.machine.apply(self.applied_index + 1, content)
        if isinstance(content, RaiseLevel):
            self.levels.apply(content.level)
        else:
            self.membership.apply(content)
        return b""

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self.rng.uniform(self.timings.election_min_s, self.timings.election_max_s)

    def _SyncObj__sendAppendEntries(self) -> None:
        if now() > self._SyncObj__newAppendEntriesTime:
            self._SyncObj__newAppendEntriesTime = now() + self.timings.heartbeat_s
            self.beat_due = True
        else:  # something was committed; entries that follow soon tell it along with them
            self.replication.note_commit()

    def _SyncObj__sendNextNodeIdx(
        self,
        node: Node,
        reset: bool = False,
        nextNodeIdx: int | None = None,  # noqa: N803 - the library's name
        success: bool = False,
    ) -> None:
        if self._quiet and success:
            return
        following = self.journal.last_index + 1 if nextNodeIdx is None else nextNodeIdx
        if reset and following <= self.journal.last_index:
            following = self.commit_index + 1  # H4
        answer = {"type": "next_node_idx", "term": self.term, "next_node_idx": following}  # H3
        self.outgoing(node.id, {**answer, "reset": reset, "success": success, "round": self.answered_round})

    def _SyncObj__setState(self, state: int) -> None:
        before = self.state
        super()._SyncObj__setState(state)
        if LEADER in (before, state) and before != state:
            self.acquaintances.leader_heard(self.me)
            self.replication.reset()
            self.membership.reset()
            self._fail_waiting("leadership was lost before the outcome was known")

    def _SyncObj__tryLogCompaction(self) -> None:
        self.snapshots.step(self)

    # -- helpers

    def _open_snapshots(self, setup: Setup, background: Background) -> Snapshots:
        snapshots = Snapshots(
            self.disk,
            self.machine,
            setup.limits,
            founders(setup.voters, self.me, self.uid, joining=setup.joining),
            background,
        )
        newest = snapshots.newest
        if self.journal.term_at(newest.index) != newest.term:
            if len(self.journal) and self.journal.first_index > newest.index:
                raise CorruptState("the journal starts after the snapshot; remove this voter and add it again")
            self.journal.reset(newest.index, newest.term)
        return snapshots

    def _look_for_room(self) -> None:
        """Try to get room for the journal; a leader without any lets another one lead."""
        self._room_due = self.journal.look_for_room()
        if self._room_due is not None and self.is_leader and self.term_started:
            with suppress(MembershipRefused):
                self.hand_over(None)

    def _fallback_at(self) -> float:
        """Return when we must stop to lead unless a majority is heard again."""
        heard = sorted((self._SyncObj__lastResponseTime[node] for node in self._SyncObj__otherNodes), reverse=True)
        needed = (len(heard) + 1) // 2
        return float(heard[needed - 1]) + self.timings.leader_fallback_s if needed else math.inf

    def _resolver(self, index: int) -> Callable[[bytes | None, int], None]:
        def resolve(result: bytes | None, failure: int) -> None:
            if (outcome := self._outcomes.pop(index, None)) is not None:
                outcome(ProposalTimeout("another entry took its place") if failure or result is None else result)

        return resolve

    def _fail_waiting(self, reason: str) -> None:
        outcomes, self._outcomes = self._outcomes, {}
        self._SyncObj__commandsWaitingCommit.clear()
        for outcome in outcomes.values():
            outcome(ProposalTimeout(f"outcome unknown: {reason}"))
        self.reads.fail(NotLeader(self.leader if not self.is_leader else None))


def _library_config(timings: Timings, journal: Journal) -> SyncObjConf:
    return SyncObjConf(
        autoTick=False,
        appendEntriesUseBatch=False,
        appendEntriesPeriod=timings.heartbeat_s,
        raftMinTimeout=timings.election_min_s,
        raftMaxTimeout=timings.election_max_s,
        leaderFallbackTimeout=timings.leader_fallback_s,
        connectionTimeout=timings.election_max_s,
        commandsWaitLeader=False,
        dynamicMembershipChange=False,
        useFork=False,
        journalFile=journal,
        fullDumpFile=None,
    )
