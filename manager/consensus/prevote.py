"""Pre-vote and the handing over of leadership: no term is raised unless a majority would vote (rules H5 and H6).

Invariant: at most one question is open, and only grants that answer it count. Source: Ongaro's thesis, section 9.6
(pre-vote) and 3.10 (transfer).
"""

from typing import TYPE_CHECKING

from .library import CANDIDATE, Message, now

if TYPE_CHECKING:
    from .core import RaftCore


class PreVote:
    """The state of one member before it campaigns."""

    def __init__(self, core: "RaftCore") -> None:
        self._core = core
        self._round = 0
        self._grants: set[str] = set()
        self._votes: set[tuple[int, str]] = set()
        self._handed_over_in: int | None = None
        """The term whose leader asked us to take over; its heartbeats, which may come in between, do not take that back."""
        self._gave_way = False
        self.by_transfer = False
        """The election of this tick was wished by the leader itself."""

    def step(self) -> None:
        """Decide, once the election deadline has passed, whether the library may campaign in this tick."""
        core = self._core
        if handed_over := self._handed_over_in == core.term:
            core._SyncObj__raftElectionDeadline = 0
        if core.is_leader or core._SyncObj__raftElectionDeadline >= now():
            return
        self._handed_over_in = None
        if core.me not in core.voter_names:
            self._postpone()
        elif core.journal.full and not self._gave_way and not handed_over:
            self._gave_way = True  # a leader without room is of little use: let the others try first
            core._SyncObj__raftElectionDeadline = now() + core.timings.election_max_s
        elif handed_over:
            self.cancel()
            self.by_transfer = True
        elif (len(self._grants) + 1) * 2 > len(core.voters):
            self.cancel()
        else:
            self._ask()

    def cancel(self) -> None:
        """Forget the open question: a leader was heard, or the campaign begins."""
        self._round += 1
        self._grants.clear()
        self._gave_way = False

    def skip(self) -> None:
        """Campaign without asking: the leader hands over."""
        self._handed_over_in = self._core.term

    def first_vote(self, sender: str, term: int) -> bool:
        """Return whether this is the first vote of a member in our present campaign."""
        core = self._core
        if core.state != CANDIDATE or term != core.term or (term, sender) in self._votes:
            return False
        self._votes = {vote for vote in self._votes if vote[0] == term} | {(term, sender)}
        return True

    def on_question(self, sender: str, message: Message) -> None:
        """Grant if we hear no leader and the asker's log is not behind ours; if we hear one, tell of it."""
        core = self._core
        if core.leader_alive():
            self._tell_of_leader(sender)
            return
        if not core.acquaintances.is_same_life(sender):
            return
        theirs = (message["last_log_term"], message["last_log_index"])
        if theirs >= core.log_to_judge_by():
            core.outgoing(sender, {"type": "pre_vote_granted", "round": message["round"]})

    def _tell_of_leader(self, name: str) -> None:
        leader = next((voter for voter in self._core.voters if voter.name == self._core.leader), None)
        if leader is not None and leader.name != name:
            hint = {"name": leader.name, "host": leader.host, "port": leader.port, "uid": leader.uid}
            self._core.outgoing(name, {"type": "leader_hint", **hint})

    def on_grant(self, sender: str, message: Message) -> None:
        """Count a grant; with a majority the election is due at once."""
        core = self._core
        if message["round"] == self._round and sender in core.voter_names:
            self._grants.add(sender)
            if (len(self._grants) + 1) * 2 > len(core.voters):
                core._SyncObj__raftElectionDeadline = 0

    def _ask(self) -> None:
        core = self._core
        self.cancel()
        core._SyncObj__raftLeader = None
        term, index = self._last()
        question = {"type": "pre_vote", "round": self._round, "last_log_term": term, "last_log_index": index}
        for voter in core.voters:
            if voter.name != core.me:
                core.outgoing(voter.name, question)
        self._postpone()

    def _postpone(self) -> None:
        core = self._core
        core._SyncObj__raftElectionDeadline = now() + core.rng.uniform(0.3, 1.0) * core.timings.election_min_s

    def _last(self) -> tuple[int, int]:
        journal = self._core.journal
        return journal.term_at(journal.last_index) or 0, journal.last_index
