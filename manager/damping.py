"""When a finding becomes an alarm and when an alarm ends, so that what comes and goes tells of itself a few times only.

Invariant: pure but for its own memory; times are seconds of the caller's clock, which only grows. Whoever starts with an
empty memory, as the next acting manager does, tells nothing twice: what is open is given to every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gugus.cluster.v1.cluster_pb2 import Finding

HOLD_S = 10.0
"""How long a finding must last before it is told: a manager's restart or an election is over by then."""

HOLDS_S = {"EVEN_VOTERS": 600.0, "MANY_VOTERS": 600.0, "NOBODY_ACTS": 30.0, "MEMBER_LAGS": 30.0, "WITNESS_IDLE": 600.0}
"""Those that take their time in the normal course: voters are promoted one after the other, and a newcomer catches up."""

RETURN_S = 10.0
"""A finding that was gone for less counts as one that lasted."""

QUIET_S = 60.0
"""How long it must be gone before its end is told, the first time; twice as long after each return."""

QUIET_MAX_S = 3600.0

_Key = tuple[str, str]


@dataclass(slots=True)
class _Trace:
    """Since when and until when a finding was seen, at which severity at least, and how often it was told."""

    since_s: float
    last_s: float
    told: int = 0


class Damper:
    """The memory of one acting manager."""

    def __init__(self) -> None:
        self._traces: dict[tuple[_Key, int], _Trace] = {}
        self._open: dict[_Key, int] = {}

    def step(
        self, opened: Sequence[Finding], found: Sequence[Finding], now_s: float
    ) -> tuple[list[Finding], list[Finding]]:
        """Return which findings are to be told now, and which of those that are open have ended.

        A finding that is open is told again when it became worse.
        """
        self._count(opened, now_s)
        for finding in found:
            self._see(finding, now_s)
        seen = {key_of(finding) for finding in found}
        told = [finding for finding in found if self._due(finding, now_s)]
        ended = [finding for finding in opened if key_of(finding) not in seen and self._over(finding, now_s)]
        self._forget(now_s)
        return told, ended

    def _count(self, opened: Sequence[Finding], now_s: float) -> None:
        before, self._open = self._open, {key_of(finding): finding.severity for finding in opened}
        for key, severity in self._open.items():
            trace = self._traces.setdefault((key, severity), _Trace(now_s, now_s))
            if key not in before:
                trace.told += 1

    def _see(self, finding: Finding, now_s: float) -> None:
        for severity in range(1, finding.severity + 1):
            trace = self._traces.setdefault((key_of(finding), severity), _Trace(now_s, now_s))
            if now_s - trace.last_s > RETURN_S:
                trace.since_s = now_s
            trace.last_s = now_s

    def _due(self, finding: Finding, now_s: float) -> bool:
        key = key_of(finding)
        lasted_s = now_s - self._traces[key, finding.severity].since_s
        return finding.severity > self._open.get(key, 0) and lasted_s >= HOLDS_S.get(finding.reason, HOLD_S)

    def _over(self, finding: Finding, now_s: float) -> bool:
        trace = self._traces[key_of(finding), finding.severity]
        return now_s - self._last_s(key_of(finding)) >= _quiet_s(trace)

    def _last_s(self, key: _Key) -> float:
        return max(trace.last_s for (of, _), trace in self._traces.items() if of == key)

    def _forget(self, now_s: float) -> None:
        """Drop what neither is open nor was seen for so long that its returns count no more."""
        self._traces = {
            (key, severity): trace
            for (key, severity), trace in self._traces.items()
            if key in self._open or now_s - trace.last_s <= 2 * _quiet_s(trace)
        }


def key_of(finding: Finding) -> _Key:
    """Return what makes two findings the same one."""
    return finding.reason, finding.about


def _quiet_s(trace: _Trace) -> float:
    return float(min(QUIET_S * 2.0 ** max(trace.told - 1, 0), QUIET_MAX_S))
