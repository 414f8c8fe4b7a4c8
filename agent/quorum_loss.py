"""Guests that want to end in order before the lease does (HaSpec.quorum_loss): asks them to while the lease is not renewed.

Invariant: nothing here lengthens a lease or holds up the kill at its end; whoever has not ended by then dies as any other. A guest that was
asked ends, whatever becomes of the lease; the manager starts it again if the node keeps it.
"""

import asyncio

from gugus.agent.v1.guest_pb2 import GuestSpec

from agent.early_ends import EarlyEnds
from agent.fencing.guard import Guard
from agent.guests import Guests
from agent.observer import Observer
from agent.state import AgentState
from common.errors import GugusError
from common.logs import get_logger

LOOK_S = 0.25
"""So often the lease is looked at: a fraction of the shortest time that guests have (1.8 s of a lease of 3 s)."""

_log = get_logger("quorum-loss")


class QuorumLoss:
    """Runs for ever; one per agent."""

    def __init__(self, state: AgentState, observer: Observer, guard: Guard, guests: Guests) -> None:
        self._state, self._observer, self._guard, self._guests = state, observer, guard, guests
        self._early = EarlyEnds()

    async def run(self) -> None:
        """Look at the lease until cancelled."""
        while True:
            endangered = self._guard.endangered
            now_s = asyncio.get_running_loop().time()
            due = self._early.due(self._running() if endangered else (), now_s, endangered=endangered)
            self._guests.ended_by_host.update(due)
            await asyncio.gather(*map(self._ask, due))
            await asyncio.sleep(LOOK_S)

    def _running(self) -> list[GuestSpec]:
        seen = self._observer.seen
        return [spec for name, spec in self._state.guests.items() if name in seen and seen[name].observation.running]

    async def _ask(self, name: str) -> None:
        _log.warning("no manager renews the lease: asking the guest to shut down before it ends", guest=name)
        try:
            await self._observer.seen[name].hypervisor.shutdown(name)
        except GugusError as error:
            _log.warning("guest cannot be asked to shut down", guest=name, error=str(error))
