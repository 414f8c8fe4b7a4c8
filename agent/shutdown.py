"""Leaving in order: a host that is shut down stops its guests, gives its lease up and says so, and is not reset for it.

An agent that is stopped or restarted on a running system leaves its guests alone. When the whole system stops, nobody
comes back to guard them: so the acting manager is told, and says what becomes of them. They may move away first, for which
systemd is asked for more time. Then HA guests end, the acting manager hears that they did, and the watchdog has nothing left
to guard.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress

from gugus.cluster.v1.cluster_pb2 import (
    SHUTDOWN_POLICY_FREEZE,
    SHUTDOWN_POLICY_MIGRATE,
    SHUTDOWN_POLICY_UNSPECIFIED,
    ShutdownPolicy,
)
from gugus.cluster.v1.node_pb2 import HOST_EXIT_POWER_OFF, HOST_EXIT_REBOOT, HOST_EXIT_UNSPECIFIED, HostExit

from agent.fencing.guard import Guard
from agent.fencing.lease import Phase
from agent.heartbeat import Heartbeat
from agent.observer import Observer
from agent.pools import Pools
from agent.state import AgentState
from agent.turns import Turns
from common import notify
from common.errors import GugusError, precondition
from common.logs import get_logger
from common.process import CommandFailed, run
from common.waiting import happened
from common.waves import waves

REBOOTS = ("reboot.target", "kexec.target", "soft-reboot.target")
"""Targets of a host that is to be back (systemd.special(7))."""

SYSTEM_STATE = ("systemctl", "show", "--property=Id,ActiveState,Job", "shutdown.target", *REBOOTS)
"""`systemctl is-system-running` says "starting", not "stopping", of a system that is shut down before it was all up. Every way down
pulls shutdown.target in; which way is told by the other target that has a job."""

SYSTEM_STATE_TIMEOUT_S = 2.0

REBOOT = ("systemctl", "--no-block", "reboot")
"""The agent is root on its host, and needs no more than that."""

REBOOT_TIMEOUT_S = 10.0

HA_GRACE_S = 20.0
"""How long HA guests may take to shut down; then they are killed. Their users wait until they run elsewhere."""

OTHERS_GRACE_S = 60.0
"""The same for guests that run nowhere else: those outside HA, and those that wait for this host (freeze)."""

ORDER_TIMEOUT_S = 6.0
"""For the acting manager to say what becomes of the guests: longer than a change of the acting manager takes as a rule. Without its
word they start elsewhere."""

ASK_MANAGER_S = 0.25
"""So often it is asked."""

MOVE_TIMEOUT_S = 1560.0
"""Longest wait while guests move away; the manager ends it a minute earlier (MOVE_BUDGET_MS in manager/ha/departure.py), and systemd
would end the whole shutdown by force after 30 minutes."""

EXTEND_S = 30.0
"""So much time is asked of systemd at once while guests move away; an agent that hangs gets no more."""

FLUSH_TIMEOUT_S = 20.0
"""For writing back what HA guests wrote to shared pools, while the lease is still renewed."""

EMPTY_TIMEOUT_S = 10.0
"""For killing HA guests that did not shut down and for the durable report; longer than any start that is under way lasts
as a rule. Guests that are not dead by then are the watchdog's."""

FAREWELL_TIMEOUT_S = 5.0
"""For the acting manager to take the report in; longer than it takes to have another one when the last was lost."""

KILL_TIMEOUT_S = 7.0
"""For killing guests outside HA: libvirtd has 5 s, their processes 1.5 s."""

STOP_POLL_S = 0.25
"""So often guests that were asked to shut down are looked at."""

ASK_AGAIN_S = 5.0
"""So often they are asked: one that is still booting does not hear the first time."""

LONGEST_S = (
    SYSTEM_STATE_TIMEOUT_S
    + ORDER_TIMEOUT_S
    + max(OTHERS_GRACE_S + FLUSH_TIMEOUT_S + EMPTY_TIMEOUT_S + FAREWELL_TIMEOUT_S, OTHERS_GRACE_S + KILL_TIMEOUT_S)
)
"""The longest that leaving takes, the moving away apart; TimeoutStopSec of the unit is more."""

LAST = 2**32
"""Place in the order of guests that have none: they start after all others."""

MS_PER_S = 1000
_log = get_logger("shutdown")


async def system_exit() -> HostExit.ValueType:
    """Return how the whole system is going down, by systemd's word; unspecified when it is not, or cannot be asked."""
    try:
        return _exit((await run(SYSTEM_STATE, timeout_s=SYSTEM_STATE_TIMEOUT_S)).text)
    except CommandFailed:
        return HOST_EXIT_UNSPECIFIED


async def reboot() -> None:
    """Have systemd reboot the host in order; this agent is stopped in its turn. Raises REBOOT_REFUSED."""
    try:
        await run(REBOOT, timeout_s=REBOOT_TIMEOUT_S)
    except CommandFailed as error:
        raise precondition(
            "REBOOT_REFUSED", f"{error}", remedy="`systemctl list-jobs` on that host shows what is in the way."
        ) from None


def _exit(said: str) -> HostExit.ValueType:
    """Return the way down: the target of all shutdowns is reached, or a job for it waits, and perhaps for one of a reboot, too."""
    units = [dict(line.split("=", 1) for line in unit.splitlines() if "=" in line) for unit in said.split("\n\n")]
    due = {u.get("Id", "") for u in units if u.get("ActiveState") == "active" or u.get("Job", "") not in ("", "0")}
    if "shutdown.target" not in due:
        return HOST_EXIT_UNSPECIFIED
    return HOST_EXIT_REBOOT if due.intersection(REBOOTS) else HOST_EXIT_POWER_OFF


class Shutdown:
    """Ends what runs on this host. `run` is bounded by LONGEST_S and never raises for what a guest or a manager does."""

    def __init__(
        self, state: AgentState, observer: Observer, pools: Pools, guard: Guard, turns: Turns, heart: Heartbeat
    ) -> None:
        self._state, self._observer, self._pools = state, observer, pools
        self._guard, self._turns, self._heart = guard, turns, heart

    async def run(self, exit_: HostExit.ValueType) -> None:
        """Do what the acting manager says, then stop all guests that are left, give the lease up, and return when it knows."""
        self._heart.leave(exit_)
        policy = await self._moved_away(await self._told())
        self._turns.close()
        _log.warning("the host is shut down: stopping its guests", guests=sorted(self._running(lambda _: True)))
        grace_s = OTHERS_GRACE_S if policy == SHUTDOWN_POLICY_FREEZE else HA_GRACE_S
        for outcome in await asyncio.gather(self._end_ha(grace_s), self._end_others(), return_exceptions=True):
            if isinstance(outcome, BaseException):
                _log.error("leaving failed in part", error=repr(outcome), exc_info=outcome)

    async def _told(self) -> ShutdownPolicy.ValueType:
        """Return what the acting manager wants to become of the guests; unspecified when none said so in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ORDER_TIMEOUT_S):
                while self._heart.order == SHUTDOWN_POLICY_UNSPECIFIED:
                    self._heart.beat_soon()
                    await asyncio.sleep(ASK_MANAGER_S)
        _log.info("the manager's word", policy=ShutdownPolicy.Name(self._heart.order))
        return self._heart.order

    async def _moved_away(self, policy: ShutdownPolicy.ValueType) -> ShutdownPolicy.ValueType:
        """Serve on while the guests move away; return what becomes of those that are left."""
        if policy != SHUTDOWN_POLICY_MIGRATE:
            return policy
        _log.warning("the host is shut down once its guests have moved away")
        with suppress(TimeoutError):
            async with asyncio.timeout(MOVE_TIMEOUT_S):
                while self._heart.order == SHUTDOWN_POLICY_MIGRATE and self._guard.phase is Phase.HELD:
                    notify.extend_timeout(EXTEND_S)
                    self._heart.beat_soon()
                    await asyncio.sleep(ASK_MANAGER_S)
        notify.extend_timeout(LONGEST_S)
        return self._heart.order

    async def _end_ha(self, grace_s: float) -> None:
        ended = await self._stop(self._is_ha, grace_s)
        left = await self._pools.flush(ended, FLUSH_TIMEOUT_S)
        fenced = self._heart.take_leave()
        self._guard.resign(ended)
        emptied = await asyncio.to_thread(self._guard.wait_emptied, EMPTY_TIMEOUT_S)
        if not emptied:
            _log.error("HA guests are not proven dead; the watchdog guards on", unwritten=left)
            return
        self._heart.beat_soon()
        _log.info("lease given up", known_to_the_manager=await happened(fenced, FAREWELL_TIMEOUT_S))

    async def _end_others(self) -> None:
        await self._stop(lambda name: not self._is_ha(name), OTHERS_GRACE_S)
        left = self._running(lambda name: not self._is_ha(name))
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await asyncio.gather(*(self._kill(name) for name in left), return_exceptions=True)

    async def _stop(self, mine: Callable[[str], bool], grace_s: float) -> frozenset[str]:
        """Ask guests to shut down, in the reverse of the order in which they start, all within a time; return those that ended.

        Guests without an order come first, and each before those that it starts after. Each group has the longest time that one of its
        guests asks for.
        """
        loop = asyncio.get_running_loop()
        end_s, ended = loop.time() + grace_s, frozenset[str]()
        for group in self._groups(mine):
            ended |= await self._stop_all(group.__contains__, min(end_s - loop.time(), self._patience_s(group)))
        return ended

    async def _stop_all(self, mine: Callable[[str], bool], grace_s: float) -> frozenset[str]:
        """Ask guests to shut down, also those whose start is under way, and wait; return those that ended."""
        asked: dict[str, asyncio.Task[None]] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while (running := self._running(mine)) or any(map(mine, self._turns.under_way("guest"))):
                    due = {name for name in running if name not in asked or asked[name].done()}
                    asked |= {name: asyncio.create_task(self._ask(name)) for name in due}
                    await asyncio.sleep(STOP_POLL_S)
                    await self._observer.refresh()
        for task in asked.values():
            task.cancel()
        return frozenset(asked) - self._running(mine)

    def _groups(self, mine: Callable[[str], bool]) -> list[frozenset[str]]:
        """Return guests in the groups in which they end."""
        names = {name for name in (*self._observer.seen, *self._turns.under_way("guest")) if mine(name)}
        specs = {name: self._state.guests.get(name) for name in names}
        after = {name: spec.after for name, spec in specs.items() if spec is not None}
        ranks = {name: (spec.boot_order if spec is not None else 0) or LAST for name, spec in specs.items()}
        return [frozenset(group) for group in reversed(waves(after, ranks))]

    def _patience_s(self, group: frozenset[str]) -> float:
        """Return how long guests may take: what the most patient of them asks for; without end if one asks for nothing."""
        asked_ms = [spec.shutdown_timeout_ms for name, spec in self._state.guests.items() if name in group]
        return max(asked_ms) / MS_PER_S if asked_ms and all(asked_ms) else math.inf

    async def _ask(self, name: str) -> None:
        """Ask a guest to shut down, and return when it is time to ask again."""
        try:
            await self._observer.seen[name].hypervisor.shutdown(name)
        except GugusError as error:
            _log.warning("guest cannot be asked to shut down", guest=name, error=str(error))
        await asyncio.sleep(ASK_AGAIN_S)

    async def _kill(self, name: str) -> None:
        try:
            await self._observer.seen[name].hypervisor.kill(name)
        except GugusError as error:
            _log.warning("guest cannot be killed", guest=name, error=str(error))

    def _running(self, mine: Callable[[str], bool]) -> frozenset[str]:
        seen = self._observer.seen
        return frozenset(name for name, what in seen.items() if what.observation.running and mine(name))

    def _is_ha(self, name: str) -> bool:
        spec = self._state.guests.get(name)
        return spec is not None and spec.ha
