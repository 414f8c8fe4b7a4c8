"""What the guest controller remembers of failures: when to try again, and what was told already. Lost with the term, which does no harm."""

import time
from collections.abc import Callable

from gugus.cluster.v1.guest_pb2 import Guest

from manager.guests.start_after import WAIT_LIMIT_S

MAX_DELAY_S = 60.0
"""What fails is tried again after 1, 2, 4, ... seconds, at most this."""

IN_USE_S = 1.0
"""A guest whose disk is in use elsewhere is tried again so often: its start takes about as long to notice that it is not any more."""

STEADY_S = 60.0
"""A guest that ends by itself sooner after its start than this is started again later each time."""


class Waits:
    """For how long guests have been waiting for those that they start after, and for whom. Times are of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._over: dict[str, str] = {}

    def bounded(self, name: str, why: str) -> str:
        """Return why a guest waits on; "" when there is no reason to, or it has waited for long enough."""
        self._over.pop(name, None)
        if not why:
            self._since.pop(name, None)
            return ""
        if time.monotonic() - self._since.setdefault(name, time.monotonic()) < WAIT_LIMIT_S:
            return why
        self._over[name] = why
        return ""

    def over(self, name: str) -> str:
        """Return for whom a guest has waited for long enough; "" when it did not have to."""
        return self._over.get(name, "")

    def forget(self, name: str) -> None:
        """The guest was started, or is gone."""
        self._since.pop(name, None)
        self._over.pop(name, None)


class Retries:
    """Times are of `clock`, in seconds: CLOCK_MONOTONIC."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._retry_at: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._started: dict[str, float] = {}
        self._seen: dict[str, float] = {}
        self._upkeep: dict[str, int] = {}
        self.waits = Waits()
        self._failed_spec: dict[str, int] = {}
        """Number of the spec that a guest failed with."""
        self._kept_waiting: set[str] = set()
        """Guests whose disks something else still had when they were last to start."""

    def forget(self, name: str) -> None:
        """Forget a guest that is gone."""
        for known in (self._retry_at, self._told, self._started, self._seen, self._upkeep, self._failed_spec):
            known.pop(name, None)
        self.waits.forget(name)
        self._kept_waiting.discard(name)

    def delay_s(self, name: str, spec_number: int) -> float:
        """Return for how long what failed is not tried again; 0 when it may be, as a spec that was changed since may at once."""
        if self._failed_spec.get(name, spec_number) != spec_number:
            return 0.0
        return max(0.0, self._retry_at.get(name, 0.0) - self._clock())

    def wait(self, name: str, delay_s: float, spec_number: int) -> None:
        """Try a spec again after so long."""
        self._failed_spec[name] = spec_number
        self._retry_at[name] = self._clock() + delay_s

    def keep_waiting(self, name: str, spec_number: int) -> None:
        """Something else has a disk of a guest, which is no failure of it: try again soon, and say so until it has started."""
        self._kept_waiting.add(name)
        self.wait(name, IN_USE_S, spec_number)

    def kept_waiting(self, name: str) -> bool:
        """Return whether a guest could not be started for what else has a disk of it."""
        return name in self._kept_waiting

    def started(self, name: str) -> None:
        """A guest was started: all that failed before is over."""
        self._kept_waiting.discard(name)
        self._retry_at.pop(name, None)
        self._told.pop(name, None)
        self._started[name] = self._seen[name] = self._clock()

    def succeeded(self, name: str) -> None:
        """A change of a guest was carried out."""
        self._upkeep.pop(name, None)
        self._retry_at.pop(name, None)
        self._told.pop(name, None)

    def upkeep_failed(self, name: str, spec_number: int) -> float:
        """Count a failure to change a guest that runs or is stopped all the same; return after how long to try again."""
        if self._failed_spec.get(name) != spec_number:
            self._upkeep.pop(name, None)
        self._upkeep[name] = self._upkeep.get(name, 0) + 1
        delay_s = backoff_s(self._upkeep[name])
        self.wait(name, delay_s, spec_number)
        return delay_s

    def steady(self, name: str) -> bool:
        """Return whether a guest ran for long before it ended, or was not started by this manager."""
        return self._clock() - self._started.get(name, float("-inf")) > STEADY_S

    def running_for_s(self, name: str) -> float:
        """Return for how long a guest that runs has been running, as far as this manager knows: since it first looked."""
        return self._clock() - self._seen.setdefault(name, self._clock())

    def is_news(self, name: str, text: str) -> bool:
        """Return whether an error is another one than the last, and remember it."""
        if self._told.get(name) == text:
            return False
        self._told[name] = text
        return True


def backoff_s(failures: int) -> float:
    """Return after how many seconds to try again after so many failures in a row."""
    return float(min(2.0 ** min(failures - 1, 10), MAX_DELAY_S))


def count_end(guest: Guest, *, steady: bool) -> float:
    """Count that a guest ended by itself; return after how many seconds to start it again. steady: it had run for long."""
    guest.status.failures = 1 if steady else guest.status.failures + 1
    return 0.0 if guest.status.failures == 1 else backoff_s(guest.status.failures - 1)
