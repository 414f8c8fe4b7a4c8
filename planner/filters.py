"""Filters: what makes a node unfit for a guest.

Invariant: FILTERS is the one list that both decides and explains. Of each, `refused` says which nodes of a fleet are
refused (None: none of them), and `why` says it of one node in words, "" when it is not. A permanent one refuses
whatever happens to other guests, so that waiting for room does not help.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from common.units import format_size
from planner.fleet import CPUS, DISK, HUGE_1G, HUGE_2M, MEMORY, Fleet
from planner.rulebook import Grouping, Mask
from planner.types import GuestRequest


class Reads(Enum):
    """What a filter looks at beside the node itself: how long its answer holds."""

    ABILITIES = auto()
    """What the guest needs but for its size: the same for all guests of a kind, whoever is placed."""
    PROMISES = auto()
    """What was promised to other guests."""
    SIZE = auto()
    """The guest's size and the node's: refused here means refused by the promises, too. It only explains."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A named condition."""

    name: str
    refused: Callable[[Fleet, GuestRequest], Mask | None]
    why: Callable[[Fleet, GuestRequest, int], str]
    reads: Reads = Reads.ABILITIES
    permanent: bool = False


def fits(fleet: Fleet, guest: GuestRequest) -> Mask:
    """Return which nodes no filter refuses."""
    good = _able(fleet, guest)
    for one in _BY_PROMISES:
        if (mask := one.refused(fleet, guest)) is not None:
            good &= ~mask
    return good


def fits_if_empty(fleet: Fleet, guest: GuestRequest) -> Mask:
    """Return which nodes could have a guest if they had the room."""
    good = _able(fleet, guest)
    for one in _BY_RULES:
        if (mask := one.refused(fleet, guest)) is not None:
            good &= ~mask
    return good


def _able(fleet: Fleet, guest: GuestRequest) -> Mask:
    refused = refused_by_abilities(fleet, guest)
    good = np.ones(len(fleet.nodes), dtype=bool) if refused is None else ~refused
    return good if fleet.chosen is None else good & fleet.chosen


def refused_by_abilities(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    """Return which nodes are refused whoever is placed, None for none of them. It must not be changed."""
    key = _abilities_asked(fleet, guest)
    if key not in fleet.masks:
        masks = [mask for one in _BY_ABILITIES if (mask := _by(one, fleet, guest, key)) is not None]
        fleet.masks[key] = np.logical_or.reduce(masks) if masks else None
    return fleet.masks[key]


def refused_by_each(fleet: Fleet, guest: GuestRequest) -> list[tuple[Filter, Mask]]:
    """Return which nodes each filter refuses that refuses any, or may. The masks must not be changed."""
    key = _abilities_asked(fleet, guest)
    return [(one, mask) for one in FILTERS if (mask := _by(one, fleet, guest, key)) is not None]


def _by(one: Filter, fleet: Fleet, guest: GuestRequest, key: tuple[object, ...]) -> Mask | None:
    """Return whom one filter refuses; what it says of abilities is remembered for all guests that ask for the same."""
    if one.reads is not Reads.ABILITIES:
        return one.refused(fleet, guest)
    if (one.name, key) not in fleet.masks:
        fleet.masks[one.name, key] = one.refused(fleet, guest)
    return fleet.masks[one.name, key]


def _abilities_asked(fleet: Fleet, guest: GuestRequest) -> tuple[object, ...]:
    return (
        guest.kind,
        guest.pinned,
        guest.excluded,
        guest.pools,
        guest.networks,
        guest.machine,
        guest.cpu_model,
        guest.abilities,
        tuple(one.rule.name for one in fleet.rules.of(guest)[0]),
    )


def _where(fleet: Fleet, values: Iterable[bool]) -> Mask:
    return np.fromiter(values, dtype=bool, count=len(fleet.nodes))


def _offline(fleet: Fleet, guest: GuestRequest) -> Mask:
    return _where(fleet, (not node.online for node in fleet.nodes))


def _why_offline(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    return "" if fleet.nodes[i].online else fleet.nodes[i].offline_reason or "the node is not online"


def _witness(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    return _where(fleet, (node.witness for node in fleet.nodes))


def _why_witness(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    return "it is a witness, which votes and runs no guests" if fleet.nodes[i].witness else ""


def _cordoned(fleet: Fleet, guest: GuestRequest) -> Mask:
    return _where(fleet, (node.cordoned for node in fleet.nodes))


def _why_cordoned(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    return "the node is cordoned, or in maintenance" if fleet.nodes[i].cordoned else ""


def _pinned(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    return _where(fleet, (name != guest.pinned for name in fleet.names)) if guest.pinned else None


def _why_pinned(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    return f"the guest runs only on {guest.pinned}" if guest.pinned not in ("", fleet.names[i]) else ""


def _excluded(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    return _where(fleet, (name in guest.excluded for name in fleet.names)) if guest.excluded else None


def _why_excluded(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    return "the guest must leave this node" if fleet.names[i] in guest.excluded else ""


def _no_hypervisor(fleet: Fleet, guest: GuestRequest) -> Mask:
    return _where(fleet, (guest.kind not in node.kinds for node in fleet.nodes))


def _why_hypervisor(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    if guest.kind in fleet.nodes[i].kinds:
        return ""
    return fleet.nodes[i].kind_reasons.get(guest.kind) or "no hypervisor here is ready for this kind of guest"


def _machine(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    return (
        _where(fleet, (bool(_why_machine(fleet, guest, i)) for i in range(len(fleet.nodes)))) if guest.machine else None
    )


def _why_machine(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    machines = fleet.nodes[i].machines
    if not guest.machine or not machines or guest.machine in machines:
        return ""
    return f"its QEMU has no machine type {guest.machine}"


def _cpu_model(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    if not guest.cpu_model:
        return None
    return _where(fleet, (bool(_why_cpu_model(fleet, guest, i)) for i in range(len(fleet.nodes))))


def _why_cpu_model(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    models = fleet.nodes[i].cpu_models
    if not guest.cpu_model or not models or guest.cpu_model in models:
        return ""
    return f"its CPU cannot be a {guest.cpu_model}"


def _abilities(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    if not guest.abilities:
        return None
    return _where(fleet, (bool(node.machines) and not guest.abilities <= node.abilities for node in fleet.nodes))


def _why_abilities(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    node = fleet.nodes[i]
    missing = sorted(guest.abilities - node.abilities) if node.machines else []
    return f"it has no {', '.join(missing)}" if missing else ""


def _pools(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    return _where(fleet, (not guest.pools <= node.pools for node in fleet.nodes)) if guest.pools else None


def _why_pools(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    missing = sorted(guest.pools - fleet.nodes[i].pools)
    return f"not in reach: {', '.join(missing)}" if missing else ""


def _networks(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    return _where(fleet, (not guest.networks <= node.networks for node in fleet.nodes)) if guest.networks else None


def _why_networks(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    missing = sorted(guest.networks - fleet.nodes[i].networks)
    return f"not in reach: {', '.join(missing)}" if missing else ""


def _too_small(row: int) -> Callable[[Fleet, GuestRequest], Mask | None]:
    def refused(fleet: Fleet, guest: GuestRequest) -> Mask | None:
        asked = fleet.needs(guest)[row]
        return fleet.total[row] < asked if asked else None

    return refused


def _too_full(row: int) -> Callable[[Fleet, GuestRequest], Mask | None]:
    def refused(fleet: Fleet, guest: GuestRequest) -> Mask | None:
        asked = fleet.needs(guest)[row]
        return fleet.free[row] < asked if asked else None

    return refused


def _beyond(fleet: Fleet, guest: GuestRequest, i: int, row: int, *, free: bool) -> int | None:
    """Return what a node has of a resource, or has left, when that is less than what a guest asks; else None."""
    asked = int(fleet.needs(guest)[row])
    have = int(fleet.free[row, i] if free else fleet.total[row, i])
    return max(0, have) if asked and have < asked else None


def _why_cpu_size(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    limit = _beyond(fleet, guest, i, CPUS, free=False)
    return "" if limit is None else f"{guest.cpus} CPUs asked, the host gives at most {limit}"


def _why_cpu(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    left = _beyond(fleet, guest, i, CPUS, free=True)
    return "" if left is None else f"{guest.cpus} CPUs asked, {left} left to promise"


def _why_memory_size(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    size = _beyond(fleet, guest, i, MEMORY, free=False)
    if size is None:
        return ""
    return f"{format_size(guest.memory_bytes)} asked, the host has {format_size(size)} for guests"


def _why_memory(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    left = _beyond(fleet, guest, i, MEMORY, free=True)
    return "" if left is None else f"{format_size(guest.memory_bytes)} asked, {format_size(left)} left to promise"


def _why_disk_size(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    size = _beyond(fleet, guest, i, DISK, free=False)
    return "" if size is None else f"{format_size(guest.disk_bytes)} asked, its disks have {format_size(size)}"


def _why_disk(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    left = _beyond(fleet, guest, i, DISK, free=True)
    return "" if left is None else f"{format_size(guest.disk_bytes)} asked, {format_size(left)} left to promise"


def _either(
    first: Callable[[Fleet, GuestRequest], Mask | None], second: Callable[[Fleet, GuestRequest], Mask | None]
) -> Callable[[Fleet, GuestRequest], Mask | None]:
    def refused(fleet: Fleet, guest: GuestRequest) -> Mask | None:
        masks = [mask for one in (first, second) if (mask := one(fleet, guest)) is not None]
        return np.logical_or.reduce(masks) if masks else None

    return refused


def _why_huge_pages_size(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    return _huge_pages_beyond(fleet, guest, i, "reserved", free=False)


def _why_huge_pages(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    return _huge_pages_beyond(fleet, guest, i, "left to promise", free=True)


def _huge_pages_beyond(fleet: Fleet, guest: GuestRequest, i: int, what: str, *, free: bool) -> str:
    for size, row in (("2 MiB", HUGE_2M), ("1 GiB", HUGE_1G)):
        if (have := _beyond(fleet, guest, i, row, free=free)) is not None:
            asked = format_size(int(fleet.needs(guest)[row]))
            return f"{asked} asked in pages of {size}, {format_size(have)} {what}"
    return ""


def _node_affinity(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    masks = [one.rank == 0 for one in fleet.rules.of(guest)[0] if one.rule.strict]
    return np.logical_or.reduce(masks) if masks else None


def _why_node_affinity(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    names = [one.rule.name for one in fleet.rules.of(guest)[0] if one.rule.strict and one.rank[i] == 0]
    return f"rule {' and '.join(names)} does not name this node" if names else ""


def _guest_affinity(*, together: bool) -> Callable[[Fleet, GuestRequest], Mask | None]:
    def refused(fleet: Fleet, guest: GuestRequest) -> Mask | None:
        masks = [one.refused() for one in fleet.rules.of(guest)[1] if one.rule.strict and one.together is together]
        return np.logical_or.reduce(masks) if masks else None

    return refused


def _why_guest_affinity(*, together: bool) -> Callable[[Fleet, GuestRequest, int], str]:
    def why(fleet: Fleet, guest: GuestRequest, i: int) -> str:
        for one in fleet.rules.of(guest)[1]:
            if one.rule.strict and one.together is together and one.refused()[i]:
                return _why_grouping(fleet, one, i)
        return ""

    return why


def _why_grouping(fleet: Fleet, one: Grouping, i: int) -> str:
    rule = one.rule
    if one.domain[i] < 0:
        return f"rule {rule.name} goes by the label {rule.domain}, which this node has not"
    where = f"{rule.domain} {one.names[one.domain[i]]}" if rule.domain else "this node"
    if one.together:
        others = sorted({fleet.names[fleet.where[name]] for name in one.members})
        return f"rule {rule.name} keeps it with guests on {', '.join(others)}"
    there = sorted(name for name in one.members if one.domain[fleet.where[name]] == one.domain[i])
    return f"rule {rule.name} keeps it apart from {', '.join(there)} in {where}"


def _company(fleet: Fleet, guest: GuestRequest) -> Mask | None:
    if not guest.company:
        return None
    masks = [_too_full_for_all(fleet, guest)]
    for one in guest.company:
        masks += [mask for _, mask in _refused_but_for_room(fleet, one)]
    return np.asarray(np.logical_or.reduce(masks))


def _why_company(fleet: Fleet, guest: GuestRequest, i: int) -> str:
    if not guest.company:
        return ""
    for one in guest.company:
        for by, mask in _refused_but_for_room(fleet, one):
            if mask[i]:
                return f"{one.name}, which a rule keeps with it, cannot run here: {by.name}: {by.why(fleet, one, i)}"
    if not _too_full_for_all(fleet, guest)[i]:
        return ""
    names = ", ".join(one.name for one in guest.company)
    return f"there is no room for all that rules keep together, {names} and itself"


def _too_full_for_all(fleet: Fleet, guest: GuestRequest) -> Mask:
    needs = sum((fleet.needs(one) for one in guest.company), fleet.needs(guest))
    return np.asarray(((fleet.free < needs[:, None]) & (needs > 0)[:, None]).any(axis=0))


def _refused_but_for_room(fleet: Fleet, guest: GuestRequest) -> list[tuple[Filter, Mask]]:
    asked = (*_BY_ABILITIES, *_BY_RULES)
    return [(one, mask) for one in asked if (mask := one.refused(fleet, guest)) is not None]


FILTERS = (
    Filter("online", _offline, _why_offline),
    Filter("witness", _witness, _why_witness, permanent=True),
    Filter("cordoned", _cordoned, _why_cordoned),
    Filter("pinned", _pinned, _why_pinned, permanent=True),
    Filter("excluded", _excluded, _why_excluded),
    Filter("hypervisor", _no_hypervisor, _why_hypervisor),
    Filter("cpu-size", _too_small(CPUS), _why_cpu_size, Reads.SIZE, permanent=True),
    Filter("cpu", _too_full(CPUS), _why_cpu, Reads.PROMISES),
    Filter("memory-size", _too_small(MEMORY), _why_memory_size, Reads.SIZE, permanent=True),
    Filter("memory", _too_full(MEMORY), _why_memory, Reads.PROMISES),
    Filter("disk-size", _too_small(DISK), _why_disk_size, Reads.SIZE, permanent=True),
    Filter("disk", _too_full(DISK), _why_disk, Reads.PROMISES),
    Filter("machine", _machine, _why_machine, permanent=True),
    Filter("cpu-model", _cpu_model, _why_cpu_model, permanent=True),
    Filter("abilities", _abilities, _why_abilities, permanent=True),
    Filter(
        "huge-pages-size",
        _either(_too_small(HUGE_2M), _too_small(HUGE_1G)),
        _why_huge_pages_size,
        Reads.SIZE,
        permanent=True,
    ),
    Filter("huge-pages", _either(_too_full(HUGE_2M), _too_full(HUGE_1G)), _why_huge_pages, Reads.PROMISES),
    Filter("pools", _pools, _why_pools),
    Filter("networks", _networks, _why_networks),
    Filter("node-affinity", _node_affinity, _why_node_affinity, permanent=True),
    Filter("together", _guest_affinity(together=True), _why_guest_affinity(together=True), Reads.PROMISES),
    Filter("apart", _guest_affinity(together=False), _why_guest_affinity(together=False), Reads.PROMISES),
    Filter("company", _company, _why_company, Reads.PROMISES),
)
"""Every reason for which a node may be refused, in the order in which they are told."""

_BY_ABILITIES = tuple(one for one in FILTERS if one.reads is Reads.ABILITIES)
_BY_PROMISES = tuple(one for one in FILTERS if one.reads is Reads.PROMISES)
_BY_RULES = tuple(one for one in FILTERS if one.name in ("together", "apart"))
