"""A consensus of one member in this process: applies at once, so that stores can be tested without Raft."""

from manager.consensus.types import NotLeader, ProposalTimeout
from manager.store import StoreState


class LocalConsensus:
    def __init__(self, state: StoreState) -> None:
        self.state = state
        self.leader = True
        self.lose_answers = False
        """Apply, but let the proposer not know."""
        self.index = 0
        self.barriers = 0

    async def propose(self, payload: bytes) -> bytes:
        if not self.leader:
            raise NotLeader(None)
        self.index += 1
        result = self.state.apply(self.index, payload)
        if self.lose_answers:
            raise ProposalTimeout("the answer was lost")
        return result

    async def read_barrier(self) -> None:
        self.barriers += 1
