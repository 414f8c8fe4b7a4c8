"""The lab as a library: what ``gugus-lab`` does, for tests and the demo.

Invariant: every method may be called in any state of the lab and repeated; it either reaches what its name says or
raises LabError. Methods block (at most for the time of a boot): call them from a thread in a program with an event
loop.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from common.files import write_json
from lab import events, machine
from lab.plan import (
    MOST_NODES,
    REAL_STATE,
    SIMULATED_STATE,
    Kind,
    LabError,
    LabPlan,
    NodePlan,
    free_subnet,
    subnets_in,
)
from lab.render import Way
from lab.status import LabStatus, NodeStatus

__all__ = ["Lab", "LabError", "LabPlan", "LabStatus", "NodePlan", "NodeStatus", "load_plan"]

#: Nodes of a lab that is not told how many.
DEFAULT_NODES = 3


class Machinery(Protocol):
    """What both kinds of lab can do."""

    def up(self) -> None: ...
    def down(self) -> None: ...
    def status(self) -> LabStatus: ...
    def node_status(self, node: NodePlan) -> NodeStatus: ...
    def power_off(self, node: NodePlan) -> None: ...
    def power_on(self, node: NodePlan) -> None: ...
    def freeze(self, node: NodePlan) -> None: ...
    def thaw(self, node: NodePlan) -> None: ...
    def cut(self, node: NodePlan, other: NodePlan | None, way: Way, /) -> None: ...
    def heal(self, node: NodePlan) -> None: ...
    def command(self, node: NodePlan, words: Sequence[str]) -> tuple[list[str], dict[str, str]]: ...
    def refresh(self) -> None: ...


class Lab:
    """The lab called ``name``. ``state_dir``: where labs are kept instead of the usual place of their kind."""

    def __init__(self, name: str = "gugus", *, state_dir: Path | None = None) -> None:
        self.name = name
        self._state_dir = state_dir

    def up(self, nodes: int | None = None, *, simulated: bool = False) -> LabStatus:
        """Bring the lab up with ``nodes`` nodes (3, or what it has): each on, booted, thawed and connected."""
        kind: Kind = "simulated" if simulated else "real"
        with machine.locked(self._root(kind) / f"{self.name}.lock"):
            old = self._find()
            if old and old.kind != kind:
                raise LabError(
                    f"lab {self.name!r} is up as a {old.kind} one: `gugus-lab down` first, or give another --name"
                )
            if old and nodes is not None and nodes < old.count:
                raise LabError(f"lab {self.name!r} has {old.count} nodes and never loses one: `gugus-lab down` first")
            plan = self._plan(kind, nodes or (old.count if old else DEFAULT_NODES), old)
            write_plan(plan)
            machinery(plan).up()
            return machinery(plan).status()

    def down(self) -> None:
        """Take the lab and everything it made away, also what a crash left half-made."""
        for kind in ("real", "simulated"):
            root = self._root(kind)
            state = root / self.name
            if not state.exists() and not (kind == "real" and machine.link_exists(f"gl-{self.name}")):
                continue
            lock = root / f"{self.name}.lock"
            with machine.locked(lock):
                try:
                    plan = load_plan(state)
                except LabError:
                    # Half-made or damaged: names alone lead to everything there may be.
                    plan = LabPlan(self.name, kind, 1, MOST_NODES, state)
                machinery(plan).down()
                lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                root.rmdir()

    def status(self) -> LabStatus:
        """The lab at this moment; a lab that is down has no nodes."""
        plan = self._find()
        if plan is None:
            return LabStatus(self.name, "real", "down", "", False, "", ())
        return machinery(plan).status()

    @property
    def plan(self) -> LabPlan:
        """Names, addresses and paths; raises LabError when the lab is down."""
        plan = self._find()
        if plan is None:
            raise LabError(f"there is no lab {self.name!r}: `gugus-lab up`")
        return plan

    def node_status(self, node: str) -> NodeStatus:
        """One node at this moment."""
        return machinery(self.plan).node_status(self.plan.node(node))

    def power_off(self, node: str) -> NodeStatus:
        """Cut the node's power: its memory is gone at once, its disk stays."""
        machinery(self.plan).power_off(self.plan.node(node))
        return self.node_status(node)

    def power_on(self, node: str) -> NodeStatus:
        """Switch the node on and wait until it has booted."""
        machinery(self.plan).power_on(self.plan.node(node))
        return self.node_status(node)

    def freeze(self, node: str) -> NodeStatus:
        """Hang the node: nothing in it runs, its link stays up."""
        machinery(self.plan).freeze(self.plan.node(node))
        return self.node_status(node)

    def thaw(self, node: str) -> NodeStatus:
        """Let a hung node go on."""
        machinery(self.plan).thaw(self.plan.node(node))
        return self.node_status(node)

    def cut(self, node: str, other: str | None = None, way: Way = "both") -> NodeStatus:
        """Drop all traffic of the node, or between it and ``other`` only. The shared folder is no network: it stays.

        ``way``: "out" drops only what the node sends, "in" only what it is sent.
        """
        machinery(self.plan).cut(self.plan.node(node), self.plan.node(other) if other else None, way)
        return self.node_status(node)

    def heal(self, node: str) -> NodeStatus:
        """Mend every cut that the node is an end of."""
        machinery(self.plan).heal(self.plan.node(node))
        return self.node_status(node)

    def refresh(self) -> None:
        """Bring the checkout's code into running nodes and restart the daemons there (for developers)."""
        machinery(self.plan).refresh()

    def command(self, node: str, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The command of the machine, with its environment, that runs ``words`` in the node: to stream."""
        return machinery(self.plan).command(self.plan.node(node), words)

    def exec(
        self, node: str, words: Sequence[str], *, text: str | None = None, timeout: float = 60.0, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node as root and return what it wrote and its exit code.

        Raises LabError when the node is off or hangs, when the command takes longer than ``timeout`` seconds, and, with
        ``check``, when its exit code is not 0.
        """
        command, environment = self.command(node, words)
        try:
            done = subprocess.run(
                command, input=text or "", env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{node}: `{' '.join(words)}` took longer than {timeout:g} s") from None
        if check and done.returncode:
            raise LabError(
                f"{node}: `{' '.join(words)}` failed ({done.returncode}): {(done.stderr or done.stdout).strip()}"
            )
        return done

    def events(self) -> list[dict[str, Any]]:
        """What was done to the hardware since ``up``, oldest first: time, monotonic (seconds), node, event."""
        return events.read(self.plan.log)

    def _root(self, kind: Kind) -> Path:
        if self._state_dir:
            return self._state_dir.absolute()
        return REAL_STATE if kind == "real" else SIMULATED_STATE.expanduser()

    def _find(self) -> LabPlan | None:
        for kind in ("real", "simulated"):
            with contextlib.suppress(LabError):
                return load_plan(self._root(kind) / self.name)
        return None

    def _plan(self, kind: Kind, count: int, old: LabPlan | None) -> LabPlan:
        root = self._root(kind)
        if old is None:
            taken = {plan.subnet for plan in all_plans(root)} | {*subnets_in(machine.addresses())}
            return LabPlan(self.name, kind, free_subnet(taken), count, root / self.name)
        return LabPlan(self.name, kind, old.subnet, count, root / self.name)


def machinery(plan: LabPlan) -> Machinery:
    """What runs the lab of ``plan``."""
    if plan.kind == "real":
        from lab.real import RealLab

        return RealLab(plan)
    from lab.simulated import SimulatedLab

    return SimulatedLab(plan)


def write_plan(plan: LabPlan) -> None:
    """Keep ``plan`` in its state folder."""
    plan.state.mkdir(parents=True, exist_ok=True)
    values = {"name": plan.name, "kind": plan.kind, "subnet": plan.subnet, "count": plan.count}
    write_json(plan.state / "lab.json", values)


def load_plan(state: Path) -> LabPlan:
    """The plan kept in a state folder; raises LabError when there is none."""
    try:
        values = json.loads((state / "lab.json").read_text())
        return LabPlan(values["name"], values["kind"], int(values["subnet"]), int(values["count"]), state)
    except (OSError, ValueError, KeyError) as error:
        raise LabError(f"no lab in {state}: {error}") from None


def all_plans(root: Path) -> list[LabPlan]:
    """Every lab kept in ``root``."""
    plans = []
    for file in root.glob("*/lab.json"):
        with contextlib.suppress(LabError):
            plans.append(load_plan(file.parent))
    return plans
