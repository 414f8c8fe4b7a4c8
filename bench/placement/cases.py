"""Clusters to measure with, each made from a seed."""

import random
from collections.abc import Sequence
from dataclasses import replace

from planner.plans import Cluster
from planner.rules import GuestAffinity, Guests, Mode
from planner.settings import Settings
from planner.types import GuestRequest, NodeView

GIB = 1 << 30
KIND = 1

CPUS = (1, 1, 2, 2, 4, 8)
MEMORY_GIB = (1, 2, 2, 4, 4, 8, 16, 32)
RACK_OF = 20
"""Hosts in a rack."""


def hosts(count: int, *, cpus: int = 32, memory_gib: int = 256) -> list[NodeView]:
    """Return alike hosts in racks."""
    return [
        NodeView(
            f"n{i:05}",
            online=True,
            cpus=cpus,
            memory_bytes=memory_gib * GIB,
            kinds=frozenset({KIND}),
            labels={"rack": f"r{i // RACK_OF:04}"},
        )
        for i in range(count)
    ]


def guests(count: int, seed: int, prefix: str = "g") -> list[GuestRequest]:
    """Return guests of common sizes with different loads."""
    rng = random.Random(seed)
    return [
        GuestRequest(
            f"{prefix}{i:06}",
            KIND,
            rng.choice(CPUS),
            rng.choice(MEMORY_GIB) * GIB,
            cpu_load=round(rng.random() * 0.8, 3),
            memory_load=round(0.2 + rng.random() * 0.7, 3),
        )
        for i in range(count)
    ]


def skewed(host_count: int, guest_count: int, seed: int) -> Cluster:
    """Return a cluster whose first hosts are fullest, by a rule of squares; every host has a tenth of its memory left."""
    rng = random.Random(seed)
    nodes = hosts(host_count, memory_gib=64)
    left = [node.memory_bytes * 9 // 10 for node in nodes]
    placed: list[GuestRequest] = []
    for guest in guests(guest_count, seed):
        guest = replace(guest, memory_bytes=rng.choice((1, 2, 4)) * GIB, cpus=rng.choice((1, 2, 4)))
        at = int(host_count * rng.random() ** 2)
        while left[at] < guest.memory_bytes:
            at = (at + 1) % host_count
        left[at] -= guest.memory_bytes
        placed.append(replace(guest, node=nodes[at].name))
    return Cluster(nodes, placed)


def small(seed: int, settings: Settings, demand: float) -> Cluster:
    """Return a few unlike hosts and guests that ask for `demand` times their memory or CPUs, some kept apart."""
    rng = random.Random(seed)
    nodes = [
        replace(node, cpus=rng.choice((4, 8, 16)), memory_bytes=rng.choice((16, 32, 64)) * GIB)
        for node in hosts(rng.randint(3, 7))
    ]
    cpus = sum(node.cpus for node in nodes) * settings.cpu_overcommit_percent // 100
    memory = sum(node.memory_bytes for node in nodes)
    made: list[GuestRequest] = []
    while max(sum(g.cpus for g in made) / cpus, sum(g.memory_bytes for g in made) / memory) < demand:
        size = rng.randint(1, 20) * GIB, rng.randint(1, 12)
        made.append(GuestRequest(f"g{len(made):03}", KIND, size[1], size[0]))
    rules = [apart(f"apart-{i}", rng.sample(made, min(3, len(made)))) for i in range(2)]
    return Cluster(nodes, made, rules, settings)


def apart(name: str, members: Sequence[GuestRequest]) -> GuestAffinity:
    """Return a strict rule that keeps guests on hosts of their own."""
    return GuestAffinity(name, Guests(frozenset(guest.name for guest in members)), Mode.APART)
