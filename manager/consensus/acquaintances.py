"""Whom a member talks with: the voters and a learner, and whom else while it knows no leader.

Invariant: nobody counts towards a majority but the lives of the voters that the list means; to anyone else we listen as a follower at
most, and only as long as we hear no leader whom we know.
"""

from typing import TYPE_CHECKING

from .types import Member

if TYPE_CHECKING:
    from .core import RaftCore

MAX_STRANGERS = 8
"""Managers that we do not know and listen to: more than voters may be."""


class Acquaintances:
    """The others as one member knows them. `configured` are those that it was told of at its first start."""

    def __init__(self, core: "RaftCore", configured: tuple[Member, ...]) -> None:
        self._core, self._configured = core, configured
        self._uids: dict[str, str] = {}
        """Which life of it each connected member is."""
        self._strangers: dict[str, Member] = {}
        self._contacts: dict[str, Member] = {}
        self._contacts_of: object = None
        self.lost_lives: dict[str, str] = {}
        """Voters that came back without their data folder, with the uid of the new one."""

    @property
    def contacts(self) -> dict[str, Member]:
        """Members to talk with: the voters and a learner; the configured ones before we are a voter ourselves, and those
        who introduced themselves while we know no leader.
        """
        core, learner = self._core, self._core.membership.learner
        key = (core.voters, learner, self._strangers)
        if key != self._contacts_of:
            known = [*core.voters, *([learner] if learner else []), *self._strangers.values()]
            if core.me not in core.voter_names:
                known = [*self._configured, *known]
            self._contacts_of = key
            self._contacts = {member.name: member for member in known if member.name != core.me}
        return self._contacts

    def introduced(self, member: Member) -> None:
        """Take note of a manager of our cluster that we do not know: a voter, perhaps, added while we were away.

        Without it a voter that missed the adding of the present leader would be lost. As long as we hear no leader we listen to
        such a manager as to a voter: Raft is safe whoever asks (Ongaro's thesis, section 4.2.2). With a leader whom we know we
        need nobody else, and one that was removed finds no ear.
        """
        voter = self._core.membership.voter(member.name)
        if voter is not None and voter.uid == member.uid:
            return
        if voter is not None:
            self.lost_lives[member.name] = member.uid
        if not self._core.leader_alive() and len(self._strangers) < MAX_STRANGERS:
            self._strangers = {**self._strangers, member.name: member}

    def leader_heard(self, name: str) -> None:
        """Let the strangers go: a leader whom we know was heard."""
        if self._strangers and name in self._core.voter_names:
            self._strangers = {}

    def greeted(self, name: str, uid: str) -> None:
        """Note which life of a member is connected, "" when it is not any more."""
        self._uids[name] = uid

    def uid_of(self, name: str) -> str:
        """Return which life of a member is connected, "" when none is."""
        return self._uids.get(name, "")

    def is_same_life(self, name: str) -> bool:
        """Return whether a member that is connected is the one that our voters mean, or none of them at all."""
        voter = self._core.membership.voter(name)
        return voter is None or voter.uid in ("", self.uid_of(name))
