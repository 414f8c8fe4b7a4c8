"""Looks at what guests use, as nodes' newest beats tell it: the acting manager's memory of load (`manager.scheduler.load`).

Costs: no call, no write; every guest is looked at once in a twentieth of the time constant, at most every SLOWEST_S.
"""

import asyncio

from manager.controllers.context import Context
from manager.scheduler.balancing import NS_PER_S, policy_of

LOOKS = 20
"""In one time constant: more would change the mean by less than a hundredth."""

FASTEST_S = 1.0
"""Beats come no faster."""

SLOWEST_S = 15.0


class LoadWatch:
    """Looks for as long as this manager acts; begins with nothing known."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        """Look until cancelled."""
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s)
            pause_s = self.look()

    def look(self) -> float:
        """Look once; return after how many seconds to look again."""
        context = self._context
        constant_ns = policy_of(context.settings().balance).smoothing_ns
        for node, beats in context.beats.nodes().items():
            if beats.heard_ns is not None:
                context.loads.heard(node, beats.guests.values(), beats.heard_ns, constant_ns)
        context.loads.forget(context.acting.now_ns(), constant_ns)
        return min(SLOWEST_S, max(FASTEST_S, constant_ns / NS_PER_S / LOOKS))
