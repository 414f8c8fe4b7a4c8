"""Live migrations as a judge sees them: two QEMU processes of one guest, of which at most one executes.

A process that was started to receive a guest (`-incoming`) is no copy before its CPUs run; from then on the process it came from is none,
unless its CPUs still run: then there are two. Whether CPUs run is read from the kernel: how long their threads were on a processor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: A thread that waits for its guest to arrive is busy for a few milliseconds while it is made, and never again.
EXECUTES_NS = 50_000_000
#: How long CPUs that were stopped may be seen to have run since: within the look in which they were stopped.
STOPPED_NS = 20_000_000

#: QEMU names the threads of a guest's CPUs so when it is started by libvirt (debug-threads=on).
_CPU_THREAD = re.compile(r"CPU \d+/")


class Process(Protocol):
    """What is known of a copy."""

    @property
    def guest(self) -> str:
        """The guest."""

    @property
    def pid(self) -> int:
        """Its process."""


def is_incoming(pid: int) -> bool:
    """Whether a process is a QEMU that was started to receive a guest."""
    with suppress(OSError):
        return b"-incoming" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def executed_ns(pid: int) -> int:
    """How long the threads of a guest's CPUs were on a processor (Documentation/scheduler/sched-stats.rst)."""
    total = 0
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError):
                if _CPU_THREAD.match((task / "comm").read_text()):
                    total += int((task / "schedstat").read_text().split()[0])
    return total


@dataclass
class _Pair:
    """A guest on its way; `left_ns` is how long its source had executed when it was first seen to execute at its target."""

    source: int
    target: int
    began_ns: int
    left_ns: int = -1


class Overlaps:
    """Remembers the pairs of processes that it was shown, from one look to the next."""

    def __init__(
        self, executed: Callable[[int], int] = executed_ns, incoming: Callable[[int], bool] = is_incoming
    ) -> None:
        self._executed, self._incoming = executed, incoming
        self._pairs: dict[str, _Pair] = {}

    def idle(self, copies: Iterable[Process]) -> set[int]:
        """Return the processes that are not to be counted, of all that run now."""
        of: dict[str, list[int]] = {}
        for copy in copies:
            if copy.pid:
                of.setdefault(copy.guest, []).append(copy.pid)
        self._pairs = {
            guest: pair for guest, pair in self._pairs.items() if {pair.source, pair.target} <= {*of.get(guest, ())}
        }
        idle = set[int]()
        for guest, pids in of.items():
            if len(pids) == 2 and (pair := self._pair(guest, pids)) is not None:
                idle |= self._idle(pair)
        return idle

    def _pair(self, guest: str, pids: list[int]) -> _Pair | None:
        if guest not in self._pairs:
            targets = [pid for pid in pids if self._incoming(pid)]
            if len(targets) > 1:  # the source came by a migration itself, and is the one that has executed
                targets = [min(targets, key=self._executed)]
            if not targets:
                return None
            source = next(pid for pid in pids if pid != targets[0])
            self._pairs[guest] = _Pair(source, targets[0], self._executed(targets[0]))
        return self._pairs[guest]

    def _idle(self, pair: _Pair) -> set[int]:
        source_ns, target_ns = self._executed(pair.source), self._executed(pair.target)
        if target_ns < pair.began_ns + EXECUTES_NS:
            return {pair.target}
        if pair.left_ns < 0:
            pair.left_ns = source_ns
        return {pair.source} if source_ns < pair.left_ns + STOPPED_NS else set()
