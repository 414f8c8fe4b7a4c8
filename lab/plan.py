"""The plan of a lab: names, addresses and paths of its nodes, all derived from the lab's name and one subnet number.

Invariant: pure and total. Two labs with different names and subnets share no name of a container, bridge, link,
nftables table, address or path, so they can exist side by side and be taken down one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["real", "simulated"]

#: Network interface names have 15 characters (IFNAMSIZ - 1); ``gl-<lab>-n99`` must fit.
LAB_NAME = re.compile(r"[a-z][a-z0-9]{0,7}")
#: A lab of more nodes than this does not fit one machine.
MOST_NODES = 32
#: Third byte of the lab subnets: 10.77.<SUBNETS>.0/24, and 127.0.<SUBNETS>.0/24 for simulated labs.
SUBNETS = range(1, 250)
#: The first node is .11, the machine itself .1.
FIRST_HOST = 11

REAL_STATE = Path("/var/lib/gugus-lab")
SIMULATED_STATE = Path("~/.local/state/gugus-lab")


class LabError(Exception):
    """Something a lab was asked for cannot be done; the text says what and what to do instead."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node: what it is called and where its things are."""

    lab: str
    name: str
    address: str
    folder: Path

    @property
    def container(self) -> str:
        """Name of the LXC container, and of the machine's end of its link."""
        return f"gl-{self.lab}-{self.name}"

    @property
    def upper(self) -> Path:
        """The node's disk: the writable layer over the machine's root."""
        return self.folder / "disk"

    @property
    def btrfs(self) -> Path:
        """Where the node's btrfs file system is mounted on the machine; /srv/btrfs in the node."""
        return self.folder / "btrfs"

    @property
    def watchdog(self) -> Path:
        """The pipe that is /dev/watchdog in the node."""
        return self.folder / "watchdog"

    @property
    def boots(self) -> Path:
        """File counting how often the node was powered on."""
        return self.folder / "boots"


@dataclass(frozen=True, slots=True)
class LabPlan:
    """One lab: its kind, its subnet and how many nodes it has."""

    name: str
    kind: Kind
    subnet: int
    count: int
    state: Path

    def __post_init__(self) -> None:
        if not LAB_NAME.fullmatch(self.name):
            raise LabError(f"lab name {self.name!r}: use 1 to 8 lower-case letters and digits, a letter first")
        if not 1 <= self.count <= MOST_NODES:
            raise LabError(f"{self.count} nodes: a lab has 1 to {MOST_NODES}")

    @property
    def bridge(self) -> str:
        """The bridge of the machine that all real nodes are plugged into."""
        return f"gl-{self.name}"

    @property
    def table(self) -> str:
        """The nftables table (bridge family) that holds the network cuts."""
        return f"gugus_lab_{self.name}"

    @property
    def network(self) -> str:
        """The first three bytes of every address of the lab."""
        return f"{'10.77' if self.kind == 'real' else '127.0'}.{self.subnet}"

    @property
    def gateway(self) -> str:
        """The machine's own address on the bridge."""
        return f"{self.network}.1"

    @property
    def image(self) -> Path:
        """What is installed on every node: /opt/gugus, which all nodes see, and the files their disks start from."""
        return self.state / "image"

    @property
    def shared(self) -> Path:
        """The folder that every node sees as /srv/shared."""
        return self.state / "shared"

    @property
    def lxcpath(self) -> Path:
        """Where the container configurations are."""
        return self.state / "lxc"

    @property
    def log(self) -> Path:
        """What happened to the hardware, as JSON lines."""
        return self.state / "hardware.log"

    def nodes(self) -> tuple[NodePlan, ...]:
        """Every node, n1 first."""
        return tuple(self._node(number) for number in range(1, self.count + 1))

    def node(self, name: str) -> NodePlan:
        """The node called ``name``; raises LabError when there is none."""
        for node in self.nodes():
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes())
        raise LabError(f"no node {name!r} in lab {self.name!r}; it has {names}")

    def _node(self, number: int) -> NodePlan:
        name = f"n{number}"
        address = f"{self.network}.{FIRST_HOST + number - 1}"
        return NodePlan(self.name, name, address, self.state / "nodes" / name)


def free_subnet(taken: Iterable[int]) -> int:
    """The lowest subnet number not in ``taken``; raises LabError when all are."""
    used = set(taken)
    for number in SUBNETS:
        if number not in used:
            return number
    raise LabError(f"all {len(SUBNETS)} lab subnets are in use: take a lab down (gugus-lab down --name NAME)")


def subnets_in(addresses: Iterable[str]) -> Iterator[int]:
    """The subnet numbers that ``addresses`` (dotted quads) of the machine occupy."""
    for address in addresses:
        parts = address.split("/")[0].split(".")
        if parts[:2] == ["10", "77"] and len(parts) == 4:
            yield int(parts[2])
