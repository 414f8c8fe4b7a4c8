"""Linearizable reads without writing: the leader confirms that it still leads (Raft paper, section 8).

Invariant: a read is answered only after a majority of voters answered, in the leader's term, a message sent after the
read was asked for, and after everything committed when that message was sent has been applied here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .types import NotLeader

if TYPE_CHECKING:
    from .core import RaftCore

Answer = Callable[[Exception | None], None]
"""Called once: None when the read may go on."""


class ReadRounds:
    """Batches reads: one round is in flight, those asked meanwhile share the next."""

    def __init__(self, core: "RaftCore") -> None:
        self._core = core
        self.round = 0
        """Number of the newest round; every message of the leader carries it."""
        self._in_flight: list[Answer] = []
        self._waiting: list[Answer] = []
        self._read_index = 0
        self._confirmed: set[str] = set()

    def request(self, answer: Answer) -> None:
        """Ask for a barrier. Raises NotLeader."""
        if not self._core.is_leader:
            raise NotLeader(self._core.leader)
        self._waiting.append(answer)

    def on_answer(self, sender: str, answered: int) -> None:
        """Count a voter's answer to the present round."""
        if answered == self.round:
            self._confirmed.add(sender)

    def step(self) -> None:
        """Finish the round in flight if it is confirmed, and start the next."""
        if not self._core.term_started:
            return
        self._finish()
        if self._waiting and not self._in_flight:
            self._in_flight, self._waiting = self._waiting, []
            self.round += 1
            self._confirmed.clear()
            self._read_index = self._core.commit_index
            self._core.beat_due = True
            self._finish()

    def fail(self, error: Exception) -> None:
        """Fail all reads; called when leadership changes."""
        failed, self._in_flight, self._waiting = self._in_flight + self._waiting, [], []
        self.round += 1
        self._confirmed.clear()
        for answer in failed:
            answer(error)

    def _finish(self) -> None:
        core = self._core
        votes = len(self._confirmed & core.voter_names) + (core.me in core.voter_names)
        if self._in_flight and votes * 2 > len(core.voters) and core.applied_index >= self._read_index:
            done, self._in_flight = self._in_flight, []
            for answer in done:
                answer(None)
