"""A judge outside of the cluster, who counts how many copies of each guest run, on all nodes at once, all the time.

Invariant: it reads what the machine itself knows (processes and cgroups of the nodes; records of simulated nodes) and
asks no daemon of the cluster, so what it sees is what is. A hung node's guests count, for they may go on.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lab import machine
from lab.api import Lab
from lab.overlap import Overlaps, is_incoming
from lab.plan import LabPlan, NodePlan

#: Seconds between two looks: a second copy that lives a tenth of a second is one too many.
PERIOD_SECONDS = 0.1

#: A container of LXC has a cgroup of its own, of this name in each hierarchy (cgfsng.c of liblxc).
_PAYLOAD = re.compile(r"/lxc\.payload\.([a-z0-9-]+)(?:/|$)")
_GUEST = re.compile(rb"guest=([a-z0-9-]+)[,\0]")


@dataclass(frozen=True, slots=True, order=True)
class Copy:
    """One running copy of a guest: where, and its process (0 for simulated ones)."""

    guest: str
    node: str
    pid: int


@dataclass(frozen=True, slots=True)
class Look:
    """What ran from a moment on, until the next look: wall clock in seconds, as events of the cluster have it."""

    at_s: float
    copies: frozenset[Copy]

    @property
    def twice(self) -> bool:
        """Whether some guest ran more than once."""
        return len({copy.guest for copy in self.copies}) != len(self.copies)

    def of(self, guest: str) -> frozenset[Copy]:
        """The copies of one guest."""
        return frozenset(copy for copy in self.copies if copy.guest == guest)


class Judge:
    """Looks all the time, in a thread of its own, from ``with`` to the end of it. Keeps every change that it saw."""

    def __init__(self, lab: Lab) -> None:
        self._plan = lab.plan
        self._looks: list[Look] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="judge", daemon=True)
        self._trouble: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    @property
    def looks(self) -> Sequence[Look]:
        """Every change since the beginning, oldest first; raises what kept the judge from looking."""
        if self._trouble:
            raise self._trouble
        return tuple(self._looks)

    @property
    def now(self) -> Look:
        """What runs at this moment; while a guest moves, where it came from."""
        seen = look(self._plan)
        coming = {copy for copy in seen.copies if copy.pid and is_incoming(copy.pid) and len(seen.of(copy.guest)) > 1}
        if all(seen.of(copy.guest) <= coming for copy in coming):
            return seen
        return Look(seen.at_s, seen.copies - coming)

    def max_copies(self, guest: str = "") -> int:
        """The most copies of the guest that ever ran at once; of any guest when none is named."""
        most = 0
        for one in self.looks:
            names = [guest] if guest else {copy.guest for copy in one.copies}
            most = max([most, *(len(one.of(name)) for name in names)])
        return most

    def nodes_of(self, guest: str) -> list[str]:
        """The nodes on which the guest was seen, in the order in which it came to them."""
        seen: list[str] = []
        for one in self.looks:
            for copy in sorted(one.of(guest)):
                if not seen or seen[-1] != copy.node:
                    seen.append(copy.node)
        return seen

    def appeared(self, guest: str, node: str, after_s: float = 0.0) -> float | None:
        """When the guest was first seen on the node after a moment (wall clock, seconds); None: never."""
        for one in self.looks:
            if one.at_s >= after_s and any(copy.node == node for copy in one.of(guest)):
                return one.at_s
        return None

    def _watch(self) -> None:
        overlaps = Overlaps()
        try:
            while not self._end.wait(PERIOD_SECONDS):
                seen = look(self._plan)
                idle = overlaps.idle(seen.copies)
                seen = Look(seen.at_s, frozenset(copy for copy in seen.copies if copy.pid not in idle or not copy.pid))
                if not self._looks or self._looks[-1].copies != seen.copies:
                    self._looks.append(seen)
        except Exception as error:  # told by whoever asks for the looks
            self._trouble = error


def look(plan: LabPlan) -> Look:
    """What runs on the nodes of a lab at this moment."""
    find = _real if plan.kind == "real" else _simulated
    return Look(time.time(), frozenset(copy for node in plan.nodes() for copy in find(node)))


def expected(copies: frozenset[Copy]) -> Mapping[str, str]:
    """Where each guest runs, guest -> node, of a look in which each has one copy."""
    return {copy.guest: copy.node for copy in copies}


def _simulated(node: NodePlan) -> Iterator[Copy]:
    for file in (node.folder / "run" / "simulated").glob("[!.]*.json"):
        yield Copy(file.stem, node.name, 0)


def _real(node: NodePlan) -> Iterator[Copy]:
    top = machine.freezer(node.container)
    for folder, _, files in os.walk(top):
        if "cgroup.procs" not in files:
            continue
        container = _PAYLOAD.search(folder)
        with suppress(OSError):
            for pid in map(int, Path(folder, "cgroup.procs").read_text().split()):
                guest = _init_of(pid, container[1]) if container else _machine_of(pid)
                if guest and machine.process_runs(pid):
                    yield Copy(guest, node.name, pid)


def _machine_of(pid: int) -> str:
    """The guest whose QEMU this process is; "" for anything else."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"qemu" in words.split(b"\0", 1)[0] and (found := _GUEST.search(words)):
            return found[1].decode()
    return ""


def _init_of(pid: int, container: str) -> str:
    """The container whose init this process is: number 1 of the innermost of its process namespaces."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return container if line.split()[-1] == "1" else ""
    return ""
