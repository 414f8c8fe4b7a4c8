"""Guests that want to end in order before the lease does (HaSpec.quorum_loss): asks them to while the lease is not renewed.

Invariant: nothing here lengthens a lease or holds up the kill at its end; whoever has not ended by then dies as any other. A guest that was
asked ends, whatever becomes of the lease; the manager starts it again if the node keeps it.
"""

import asyncio

from agent.fencing.guard import Guard
from agent.guests import Guests
from agent.observer import Observer
from agent.state import AgentState
from common.errors import GugusError
from common.logs import get_logger

LOOK_S = 0.25
"""So often the lease is looked at: a fraction of the shortest time that guests have (1.8 s of a lease of 3 s)."""

ASK_AGAIN_S = 5.0
"""So often a guest is asked while it runs on: one that is still booting does not hear the first time."""

_log = get_logger("quorum-loss")


class QuorumLoss:
    """Runs for ever; one per agent."""

    def __init__(self, state: AgentState, observer: Observer, guard: Guard, guests: Guests) -> None:
        self._state, self._observer, self._guard, self._guests = state, observer, guard, guests
        self._asked: dict[str, float] = {}

    async def run(self) -> None:
        """Look at the lease until cancelled."""
        while True:
            if self._guard.endangered:
                await self._ask_all()
            elif self._asked:
                self._asked.clear()
            await asyncio.sleep(LOOK_S)

    async def _ask_all(self) -> None:
        now_s = asyncio.get_running_loop().time()
        due = [name for name in self._wanting() if now_s - self._asked.get(name, -ASK_AGAIN_S) >= ASK_AGAIN_S]
        for name in due:
            self._asked[name] = now_s
            self._guests.ended_by_host.add(name)
        await asyncio.gather(*map(self._ask, due))

    def _wanting(self) -> list[str]:
        """Return the guests that run and want to end before the lease does."""
        specs = [spec for spec in self._state.guests.values() if spec.ha and spec.stop_on_quorum_loss]
        seen = self._observer.seen
        return [spec.name for spec in specs if spec.name in seen and seen[spec.name].observation.running]

    async def _ask(self, name: str) -> None:
        _log.warning("no manager renews the lease: asking the guest to shut down before it ends", guest=name)
        try:
            await self._observer.seen[name].hypervisor.shutdown(name)
        except GugusError as error:
            _log.warning("guest cannot be asked to shut down", guest=name, error=str(error))
