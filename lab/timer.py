"""The countdown of a watchdog: what a real one does in hardware, driven by the lines that come through the node's
/dev/watchdog.

Invariant: pure; the clock is an argument. Disarmed until the first byte; once armed, only the magic close or a loss of
power disarms it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: What the timer counts down from until it is told another timeout, seconds; the Linux softdog's default.
DEFAULT_SECONDS = 60.0
#: A line longer than this is noise; it still counts as a feeding, as any write to a hardware watchdog does.
LONGEST_LINE = 256


@dataclass(frozen=True, slots=True)
class Timer:
    """State of one watchdog. ``deadline``: when it fires (seconds, any monotonic clock); None while disarmed."""

    timeout: float = DEFAULT_SECONDS
    deadline: float | None = None
    rest: bytes = b""

    def receive(self, data: bytes, now: float) -> Timer:
        """The state after ``data`` came at ``now``: lines ``timeout SECONDS``, ``feed`` and ``V`` (magic close)."""
        *lines, rest = (self.rest + data).split(b"\n")
        timer = replace(self, rest=rest[-LONGEST_LINE:], deadline=now + self.timeout) if data else self
        for line in lines:
            timer = timer._line(line.strip(), now)
        return timer

    def expired(self, now: float) -> bool:
        """Whether the node must be reset."""
        return self.deadline is not None and now >= self.deadline

    def disarmed(self) -> Timer:
        """The state after the node lost power."""
        return Timer()

    def _line(self, line: bytes, now: float) -> Timer:
        if line == b"V":
            return replace(self, deadline=None)
        word, _, seconds = line.partition(b" ")
        if word == b"timeout":
            try:
                timeout = float(seconds)
            except ValueError:
                timeout = self.timeout
            if 0 < timeout < float("inf"):
                return replace(self, timeout=timeout, deadline=now + timeout)
        return replace(self, deadline=now + self.timeout)
