"""Pings of a guest from both hosts at once: how long it answered on neither.

The guest's address is on a bridge of each host; whoever has the guest gets the answers. Both know its MAC address beforehand:
a host that had to ask for it would hear of the guest up to a second after it has come.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import IO, Self

from lab.api import Lab, LabError

#: Seconds between two pings of a host; the resolution of what is measured.
PERIOD = 0.01

#: Programs that share a host's pings: one that is to send every 10 ms or more often spins in between (iputils, `main_loop`), and takes
#: a processor from what is measured.
SHARES = 2
_REPLY = re.compile(r"^\[(\d+\.\d+)\] \d+ bytes from .*icmp_seq=(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest as its network knows it."""

    address: str
    mac: str


class Unheard(LabError):
    """A host got no answer at all."""


@dataclass(frozen=True, slots=True)
class Silence:
    """The longest time without an answer in milliseconds, and how many pings were lost outside of it."""

    longest_ms: float
    lost_elsewhere: int


class Pings:
    """Pings while it is entered. period: seconds between two."""

    def __init__(self, lab: Lab, nodes: list[str], bridge: str, guest: Guest, period: float = PERIOD) -> None:
        self._lab, self._nodes, self._bridge, self._guest, self._period = lab, nodes, bridge, guest, period
        self._running: list[tuple[str, subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> Self:
        for node in self._nodes:
            known = [self._guest.address, "lladdr", self._guest.mac, "dev", self._bridge, "nud", "permanent"]
            self._lab.exec(node, ["ip", "neighbour", "replace", *known], check=True)
        for share in range(SHARES):
            for node in self._nodes:
                ping = ["ping", "-D", "-i", str(self._period * SHARES), "-W", "1", self._guest.address]
                words, environment = self._lab.command(node, ping)
                output = tempfile.TemporaryFile()
                process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)
                self._running.append((node, process, output))
            if share + 1 < SHARES:
                time.sleep(self._period)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for node in self._nodes:
            self._lab.exec(node, ["pkill", "-INT", "ping"])
            self._lab.exec(node, ["ip", "neighbour", "del", self._guest.address, "dev", self._bridge])
        for _, process, _ in self._running:
            process.wait(10)

    def silence(self) -> Silence:
        """What was heard; to be called afterwards. Raises Unheard when a host heard nothing: then it shows no downtime."""
        answers = self.answers()
        if deaf := [node for node, heard in answers.items() if not heard]:
            raise Unheard(f"{deaf[0]} got no answer from {self._guest.address}")
        times = sorted(at_s for heard in answers.values() for at_s in heard)
        gaps = sorted((later - one for one, later in pairwise(times)), reverse=True)
        lost = sum(round(gap / self._period) - 1 for gap in gaps[1:] if gap > 1.0)
        return Silence(round(gaps[0] * 1000, 1), lost)

    def answers(self) -> dict[str, list[float]]:
        """When each host got answers (wall clock, seconds); to be called afterwards."""
        found: dict[str, list[float]] = {node: [] for node in self._nodes}
        for node, _, output in self._running:
            output.seek(0)
            text = output.read().decode(errors="replace")
            found[node] += [float(match[1]) for match in _REPLY.finditer(text)]
        return found
