"""The node lease as its holder sees it: a state machine of beats and time that decides when HA guests must die.

Invariant: while the phase is HELD, some beat was sent less than one lease ago and answered; once it has left HELD, no
start of an HA guest is allowed until a beat *that carried the report of that lapse* was answered with a lease. A
late answer to an earlier beat never renews: the granter would still hold the report to come for proof that nothing
runs here, after guests had been started again.

Pure: no clock, no thread, no I/O. All times are nanoseconds of CLOCK_BOOTTIME, which counts through suspension.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

from common.leases import NS_PER_MS, holder_deadline_ns

MAX_BEATS_IN_FLIGHT = 64
"""Beats whose answer is awaited; older ones are forgotten, and so can renew nothing. A lease has ten by default."""

ENDANGERED_PERCENT = 40
"""Part of the lease, in hundredths, without a renewal after which it is endangered: 4 s of 10 s, so four beats in a row without an answer,
and one that is late does not count. A host's change to another manager takes 2.5 s and a little (ANSWER_TIMEOUT_S of the heartbeat)."""

REFUSALS_BEFORE_NEW_REPORT = 5
"""Answers "fenced" to beats with the present report before the host is emptied again under a new number.

A manager takes a report once; if that was lost on its side, only a higher number is proof again.
"""


BOOT_IS_NEWS_NS = 5_000_000_000
"""For so long "fenced" is taken for the answer of a manager that has not yet dealt with this boot: it looks at each guest of the host
first, which takes a part of a second. A lapse reported meanwhile would be news when the host has its lease, and cost it that again."""


class Phase(StrEnum):
    """Where the lease stands."""

    VACANT = "vacant"
    """No lease was held in this boot: nothing of HA can run."""
    HELD = "held"
    """HA guests may run until the deadline."""
    LAPSING = "lapsing"
    """The lease has ended, and HA guests are not yet proven dead."""
    LAPSED = "lapsed"
    """All HA guests are dead, the report of it is durable and goes out with every beat."""


@dataclass(frozen=True, slots=True)
class _Beat:
    sent_ns: int
    lapses: int
    """Number of the last lapse when it was sent: an answer counts only while that is still the last one."""


class LeaseKeeper:
    """Turns beats, answers and time into a phase. Not thread-safe: its owner holds a lock."""

    def __init__(self, *, lapses: int = 0) -> None:
        """Start in VACANT. lapses: number of the last lapse report of this host, 0 when there was none."""
        self.phase = Phase.VACANT
        self.deadline_ns = 0
        self.lapses = lapses
        self._beats: OrderedDict[int, _Beat] = OrderedDict()
        self._refusals = 0
        self._renewed_by_ns = -1
        self._booted = False
        self.lease_ns = 0
        """Length of the lease as it was last granted; 0 while this process has not been granted one."""
        self._refused_since_ns: int | None = None

    def boot(self) -> None:
        """This is the first process of its boot, and nothing of HA runs: the boot itself is the report of that, and in time it is taken."""
        self._booted = True

    def resume(self, deadline_ns: int, now_ns: int) -> None:
        """Take up the lease that an earlier process of this boot held; one that has ended is a lapse."""
        self.deadline_ns = deadline_ns
        self.phase = Phase.HELD if now_ns < deadline_ns else Phase.LAPSING

    def beat_sent(self, sequence: int, now_ns: int) -> None:
        """Note a beat at the moment before it is sent. `sequence` rises over all streams of this process."""
        self._beats[sequence] = _Beat(now_ns, self.lapses)
        while len(self._beats) > MAX_BEATS_IN_FLIGHT:
            self._beats.popitem(last=False)

    def beat_answered(self, sequence: int, lease_ms: int, *, fenced: bool, now_ns: int) -> bool:
        """Note an answer of the acting manager; return whether it renewed the lease.

        lease_ms: 0 from a manager that does not renew just now, while it is new or decides about this node.
        fenced: the manager holds this node for fenced. The HA guests must die at once, whatever the deadline says.
        """
        beat = self._beats.pop(sequence, None)
        self.tick(now_ns)
        if beat is None or beat.lapses != self.lapses:
            return False
        if fenced:
            self._refused(now_ns)
            return False
        self._refused_since_ns = None
        if lease_ms <= 0 or self.phase is Phase.LAPSING or beat.sent_ns <= self._renewed_by_ns:
            return False  # without a lease it is no renewal, and what was promised before still holds
        self.lease_ns = lease_ms * NS_PER_MS
        return self._renew(beat, holder_deadline_ns(beat.sent_ns, lease_ms), now_ns)

    def tick(self, now_ns: int) -> Phase:
        """Let time pass; return the phase. LAPSING is the instruction to kill all HA guests now."""
        if self.phase is Phase.HELD and now_ns >= self.deadline_ns:
            self.phase = Phase.LAPSING
        return self.phase

    def end(self) -> None:
        """The lease is over before its time: it is given up, or something runs here that may not without one."""
        self.phase = Phase.LAPSING

    def emptied(self, number: int) -> None:
        """All HA guests are dead and report `number` is durable."""
        if self.phase is not Phase.LAPSING:
            raise ValueError(f"emptied in phase {self.phase}")
        self.phase, self.lapses, self.deadline_ns, self._refusals = Phase.LAPSED, number, 0, 0

    def holds(self, now_ns: int) -> bool:
        """Whether HA guests may run now."""
        return self.tick(now_ns) is Phase.HELD

    def endangered(self, now_ns: int) -> bool:
        """Whether the lease is held and was not renewed for so large a part of it that guests may want to end before it does."""
        left_ns = self.remaining_ns(now_ns)
        return 0 < left_ns < self.lease_ns * (100 - ENDANGERED_PERCENT) // 100

    def remaining_ns(self, now_ns: int) -> int:
        """Time left, 0 when there is no lease."""
        return max(0, self.deadline_ns - now_ns) if self.holds(now_ns) else 0

    def _renew(self, beat: _Beat, deadline_ns: int, now_ns: int) -> bool:
        """Count from the latest beat answered, even to an earlier deadline: the granter does so, too."""
        if self.phase is not Phase.HELD and deadline_ns <= now_ns:
            return False
        self.phase, self.deadline_ns, self._refusals = Phase.HELD, deadline_ns, 0
        self._renewed_by_ns = beat.sent_ns
        return self.holds(now_ns)

    def _refused(self, now_ns: int) -> None:
        if self.phase is Phase.VACANT and self._booted:
            if self._refused_since_ns is None:
                self._refused_since_ns = now_ns
            if now_ns - self._refused_since_ns < BOOT_IS_NEWS_NS:
                return
        if self.phase is Phase.LAPSED:
            self._refusals += 1
            if self._refusals < REFUSALS_BEFORE_NEW_REPORT:
                return
        self.end()
