"""A second cluster of one node beside the room's, a way between the two networks, and a judge who counts copies in both."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.task_pb2 import Task

from client.across.live import SEND
from lab import cluster as clusters
from lab import demo_guests
from lab.api import Lab
from lab.images import Heartbeat
from lab.judge import Copy, look
from lab.operator import Operator
from lab.overlap import Overlaps
from tests import runs

NAME = "ci2"
FORWARDING = "/proc/sys/net/ipv4/conf/{bridge}/forwarding"
"""Of what comes in by this bridge (ip-sysctl.rst): gone with it, also when this run is killed."""

LOOK_SECONDS = 0.1
COMMAND_SECONDS = 120.0


@dataclass
class Side:
    """One of the two clusters."""

    lab: Lab
    operator: Operator

    @property
    def config(self) -> Path:
        """The client's configuration."""
        return clusters.operator_config(self.lab.plan)

    def guest(self, name: str) -> Guest | None:
        """A guest, None when there is none."""
        return next((guest for guest in self.operator.guests() if guest.meta.name == name), None)

    def beats(self, name: str) -> tuple[Heartbeat, ...]:
        """What a guest wrote on its disk."""
        guest = self.guest(name)
        return demo_guests.beats(self.lab.plan, guest) if guest is not None else ()

    def sent_percent(self, name: str) -> int:
        """How far the sending of a guest is that is under way."""
        tasks: list[Task] = list(self.operator.run(self.operator.gugus.tasks.list(target=f"guest/{name}", active=True)))
        return next((task.progress_percent for task in tasks if task.kind == SEND), 0)


def command(here: Side, there: Side, name: str, *words: str) -> subprocess.Popen[str]:
    """Begin `gugus guest migrate --to-cluster` as people do."""
    argv = ["gugus", "--config", str(here.config), "guest", "migrate", name, "--to-cluster", str(there.config), "--yes"]
    return subprocess.Popen([*argv, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command; return its exit code and what it wrote."""
    try:
        words, _ = process.communicate(timeout=COMMAND_SECONDS)
    finally:
        process.kill()
    return process.returncode, words


@contextmanager
def other_cluster(room: Lab) -> Iterator[Side]:
    """Bring up the second cluster, with the network and the pool of the room's, and let the two networks reach each other."""
    lab = runs.current().take_lab(NAME)
    lab.down()
    try:
        lab.up(1)
        for side in (room, lab):
            Path(FORWARDING.format(bridge=side.plan.bridge)).write_text("1\n")
        with Operator(clusters.form(lab)) as operator:
            demo_guests.make_network(operator)
            demo_guests.make_pool(operator, lab.plan)
            yield Side(lab, operator)
    finally:
        lab.down()


class Judge:
    """Looks at one guest in both clusters all the time; an arriving copy that stands still is none."""

    def __init__(self, name: str, *sides: Side) -> None:
        self._name, self._sides = name, sides
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="judge-across", daemon=True)
        self.twice: list[frozenset[Copy]] = []
        """Looks at which more than one copy ran."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        overlaps = Overlaps()
        while not self._end.wait(LOOK_SECONDS):
            seen = frozenset(
                replace(copy, node=f"{copy.node} of {side.lab.plan.name}")
                for side in self._sides
                for copy in look(side.lab.plan).copies
                if copy.guest == self._name
            )
            idle = overlaps.idle(seen)
            run = frozenset(copy for copy in seen if copy.pid not in idle)
            if len(run) > 1:
                self.twice.append(run)
