"""The voters, changed one at a time by a replicated command of our own that takes effect where it is applied.

Invariant: any majority of the voters that one member may be using meets any majority that another may be using.

Why applying a change at its commit is safe (the library's dynamic membership is not, and is never used):
1. A change adds or removes one voter, so every majority of the old voters meets every majority of the new ones.
2. The leader refuses a change until it has applied an entry of its own term and every earlier change. So when change
   k+1 enters the log, change k is committed, and the leader's commit index covers it.
3. Every message that carries entry k+1 carries that commit index, and the journal writes it into the record of the
   entry: whoever holds k+1, now or after a crash, knows that k is committed. A member applies what it knows to be
   committed before it may campaign. So nobody who holds k+1 uses the voters from before k.
4. Whoever does not hold a committed k+1 cannot be elected, by the old voters or the new: k+1 is on a majority of the
   voters of k, and both kinds of majority meet that one (1), whose members refuse a shorter log (Raft's 5.4.1).
Hence at any time the voters in use by electable members are two neighbouring sets at most.

A newcomer first follows as a learner that counts nowhere; the change is proposed when it has caught up, so that a wrong
address cannot cost the cluster its majority. It starts with a list of the others and does not campaign until a list from
the cluster's own log or snapshot contains it: it, and not an earlier life of its name (incarnation.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .command import encode_raise, encode_voter_change
from .library import Node, node_of, now
from .types import Member, MembershipRefused, NotLeader

if TYPE_CHECKING:
    from .core import RaftCore

Done = Callable[[Exception | None], None]

_CAUGHT_UP_ENTRIES = 64
"""A learner this close to the end of the log is caught up: the rest travels in one message."""


@dataclass(slots=True)
class _Learner:
    member: Member
    deadline: float
    done: Done
    uid: str = ""


class Membership:
    """The voters in force at one member, and the leader's change in progress."""

    def __init__(self, core: "RaftCore") -> None:
        self._core = core
        self.voters: tuple[Member, ...] = ()
        self.voter_names = frozenset[str]()
        """Their names; ours only if this life of ours is meant."""
        self._by_name: dict[str, Member] = {}
        self._learner: _Learner | None = None
        self._change_index = 0

    def voter(self, name: str) -> Member | None:
        """Return the voter of a name as the list has it."""
        return self._by_name.get(name)

    @property
    def learner(self) -> Member | None:
        """The newcomer being caught up, if we lead and there is one."""
        return self._learner.member if self._learner else None

    def apply(self, voters: tuple[Member, ...]) -> None:
        """Put a committed list of voters in force."""
        core = self._core
        self.voters = voters
        self._by_name = {voter.name: voter for voter in voters}
        ours = self._by_name.get(core.me)
        meant = ours is not None and ours.uid in ("", core.uid)  # or is it said of an earlier life of ours?
        self.voter_names = frozenset(self._by_name) - (set() if meant else {core.me})
        core.acquaintances.lost_lives.clear()
        others = {node_of(voter.name) for voter in voters if voter.name != core.me}
        for node in others - core._SyncObj__otherNodes:
            core._SyncObj__raftNextIndex.setdefault(node, core.journal.last_index + 1)
            core._SyncObj__raftMatchIndex.setdefault(node, 0)
            core._SyncObj__lastResponseTime[node] = now()
        gone = core._SyncObj__otherNodes - others
        if gone:
            core.replication.send_all(beat=True)  # so that the one who leaves, too, learns of it
        for node in gone:
            self._drop(node)
        core._SyncObj__otherNodes = others
        core._SyncObj__readonlyNodes -= others
        if core.me not in self.voter_names and core.is_leader:
            core.replication.send_all(beat=True)
            core.step_down()

    def add(self, member: Member, timeout_s: float, done: Done) -> None:
        """Start to add a voter. Raises NotLeader, MembershipRefused."""
        core = self._core
        self._check_free()
        voter = self.voter(member.name)
        if voter is not None and member.name in core.acquaintances.lost_lives:
            raise MembershipRefused(
                f"{member.name} is a voter, but has lost its data folder: remove it, then add it again"
            )
        if voter is not None and (voter.host, voter.port) == (member.host, member.port):
            done(None)
            return
        if member.name in core.voter_names:
            raise MembershipRefused(f"{member.name} is a voter already, at another address; remove it first")
        node = node_of(member.name)
        core._SyncObj__readonlyNodes.add(node)
        core._SyncObj__raftNextIndex[node] = core.journal.last_index + 1
        core._SyncObj__raftMatchIndex[node] = 0
        core._SyncObj__lastResponseTime[node] = now()
        self._learner = _Learner(member, now() + timeout_s, done)
        core.beat_due = True

    def remove(self, name: str, done: Done) -> None:
        """Propose to remove a voter. Raises NotLeader, MembershipRefused."""
        core = self._core
        self._check_free()
        if name not in core.voter_names:
            done(None)
            return
        if name == core.me:
            raise MembershipRefused(f"{name} leads; hand leadership over first, then remove it")
        rest = tuple(voter for voter in self.voters if voter.name != name)
        reached = {voter.name for voter in rest} & (
            core.connected_names | {core.me}
        ) - core.acquaintances.lost_lives.keys()
        if len(reached) * 2 <= len(rest):
            raise MembershipRefused(f"of {[v.name for v in rest]} only {sorted(reached)} are reached: no majority")
        self._propose(rest, done)

    def step(self) -> None:
        """Propose the learner as a voter once it has caught up, or give it up."""
        core, learner = self._core, self._learner
        if learner is None or not core.is_leader:
            return
        if core.journal.full:  # nothing can be proposed; there may be room before the newcomer is given up
            if now() > learner.deadline:
                self._refuse(learner, f"waits for room on the disk of {core.me}")
            return
        self._follow_life(learner)
        match = core.match_index(learner.member.name)
        if 0 < core.levels.spoken(learner.member.name) < core.levels.level:
            self._refuse(
                learner,
                f"speaks level {core.levels.spoken(learner.member.name)}, the cluster is at level "
                f"{core.levels.level}: install a newer release there",
            )
        elif match and core.journal.last_index - match <= _CAUGHT_UP_ENTRIES:
            self._learner = None
            self._propose((*self.voters, replace(learner.member, uid=learner.uid)), learner.done)
        elif now() > learner.deadline:
            reached = learner.member.name in core.connected_names
            self._refuse(learner, f"has caught up to {match} only" if reached else "is not reached")

    def _follow_life(self, learner: _Learner) -> None:
        """Start anew with a learner that lost its data folder while it was being caught up."""
        core, node = self._core, node_of(learner.member.name)
        uid = core.acquaintances.uid_of(learner.member.name)
        if uid and uid != learner.uid:
            learner.uid = uid
            core._SyncObj__raftNextIndex[node] = core.journal.last_index + 1
            core._SyncObj__raftMatchIndex[node] = 0
            core.replication.forget(learner.member.name)

    def _refuse(self, learner: _Learner, why: str) -> None:
        member, self._learner = learner.member, None
        self._drop(node_of(member.name))
        learner.done(MembershipRefused(f"{member.name} at {member.host}:{member.port} {why}; it was not added"))

    def raise_level(self) -> None:
        """Raise the cluster's level when all voters can apply a higher one; a change like one of the voters, one at a time."""
        core = self._core
        level = core.levels.due(core.me, core.voter_names)
        if level is None or not core.is_leader or not core.term_started or core.journal.full or self._busy():
            return
        self._change_index = core.append(encode_raise(level), lambda _: None)

    def reset(self) -> None:
        """Give up a learner: leadership changed."""
        learner, self._learner, self._change_index = self._learner, None, 0
        if learner is not None:
            self._drop(node_of(learner.member.name))
            learner.done(NotLeader(None))

    def _propose(self, voters: tuple[Member, ...], done: Done) -> None:
        """Propose a list of voters; it is done when our disk knows that it is committed.

        A commit index reaches the disk with the next entry. Before that a restart would need the old majority, and whoever was
        told that the change is done may have switched off the one who was removed.
        """

        def settled(result: bytes | Exception) -> None:
            done(result if isinstance(result, Exception) else None)

        def committed(result: bytes | Exception) -> None:
            if isinstance(result, Exception) or not self._core.is_leader:
                settled(result if isinstance(result, Exception) else NotLeader(self._core.leader))
            else:
                self._core.append_no_op(settled)

        self._change_index = self._core.append(encode_voter_change(voters), committed)

    def _check_free(self) -> None:
        core = self._core
        if not core.is_leader:
            raise NotLeader(core.leader)
        if not core.term_started:
            raise MembershipRefused("leadership is new and its first entry not committed yet; try again shortly")
        if self._busy():
            raise MembershipRefused("another change of voters is in progress; try again when it is done")

    def _busy(self) -> bool:
        return self._learner is not None or self._core.applied_index < self._change_index

    def _drop(self, node: Node) -> None:
        core = self._core
        core._SyncObj__readonlyNodes.discard(node)
        for table in (core._SyncObj__raftNextIndex, core._SyncObj__raftMatchIndex, core._SyncObj__lastResponseTime):
            table.pop(node, None)
        core.replication.forget(node.id)
