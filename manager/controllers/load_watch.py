"""Looks at what guests use, as nodes' newest beats tell it: the acting manager's memory of load (`manager.scheduler.load`).

Costs: no call, no write; every guest is looked at once in a twentieth of the time constant, at most every 15 s.
"""

import asyncio

from manager.controllers.context import Context
from manager.scheduler.balancing import policy_of
from manager.scheduler.load import pause_s


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
        return pause_s(constant_ns)
