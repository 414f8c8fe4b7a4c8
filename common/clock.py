"""Clocks, injectable: leases count on clocks that never jump, and the simulator brings its own."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as a piece of logic sees it. Only differences of the first two have a meaning."""

    def boottime_ns(self) -> int:
        """Nanoseconds since boot, suspension included (CLOCK_BOOTTIME, clock_gettime(2))."""
        ...

    def monotonic_s(self) -> float:
        """Seconds on a clock that stands still while the host is suspended (CLOCK_MONOTONIC)."""
        ...

    def wall_s(self) -> float:
        """Unix time in seconds, for people and expiry dates only; it may jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait on the monotonic clock."""
        ...


class SystemClock:
    """The clocks of this host."""

    def boottime_ns(self) -> int:
        """Return nanoseconds since boot, suspension included."""
        return boottime_ns()

    def monotonic_s(self) -> float:
        """Return seconds of CLOCK_MONOTONIC."""
        return monotonic_s()

    def wall_s(self) -> float:
        """Return Unix time in seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


def boottime_ns() -> int:
    """Return nanoseconds since boot, suspension included: a suspended agent's lease goes on running out."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def monotonic_s() -> float:
    """Return seconds of CLOCK_MONOTONIC."""
    return time.monotonic()
