"""Filters: what makes a node unfit for a guest.

Invariant: FILTERS is the one list that both decides and explains. A filter returns "" or why not, in words; a
permanent one refuses whatever happens to other guests, so that waiting for room does not help.
"""

from collections.abc import Callable
from dataclasses import dataclass

from common.units import format_size
from manager.scheduler.types import GuestRequest, NodeView


@dataclass(frozen=True, slots=True)
class Filter:
    """A named condition. `check(request, node, cpu_overcommit_percent)` returns why the node is refused, or ""."""

    name: str
    check: Callable[[GuestRequest, NodeView, int], str]
    permanent: bool = False


def _online(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    return "" if node.online else node.offline_reason or "the node is not online"


def _cordoned(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    return "the node is cordoned, or in maintenance" if node.cordoned else ""


def _pinned(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    return f"the guest runs only on {request.pinned}" if request.pinned not in ("", node.name) else ""


def _excluded(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    return "the guest must leave this node" if node.name in request.excluded else ""


def _hypervisor(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    if request.kind in node.kinds:
        return ""
    return node.kind_reasons.get(request.kind) or "no hypervisor here is ready for this kind of guest"


def _cpu_size(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    limit = node.cpus * overcommit // 100
    return f"{request.cpus} CPUs asked, the host gives at most {limit}" if request.cpus > limit else ""


def _cpu(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    free = node.cpus * overcommit // 100 - node.promised_cpus
    return f"{request.cpus} CPUs asked, {max(0, free)} left to promise" if request.cpus > free else ""


def _memory_size(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    if request.memory_bytes <= node.memory_bytes:
        return ""
    return f"{format_size(request.memory_bytes)} asked, the host has {format_size(node.memory_bytes)} for guests"


def _memory(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    free = node.memory_bytes - node.promised_memory_bytes
    if request.memory_bytes <= free:
        return ""
    return f"{format_size(request.memory_bytes)} asked, {format_size(max(0, free))} left to promise"


def _pools(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    missing = sorted(request.pools - node.pools)
    return f"not in reach: {', '.join(missing)}" if missing else ""


def _networks(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    missing = sorted(request.networks - node.networks)
    return f"not in reach: {', '.join(missing)}" if missing else ""


def _machine(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    if not request.machine or not node.machines or request.machine in node.machines:
        return ""
    return f"its QEMU has no machine type {request.machine}"


def _cpu_model(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    if not request.cpu_model or not node.cpu_models or request.cpu_model in node.cpu_models:
        return ""
    return f"its CPU cannot be a {request.cpu_model}"


def _abilities(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    missing = sorted(request.abilities - node.abilities) if node.machines else []
    return f"it has no {', '.join(missing)}" if missing else ""


def _huge_pages_size(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    return _beyond_huge_pages(request, node.huge_pages_2m_bytes, node.huge_pages_1g_bytes, "reserved")


def _huge_pages(request: GuestRequest, node: NodeView, overcommit: int) -> str:
    free_2m = node.huge_pages_2m_bytes - node.promised_huge_pages_2m_bytes
    free_1g = node.huge_pages_1g_bytes - node.promised_huge_pages_1g_bytes
    return _beyond_huge_pages(request, free_2m, free_1g, "left to promise")


def _beyond_huge_pages(request: GuestRequest, bytes_2m: int, bytes_1g: int, what: str) -> str:
    for size, asked, have in (
        ("2 MiB", request.huge_pages_2m_bytes, bytes_2m),
        ("1 GiB", request.huge_pages_1g_bytes, bytes_1g),
    ):
        if asked > have:
            return f"{format_size(asked)} asked in pages of {size}, {format_size(max(0, have))} {what}"
    return ""


FILTERS = (
    Filter("online", _online),
    Filter("cordoned", _cordoned),
    Filter("pinned", _pinned, permanent=True),
    Filter("excluded", _excluded),
    Filter("hypervisor", _hypervisor),
    Filter("cpu-size", _cpu_size, permanent=True),
    Filter("cpu", _cpu),
    Filter("memory-size", _memory_size, permanent=True),
    Filter("memory", _memory),
    Filter("machine", _machine, permanent=True),
    Filter("cpu-model", _cpu_model, permanent=True),
    Filter("abilities", _abilities, permanent=True),
    Filter("huge-pages-size", _huge_pages_size, permanent=True),
    Filter("huge-pages", _huge_pages),
    Filter("pools", _pools),
    Filter("networks", _networks),
)
"""Every reason for which a node may be refused, in the order in which they are told."""
