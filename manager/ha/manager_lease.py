"""The acting manager's lease: who may answer heartbeats and command agents.

Invariant: at most one manager holds a valid lease at any moment. A holder counts its validity from before it proposed
the renewal; every other counts a full time to live, stretched by the drift bound, from after it saw the lease change;
so the holder's count always ends first. Times are nanoseconds of each manager's own clock, which suspension does not stop.

Raft's leadership only says who can commit. The lease is taken with the next epoch, renewed with a rising counter, and
both compare the exact revision that was seen. A holder that restarted has forgotten until when it was valid, and
waits like everyone else. Only this process's own proposals make it a holder (`claimed`).
"""

from dataclasses import dataclass, replace

from common.leases import DRIFT_PPM, FENCE_MARGIN_MS, NS_PER_MS, holder_deadline_ns

RENEWALS_PER_TTL = 3
"""A lease is renewed after a third of its time: two renewals may fail before it ends."""


@dataclass(frozen=True, slots=True)
class LeaseView:
    """The lease as the local replica shows it; `revision` is the store's, of its last change."""

    holder: str
    epoch: int
    ttl_ms: int
    renewals: int
    revision: int


@dataclass(frozen=True, slots=True)
class Acquire:
    """Propose: holder me, this epoch; only if the lease is at revision `expected` (0: only if there is none)."""

    epoch: int
    expected: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Propose: the same holder and epoch, renewals counted up; only if the lease is at revision `expected`."""

    epoch: int
    renewals: int
    expected: int


@dataclass(frozen=True, slots=True)
class Release:
    """Propose an empty holder; only if the lease is at revision `expected`. After the last act, never before."""

    expected: int


@dataclass(frozen=True, slots=True)
class StandDown:
    """Stop acting: the lease is not valid any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing to do before `until_ns` unless something changes."""

    until_ns: int
    reason: str


Instruction = Acquire | Renew | StandDown | Hold


@dataclass(frozen=True, slots=True)
class LeaseMachine:
    """One manager's view of the lease. Every method returns a new one.

    claimed: highest epoch that this process proposed to hold. seen_ns: when the lease as it is now was first seen.
    """

    me: str
    lease: LeaseView | None = None
    seen_ns: int = 0
    claimed: int = 0
    asked_ns: int = 0
    valid_until_ns: int | None = None

    @property
    def epoch(self) -> int:
        """Epoch in which this manager acts; 0 when the lease is not its own."""
        return self.lease.epoch if self.lease and self._mine(self.lease) else 0

    def acting(self, now_ns: int) -> bool:
        """Return whether this manager may act now."""
        return self.valid_until_ns is not None and now_ns < self.valid_until_ns

    def observe(self, lease: LeaseView | None, now_ns: int) -> "LeaseMachine":
        """Take in the lease as the local replica shows it now, after it was applied."""
        if lease == self.lease:
            return self
        mine = lease is not None and self._mine(lease)
        return replace(self, lease=lease, seen_ns=now_ns, valid_until_ns=self.valid_until_ns if mine else None)

    def proposed(self, epoch: int, asked_ns: int) -> "LeaseMachine":
        """Note, before proposing, what is proposed and when: if its outcome stays unknown, it may still be ours."""
        return replace(self, claimed=max(self.claimed, epoch), asked_ns=asked_ns)

    def granted(self, asked_ns: int, lease: LeaseView) -> "LeaseMachine":
        """Take in that a proposal asked for at `asked_ns` was committed, and what the lease is now."""
        if not self._mine(lease):
            return self.observe(lease, asked_ns)
        until_ns = max(self.valid_until_ns or 0, holder_deadline_ns(asked_ns, lease.ttl_ms))
        return replace(self, lease=lease, seen_ns=asked_ns, valid_until_ns=until_ns)

    def step(self, now_ns: int, leads: bool, drift_ppm: int = DRIFT_PPM) -> Instruction:
        """Return what to do now. leads: whether this member leads Raft, that is, whether proposals make sense."""
        lease = self.lease
        if lease is not None and self._mine(lease):
            return self._keep(lease, now_ns, leads)
        if self.valid_until_ns is not None:
            return StandDown(f"the lease is held by {lease.holder or 'nobody' if lease else 'nobody'}")
        if lease is None or not lease.holder:
            expected = lease.revision if lease else 0
            return Acquire((lease.epoch if lease else 0) + 1, expected) if leads else Hold(now_ns, "not leading")
        free_ns = self.seen_ns + waited_out_ns(lease.ttl_ms, drift_ppm)
        if now_ns < free_ns:
            return Hold(free_ns, f"{lease.holder} may be acting until the lease was waited out")
        return Acquire(lease.epoch + 1, lease.revision) if leads else Hold(now_ns, "not leading")

    def released(self) -> Release | None:
        """Return what to propose to hand the lease back; None when it is not ours."""
        return Release(self.lease.revision) if self.lease and self._mine(self.lease) else None

    def _keep(self, lease: LeaseView, now_ns: int, leads: bool) -> Instruction:
        renew_ns = self.asked_ns + lease.ttl_ms * NS_PER_MS // RENEWALS_PER_TTL
        if leads and (now_ns >= renew_ns or not self.acting(now_ns)):
            return Renew(lease.epoch, lease.renewals + 1, lease.revision)
        if not self.acting(now_ns):
            return StandDown("the lease ended before it could be renewed")
        return Hold(min(renew_ns, self.valid_until_ns or renew_ns), "acting")

    def _mine(self, lease: LeaseView) -> bool:
        return lease.holder == self.me and 0 < self.claimed <= lease.epoch


def waited_out_ns(ttl_ms: int, drift_ppm: int) -> int:
    """Return how long another waits after it last saw the lease change, before it may take over."""
    wait_ns = (ttl_ms + FENCE_MARGIN_MS) * NS_PER_MS
    return wait_ns + wait_ns * drift_ppm // 1_000_000
