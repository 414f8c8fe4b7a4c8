"""Arithmetic of node and manager leases: who may act until when, and when another may be sure that it stopped.

Invariant: for one renewal, `holder_deadline_ns` (on the holder's clock, counted from before it asked) always lies
earlier in real time than `safe_after_ns` (on the granter's clock, counted from after it answered), whatever the delay
of messages and for clocks that drift apart by at most `drift_ppm`. Both clocks count nanoseconds and only differences
of the same clock are ever formed.
"""

from dataclasses import dataclass

NS_PER_MS = 1_000_000

DEFAULT_NODE_LEASE_MS = 10_000
MIN_NODE_LEASE_MS = 3_000
MAX_NODE_LEASE_MS = 60_000

HEARTBEAT_PERIOD_MS = 1_000
"""An agent renews so often: nine renewals may be lost before a default lease ends."""

KILL_BUDGET_MS = 2_000
"""From the end of a lease until every HA guest of the host is dead, or the watchdog has reset the host."""

DRIFT_PPM = 1_000
"""Bound on how far two hosts' clocks drift apart, in parts per million.

Quartz drifts by less than 100 ppm, NTP slews by at most 500 ppm (adjtimex(2)).
"""

FENCE_MARGIN_MS = 250
"""Added for the grain of timers and schedulers on both sides."""

MANAGER_LEASE_MS = 3_000
"""Length of the acting manager's own lease in the replicated state."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """How long a node lease lasts and what is added before its end is held for proven. Milliseconds."""

    lease_ms: int = DEFAULT_NODE_LEASE_MS
    kill_budget_ms: int = KILL_BUDGET_MS
    margin_ms: int = FENCE_MARGIN_MS
    drift_ppm: int = DRIFT_PPM


def holder_deadline_ns(asked_ns: int, lease_ms: int) -> int:
    """Return when a holder that asked at `asked_ns` (its own clock) must have stopped relying on the lease."""
    return asked_ns + lease_ms * NS_PER_MS


def safe_after_ns(answered_ns: int, times: LeaseTimes) -> int:
    """Return when the granter that last answered at `answered_ns` (its own clock) knows the holder's guests for dead.

    The sum is stretched by the drift bound, for the holder's clock may run slower than the granter's.
    """
    wait_ns = (times.lease_ms + times.kill_budget_ms + times.margin_ms) * NS_PER_MS
    return answered_ns + wait_ns + wait_ns * times.drift_ppm // 1_000_000
