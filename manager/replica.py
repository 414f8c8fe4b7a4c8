"""Consensus with the time limits that the store's callers rely on."""

from manager.consensus import Consensus

PROPOSE_TIMEOUT_S = 5.0
"""Longer than an election; a proposal that takes longer has lost its leader or its majority."""

BARRIER_TIMEOUT_S = 5.0


class Replica:
    """What `manager.store` needs of consensus."""

    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus

    async def propose(self, payload: bytes) -> bytes:
        """Commit and apply a payload; return the state machine's result."""
        return await self._consensus.propose(payload, PROPOSE_TIMEOUT_S)

    async def read_barrier(self) -> None:
        """Return once everything acknowledged before the call is applied here."""
        await self._consensus.read_barrier(BARRIER_TIMEOUT_S)
