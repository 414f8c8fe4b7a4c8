"""What a lab looks like: the values that ``status`` gives to people and programs.

Invariant: plain values, read from the machine at one moment; nothing here acts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lab.plan import Kind
from lab.render import EVERYBODY, Cut

Power = Literal["on", "off"]


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node. ``cut``: the nodes it cannot reach, "*" for everybody; ``system``: what its systemd (or init) says."""

    name: str
    address: str
    power: Power
    frozen: bool
    cut: tuple[str, ...]
    boots: int
    system: str

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @property
    def healthy(self) -> bool:
        """Whether it is on, runs, has booted, and is cut from nobody."""
        return self.power == "on" and not self.frozen and not self.cut and self.system in ("running", "degraded")


@dataclass(frozen=True, slots=True)
class LabStatus:
    """One lab. ``state``: "up" when every node is on, "down" when there is no lab, else "partial"."""

    name: str
    kind: Kind
    state: Literal["up", "partial", "down"]
    network: str
    watchdogs: bool
    folder: str
    nodes: tuple[NodeStatus, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def lab_state(nodes: Iterable[NodeStatus]) -> Literal["up", "partial", "down"]:
    """The state of a lab with these nodes."""
    powers = [node.power for node in nodes]
    if not powers:
        return "down"
    return "up" if all(power == "on" for power in powers) else "partial"


def cut_from(node: str, cuts: Iterable[Cut]) -> tuple[str, ...]:
    """Whom ``node`` cannot reach, by ``cuts``; EVERYBODY stands for all."""
    ends = {other for cut in cuts if cut.touches(node) for other in (cut.node, cut.other) if other != node}
    alone = any(cut.node == node and cut.other == EVERYBODY for cut in cuts)
    return (EVERYBODY,) if alone else tuple(sorted(ends))
