"""Cores that break one rule each on purpose, to show that the simulator would notice."""

from manager.consensus.core import RaftCore
from manager.consensus.disk import Disk
from manager.consensus.journal import Journal
from manager.consensus.library import Message


class _StockTruncation(Journal):
    def deleteEntriesFrom(self, position: int) -> None:
        del self._entries[position:]


class _ForgetfulVote(Journal):
    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        self._term, self._vote = term, vote


class _NoSync(Journal):
    def sync(self) -> None:
        pass


class _WithoutCap(RaftCore):
    def capped_commit(self, message: Message) -> int:
        return int(message["commit_index"])


class WithoutH1(RaftCore):
    """Truncates on every overlap, as the stock library."""

    def open_journal(self, disk: Disk) -> Journal:
        return _StockTruncation(disk)


class WithoutH2(_WithoutCap):
    """Keeps rule H1 but commits beyond what a message vouches for."""


class WithoutH1AndH2(_WithoutCap, WithoutH1):
    """Both off."""


class WithoutPersistedVotes(RaftCore):
    """Forgets term and vote at a crash."""

    def open_journal(self, disk: Disk) -> Journal:
        return _ForgetfulVote(disk)


class WithoutSync(RaftCore):
    """Acknowledges what is not durable."""

    def open_journal(self, disk: Disk) -> Journal:
        return _NoSync(disk)


class WithoutH3(RaftCore):
    """Counts acknowledgements of other terms."""

    def _on_answer(self, sender: str, message: Message) -> None:
        super()._on_answer(sender, {**message, "term": self.term})


BROKEN = {
    "h1": WithoutH1,
    "h2": WithoutH2,
    "h1+h2": WithoutH1AndH2,
    "h3": WithoutH3,
    "votes": WithoutPersistedVotes,
    "sync": WithoutSync,
}
