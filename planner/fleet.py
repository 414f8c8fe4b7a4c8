"""A fleet: nodes and guests as columns, so that one operation asks all nodes at once.

Invariant: nodes are in the order of their names, and `free` is always what they have less what is promised; numbers are
whole (loads are counted in millionths), so that it does not matter in which order guests came and went.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from planner.rulebook import Floats, Ints, Mask, Rulebook
from planner.rules import Rule
from planner.settings import Settings
from planner.types import GuestRequest, NodeView

CPUS, MEMORY, DISK, HUGE_2M, HUGE_1G = range(5)
"""Rows of `total` and `free`."""

CPU_LOAD, MEMORY_LOAD = range(2)
"""Rows of `load`: millionths of a CPU that are busy, and bytes in use."""

UNCOUNTED = 1 << 60
"""Stands for a resource that is not counted: more than all guests together ask for."""

MILLION = 1_000_000

Needs = tuple[int, int, int, int, int]


class Fleet:
    """What nodes have, who is on them, and which rules hold."""

    def __init__(
        self,
        nodes: Iterable[NodeView],
        guests: Iterable[GuestRequest] = (),
        rules: Sequence[Rule] = (),
        settings: Settings = Settings(),  # noqa: B008  it is frozen
    ) -> None:
        self.nodes = tuple(sorted(nodes, key=lambda node: node.name))
        self.names = tuple(node.name for node in self.nodes)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.settings = settings
        self.rules = Rulebook(rules, self.nodes)
        self.guests = {guest.name: guest for guest in sorted(guests, key=lambda guest: guest.name)}
        self.where: dict[str, int] = {}
        self.on: list[dict[str, None]] = [{} for _ in self.nodes]
        """Names of the guests on each node."""
        self.online: Mask = np.array([node.usable for node in self.nodes], dtype=bool)
        """Nodes on which guests can run; witnesses are none of them."""
        self.open: Mask = np.array([node.usable and not node.cordoned for node in self.nodes], dtype=bool)
        self.cpus: Ints = np.array([node.cpus for node in self.nodes], dtype=np.int64)
        self.total = np.array([_total(node, settings) for node in self.nodes], dtype=np.int64).reshape(-1, 5).T.copy()
        promised = [_promised(node) for node in self.nodes]
        self.free = self.total - np.array(promised, dtype=np.int64).reshape(-1, 5).T
        self.counts: Ints = np.array([node.guests for node in self.nodes], dtype=np.int64)
        self.load: Ints = np.array(
            [[round(n.busy_cpus * MILLION) for n in self.nodes], [n.used_memory_bytes for n in self.nodes]],
            dtype=np.int64,
        )
        self.counts_disk = all(node.disk_bytes is not None for node in self.nodes)
        self._needs: dict[Needs, NDArray[np.int64]] = {}
        self.chosen: Mask | None = None
        """The only nodes that are looked at for the moment; None for all."""
        self.masks: dict[object, Mask | None] = {}
        """What filters that look at no promises said (planner.filters)."""
        for guest in self.guests.values():
            if guest.node in self.index:
                self.put(guest, self.index[guest.node])

    def needs(self, guest: GuestRequest) -> NDArray[np.int64]:
        """Return what a guest takes, in the order of the rows."""
        key = needs_of(guest)
        found = self._needs.get(key)
        if found is None:
            self._needs[key] = found = np.array(key, dtype=np.int64)
        return found

    def put(self, guest: GuestRequest, node: int) -> None:
        """Give a guest to a node."""
        self._count(guest, node, 1)
        self.where[guest.name] = node
        self.on[node][guest.name] = None

    def take(self, guest: GuestRequest) -> int:
        """Take a guest from its node, and return which it was."""
        node = self.where.pop(guest.name)
        del self.on[node][guest.name]
        self._count(guest, node, -1)
        return node

    def move(self, guest: GuestRequest, node: int) -> None:
        """Give a guest to another node."""
        self.take(guest)
        self.put(guest, node)

    @contextmanager
    def only(self, nodes: Mask | None) -> Iterator[None]:
        """Look at no other nodes for a while; None for all."""
        before, self.chosen = self.chosen, nodes
        try:
            yield
        finally:
            self.chosen = before

    def guests_on(self, node: int) -> list[GuestRequest]:
        """Return a node's guests by name."""
        return [self.guests[name] for name in sorted(self.on[node])]

    def shares(self, guest: GuestRequest) -> Floats:
        """Return which part of an average node's CPUs, memory and disk a guest takes."""
        return np.asarray(self.needs(guest)[:3] / self._averages)

    def size(self, guest: GuestRequest) -> float:
        """Return the largest of a guest's shares: what makes it hard to place."""
        return float(self.shares(guest).max())

    @property
    def _averages(self) -> Floats:
        if "averages" not in self.__dict__:
            count = max(1, len(self.nodes))
            means = np.array([int(self.total[row].astype(float).sum()) / count for row in range(3)])
            self.__dict__["averages"] = np.maximum(means, 1.0)
        averages: Floats = self.__dict__["averages"]
        return averages

    def _count(self, guest: GuestRequest, node: int, by: int) -> None:
        if by > 0:
            self.free[:, node] -= self.needs(guest)
        else:
            self.free[:, node] += self.needs(guest)
        self.counts[node] += by
        if guest.cpu_load or guest.memory_load:
            cpu, memory = load_of(guest)
            self.load[CPU_LOAD, node] += by * cpu
            self.load[MEMORY_LOAD, node] += by * memory
        self.rules.count(guest, node, by)


def needs_of(guest: GuestRequest) -> Needs:
    """Return what a guest takes of each resource."""
    return guest.cpus, guest.memory_bytes, guest.disk_bytes, guest.huge_pages_2m_bytes, guest.huge_pages_1g_bytes


def load_of(guest: GuestRequest) -> tuple[int, int]:
    """Return the millionths of a CPU that a guest keeps busy, and the bytes of memory that it uses."""
    return round(guest.cpu_load * guest.cpus * MILLION), round(guest.memory_load * guest.memory_bytes)


def memory_for_guests(node: NodeView, settings: Settings) -> int:
    """Return the bytes of memory that a node promises at most."""
    own = node.reserved_memory_bytes
    reserved = settings.reserved_memory_bytes if own is None else own
    return max(0, node.memory_bytes - reserved) * settings.memory_overcommit_percent // 100


def _total(node: NodeView, settings: Settings) -> Needs:
    return (
        node.cpus * settings.cpu_overcommit_percent // 100,
        memory_for_guests(node, settings),
        UNCOUNTED if node.disk_bytes is None else node.disk_bytes,
        node.huge_pages_2m_bytes,
        node.huge_pages_1g_bytes,
    )


def _promised(node: NodeView) -> Needs:
    return (
        node.promised_cpus,
        node.promised_memory_bytes,
        node.promised_disk_bytes,
        node.promised_huge_pages_2m_bytes,
        node.promised_huge_pages_1g_bytes,
    )
