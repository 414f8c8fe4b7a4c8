"""When to feed the watchdog device, when to kill, when to disarm: pure, the clock is an argument.

Invariant: if HA guests may be running when their lease ends at D, then by D + KILL_BUDGET either the device has fired
or it is proven that they are dead. The device fires `timeout` after the last feed, so the last feed may be given no
later than D + KILL_BUDGET - timeout - FEED_GRACE: feeding pauses before a lease that is not renewed runs out, and goes
on when it is.

What follows from it:
- The device is armed only while HA guests may run: a host without any is never reset, and may stop this process.
- At D the recorded HA processes are killed here, too: if the agent died, no reset is needed when all of them were
  alive and are now seen dead. A recorded process that had gone by itself proves nothing (a container that rebooted has
  another one), nor does a start of unknown outcome: then feeding stays paused, and the device fires.
- A stop of this process while HA guests may run leaves the device armed: nothing else would guard them. A restart
  takes over well within `timeout`, for the new process reads the lease record that the agent wrote and feeds at once.
  One that starts when feeding is over already arms with what is left until D + KILL_BUDGET, a second at least.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from agent.compute.processes import ProcessRecord
from agent.fencing.record import LeaseRecord
from common.leases import KILL_BUDGET_MS, NS_PER_MS

NS_PER_S = 1_000_000_000

FEED_GRACE_MS = 250
"""For the time from the decision to feed until the device has it, and for the grain of its timer."""

WANTED_TIMEOUT_S = 4
"""Device timeout that is asked for. With the default lease of 10 s feeding pauses 2.25 s before its end, so that seven
renewals may be lost before a reset is even near; and it leaves a restart of this process four seconds."""

MAX_TIMEOUT_S = 8
"""A device whose shortest timeout is longer is of no use: a lease of 10 s could hardly be fed at all."""

TICK_S = 0.25
"""So often everything is looked at, and the device fed when allowed."""


class KillOutcome(Enum):
    """How a kill of recorded processes ended."""

    ALIVE = "alive"
    """Some are still there: try again."""
    GONE = "gone"
    """None is there, but some had gone before."""
    PROVEN = "proven"
    """All were there before the kill, and none is now."""


@dataclass(frozen=True, slots=True)
class Actions:
    """What to do now, in this order. arm_s: arm with this timeout in seconds, 0 for not. kill: processes by guest."""

    arm_s: int = 0
    feed: bool = False
    disarm: bool = False
    kill: Mapping[str, ProcessRecord] | None = None


class WatchdogCore:
    """Decides. device: whether there is one. can_disarm: whether a magic close stops it."""

    def __init__(self, *, device: bool = False, can_disarm: bool = True) -> None:
        self._device, self._can_disarm = device, can_disarm
        self._timeout_s = WANTED_TIMEOUT_S
        self._armed_s = 0
        self._fires_ns = 0
        self.lease = LeaseRecord()
        self._killed = KillOutcome.ALIVE

    def heard(self, lease: LeaseRecord) -> None:
        """Take in what the agent says. What it says last holds."""
        if lease != self.lease:
            self.lease, self._killed = lease, KillOutcome.ALIVE

    def killed(self, lease: LeaseRecord, outcome: KillOutcome) -> None:
        """Take in how a kill for that record ended."""
        if lease == self.lease:
            self._killed = outcome

    def armed(self, asked_s: int, timeout_s: int) -> None:
        """Take in which timeout the device really has, for the one asked of it; 0 when it could not be armed."""
        self._armed_s = asked_s if timeout_s else 0
        if asked_s == WANTED_TIMEOUT_S and timeout_s:
            self._timeout_s = timeout_s

    @property
    def guarding(self) -> bool:
        """Whether HA guests may be running."""
        dead = self._killed is KillOutcome.PROVEN and not self.lease.starting
        return self.lease.guarded and not dead

    @property
    def last_feed_ns(self) -> int:
        """Latest moment at which a feed lets the device fire in time."""
        return self._fire_by_ns - self._timeout_s * NS_PER_S

    def tick(self, now_ns: int) -> Actions:
        """Return what to do at `now_ns` (CLOCK_BOOTTIME)."""
        over = self.guarding and now_ns >= self.lease.deadline_ns and self._killed is KillOutcome.ALIVE
        kill = self.lease.processes if over and self.lease.processes else None
        if not self._device:
            return Actions(kill=kill)
        if not self.guarding:
            return self._without_guests()
        may_feed = now_ns <= self.last_feed_ns
        arm_s = self._arm_s(now_ns, may_feed)
        if arm_s or may_feed:
            self._fires_ns = now_ns + (arm_s or self._timeout_s) * NS_PER_S
        return Actions(arm_s=arm_s, feed=may_feed and not arm_s, kill=kill)

    def stop(self, now_ns: int) -> Actions:
        """Return what to do when this process is told to end. See the module's third point."""
        if self.guarding:
            return Actions(feed=bool(self._armed_s) and now_ns <= self.last_feed_ns)
        return self._without_guests()

    @property
    def _fire_by_ns(self) -> int:
        return self.lease.deadline_ns + (KILL_BUDGET_MS - FEED_GRACE_MS) * NS_PER_MS

    def _arm_s(self, now_ns: int, may_feed: bool) -> int:
        """Timeout to arm with, 0 to leave the device as it is. It is shortened when it would fire too late.

        That happens when the agent tells a lease that ends sooner than the one it was fed for.
        """
        if may_feed:
            return 0 if self._armed_s == WANTED_TIMEOUT_S else WANTED_TIMEOUT_S
        left_s = max(1, min(WANTED_TIMEOUT_S, (self._fire_by_ns - now_ns) // NS_PER_S))
        sooner = self._fires_ns > self._fire_by_ns and now_ns + left_s * NS_PER_S < self._fires_ns
        return left_s if sooner or not self._armed_s else 0

    def _without_guests(self) -> Actions:
        if self._armed_s and self._can_disarm:
            self._armed_s = 0
            return Actions(disarm=True)
        return Actions(feed=bool(self._armed_s))
