"""When to feed the watchdog device, when to kill, when to disarm: pure, the clock is an argument.

Invariant: if HA guests may be running when their lease ends at D, then by D + KILL_BUDGET either the device has fired
or it is proven that they are dead. The device fires `timeout` after the last feed, so the last feed may be given no
later than D + KILL_BUDGET - timeout - FEED_GRACE: feeding pauses before a lease that is not renewed runs out, and goes
on when it is. All of it is counted with the timeout that the device really has, not with the one asked of it.

What follows from it:
- The device is armed only while HA guests may run: a host without any is never reset, and may stop this process.
- At D the recorded HA processes are killed here, too: if the agent died, no reset is needed when all of them are seen
  dead, whoever killed them: what could start one anew (a container's monitor) is recorded with them. A start of unknown
  outcome is never proven dead: then feeding stays paused, and the device fires.
- A record of guests without a lease (D = 0) gets the whole kill budget from when it was first heard.
- A stop of this process while HA guests may run leaves the device armed: nothing else would guard them. It leaves it
  the longest timeout that still fires by D + KILL_BUDGET, for a restart on a busy host takes its time. The new process
  reads the lease record that the agent wrote, and feeds at once. Where feeding is over, it leaves the armed device
  alone, which then fires in time. A device that is not armed yet is armed with what is left until D + KILL_BUDGET, a
  second at least.
- An armed device that this process found is not stopped before a record was heard: who armed it knew of guests.
"""

from dataclasses import dataclass

from agent.fencing.record import LeaseRecord
from common.leases import KILL_BUDGET_MS, NS_PER_MS

NS_PER_S = 1_000_000_000

FEED_GRACE_MS = 250
"""For the time from the decision to feed until the device has it, and for the grain of its timer."""

WANTED_TIMEOUT_S = 4
"""Device timeout that is asked for. With the default lease of 10 s feeding pauses 2.25 s before its end, so that seven
renewals may be lost before a reset is even near."""

MAX_TIMEOUT_S = 8
"""A device whose shortest timeout is longer is of no use: a lease of 10 s could hardly be fed at all. So long, at most,
an armed device is left alone at a stop of this process."""

TICK_S = 0.25
"""So often everything is looked at, and the device fed when allowed."""


@dataclass(frozen=True, slots=True)
class Actions:
    """What to do now. kill: the record whose processes are to be killed; ask again afterwards, before the rest is done.

    The rest in this order. arm_s: arm with this timeout in seconds, 0 for not.
    """

    kill: LeaseRecord | None = None
    arm_s: int = 0
    feed: bool = False
    disarm: bool = False


class WatchdogCore:
    """Decides, and is told what was done.

    device: whether there is one. can_disarm: whether a magic close stops it. inherited: whether an earlier process of
    this boot armed it and left it so.
    """

    def __init__(self, *, device: bool = False, can_disarm: bool = True, inherited: bool = False) -> None:
        self._device, self._can_disarm, self._inherited = device, can_disarm, inherited
        self._timeout_s = 0  # what the device counts down from; 0 when it is not armed here
        self._fires_ns = 0
        self._least_s, self._most_s = 0, 1 << 31  # what the device is known to make of shorter, and of longer ones
        self._since_ns = 0  # when guests without a lease were first heard of
        self._dead = False
        self._heard = False
        self.lease = LeaseRecord()

    def heard(self, lease: LeaseRecord) -> None:
        """Take in what the agent says. What it says last holds."""
        self._heard = True
        if lease != self.lease:
            self.lease, self._dead = lease, False
        if lease.deadline_ns or not lease.guarded:
            self._since_ns = 0

    def killed(self, lease: LeaseRecord, *, dead: bool) -> None:
        """Take in how a kill for that record ended: whether all its processes are dead for certain."""
        if lease == self.lease:
            self._dead = dead

    def armed(self, asked_s: int, timeout_s: int, now_ns: int) -> None:
        """Take in which timeout the device made of the one asked of it; 0 when it could not be armed."""
        self._timeout_s, self._fires_ns = timeout_s, now_ns + timeout_s * NS_PER_S
        self._inherited = self._inherited and not timeout_s
        if timeout_s > asked_s:
            self._least_s = max(self._least_s, timeout_s)
        elif 0 < timeout_s < asked_s:
            self._most_s = timeout_s

    def fed(self, now_ns: int) -> None:
        """Take in that the device was fed."""
        self._fires_ns = now_ns + self._timeout_s * NS_PER_S

    def disarmed(self) -> None:
        """Take in that the device was stopped."""
        self._timeout_s, self._inherited = 0, False

    @property
    def guarding(self) -> bool:
        """Whether HA guests may be running."""
        return self.lease.guarded and not (self._dead and not self.lease.starting)

    @property
    def late_ns(self) -> int:
        """How much too late an armed device fires that cannot do better; 0 when it does not."""
        return max(0, self._fires_ns - self._fire_by_ns) if self.guarding and self._timeout_s else 0

    def tick(self, now_ns: int) -> Actions:
        """Return what to do at `now_ns` (CLOCK_BOOTTIME)."""
        if self.lease.guarded and not self.lease.deadline_ns and not self._since_ns:
            self._since_ns = now_ns
        over = self.guarding and now_ns >= self._deadline_ns and not self._dead
        kill = self.lease if over and self.lease.processes else None
        if not self._device:
            return Actions(kill)
        return self._guard(now_ns, kill) if self.guarding else self._without_guests()

    def stop(self, now_ns: int) -> Actions:
        """Return what to do when this process is told to end; ask again after arming. See the module's fourth point."""
        if not self.guarding:
            return self._without_guests()
        if not self._timeout_s:
            return Actions()
        if self._fires_ns > self._fire_by_ns and self._fits(now_ns, WANTED_TIMEOUT_S):
            return Actions(arm_s=WANTED_TIMEOUT_S)  # it made more of a longer timeout than was asked of it
        longest_s = min(MAX_TIMEOUT_S, (self._fire_by_ns - now_ns) // NS_PER_S)
        if self._real_s(longest_s) == longest_s > self._timeout_s:
            return Actions(arm_s=longest_s)
        return Actions(feed=self._fits(now_ns, self._timeout_s))

    @property
    def _deadline_ns(self) -> int:
        return self.lease.deadline_ns or self._since_ns

    @property
    def _fire_by_ns(self) -> int:
        return self._deadline_ns + (KILL_BUDGET_MS - FEED_GRACE_MS) * NS_PER_MS

    def _fits(self, now_ns: int, timeout_s: int) -> bool:
        """Whether a device that is fed now still fires in time."""
        return now_ns + timeout_s * NS_PER_S <= self._fire_by_ns

    def _real_s(self, asked_s: int) -> int:
        """What the device makes of a timeout, as far as is known."""
        return min(max(asked_s, self._least_s), self._most_s)

    def _guard(self, now_ns: int, kill: LeaseRecord | None) -> Actions:
        """Feed as long as that is allowed, with the wanted timeout if it fits, else with the one that it has.

        An armed device is given another, shorter timeout when it would fire too late, which happens when the agent
        tells a lease that ends sooner than the one it was fed for; but only if it fires sooner by it.
        """
        wanted_s = self._real_s(WANTED_TIMEOUT_S)
        if self._fits(now_ns, wanted_s) and self._timeout_s != wanted_s:
            return Actions(kill, arm_s=WANTED_TIMEOUT_S)
        if self._timeout_s and self._fits(now_ns, self._timeout_s):
            return Actions(kill, feed=True)
        left_s = min(max(1, (self._fire_by_ns - now_ns) // NS_PER_S), WANTED_TIMEOUT_S)
        late = self._fires_ns > self._fire_by_ns and now_ns + self._real_s(left_s) * NS_PER_S < self._fires_ns
        unarmed = not self._timeout_s and not self._inherited
        return Actions(kill, arm_s=left_s if unarmed or late else 0)

    def _without_guests(self) -> Actions:
        if self._inherited:
            return Actions(arm_s=WANTED_TIMEOUT_S, disarm=self._can_disarm) if self._heard else Actions()
        armed = bool(self._timeout_s)
        return Actions(feed=armed, disarm=armed and self._can_disarm)
