"""Counters of all running guests, asked for in one call, apart from the looks that the agent's life depends on.

libvirt asks QEMU's monitor for them, and a QEMU that hangs holds up the answer. So this runs beside everything else, one
question at a time, and what is known stays known.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import libvirt
from gugus.agent.v1 import guest_pb2

from agent.compute.kvm import devices
from agent.compute.kvm.domains import Domains
from common.errors import GugusError

PERIOD_S = 10.0
"""As often as the guests' balloon drivers tell of their memory."""

TIMEOUT_S = 24 * 3600.0
"""When a QEMU hangs, the question is answered once that has ended: to ask again before would only hang as well."""

GROUPS = libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_INTERFACE | libvirt.VIR_DOMAIN_STATS_BLOCK
FLAGS = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
_KIB = 1024
Names = Mapping[str, str]


class Usage:
    """The last known counters by guest name."""

    def __init__(self, domains: Domains) -> None:
        self._domains = domains
        self._known: dict[str, guest_pb2.GuestUsage] = {}
        self._names: dict[tuple[str, int], Names] = {}
        self._changed: set[str] = set()

    def of(self, name: str) -> guest_pb2.GuestUsage | None:
        """Return what is known of a guest."""
        return self._known.get(name)

    def changed(self, name: str) -> None:
        """A guest has other devices now, or is another run."""
        self._changed.add(name)

    async def run(self) -> None:
        """Ask for ever, until cancelled."""
        while True:
            with contextlib.suppress(GugusError):
                await self.refresh()
            await asyncio.sleep(PERIOD_S)

    async def refresh(self) -> None:
        """Ask once. Raises HYPERVISOR_DOWN."""
        self._known = await self._domains.call(self._ask, aside=True, timeout_s=TIMEOUT_S)

    def _ask(self, connection: Any) -> dict[str, guest_pb2.GuestUsage]:
        found: dict[str, guest_pb2.GuestUsage] = {}
        keys = set()
        for domain, stats in connection.getAllDomainStats(GROUPS, FLAGS):
            key = (domain.UUIDString(), domain.ID())
            keys.add(key)
            if self._domains.marks.of(domain) is not None:
                found[domain.name()] = read(stats, self._names_of(domain, key))
        for key in self._names.keys() - keys:
            self._names.pop(key, None)
        return found

    def _names_of(self, domain: Any, key: tuple[str, int]) -> Names:
        """Return the names in the spec of drives and taps, asked for once a run and after each change."""
        name = domain.name()
        if key not in self._names or name in self._changed:
            self._changed.discard(name)
            live = devices.read(domain.XMLDesc(0))
            named = {**live.named("disk"), **live.named("nic")}
            self._names[key] = {device.target: each for each, device in named.items()}
        return self._names[key]


def read(stats: Mapping[str, Any], names: Names) -> guest_pb2.GuestUsage:
    """Return libvirt's statistics of one domain (virConnectGetAllDomainStats) in our words; unnamed devices are left out."""
    usage = guest_pb2.GuestUsage(balloon_bytes=stats.get("balloon.current", 0) * _KIB)
    available, unused = stats.get("balloon.available", 0), stats.get("balloon.usable", stats.get("balloon.unused", 0))
    usage.memory_guest_used_bytes = max(0, available - unused) * _KIB if available else 0
    for index in range(stats.get("block.count", 0)):
        begin = f"block.{index}."
        name = names.get(stats.get(f"{begin}name", ""))
        if name:
            usage.disks.add(
                name=name,
                read_bytes=stats.get(f"{begin}rd.bytes", 0),
                written_bytes=stats.get(f"{begin}wr.bytes", 0),
                reads=stats.get(f"{begin}rd.reqs", 0),
                writes=stats.get(f"{begin}wr.reqs", 0),
            )
    for index in range(stats.get("net.count", 0)):
        begin = f"net.{index}."
        name = names.get(stats.get(f"{begin}name", ""))
        if name:
            usage.nics.add(
                name=name,
                received_bytes=stats.get(f"{begin}rx.bytes", 0),
                sent_bytes=stats.get(f"{begin}tx.bytes", 0),
                received_packets=stats.get(f"{begin}rx.pkts", 0),
                sent_packets=stats.get(f"{begin}tx.pkts", 0),
                received_drops=stats.get(f"{begin}rx.drop", 0),
                sent_drops=stats.get(f"{begin}tx.drop", 0),
            )
    return usage
