"""Addresses of guests whose QEMU guest agent runs: the only one who knows those that no DHCP server of ours gave.

An agent may hang at any moment, so it is asked beside everything else, and only while its end of the channel is open.
"""

import asyncio
import contextlib
import ipaddress
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import libvirt

from agent.compute.definitions import DefinitionStore
from agent.compute.kvm.domains import Domains
from agent.compute.kvm.xml.devices import GUEST_AGENT_CHANNEL
from common.errors import GugusError

FIRST_PERIOD_S = 3.0
"""So often a guest is asked that has not told an address yet."""

PERIOD_S = 30.0
"""So often the others are."""

ASK_TIMEOUT_S = 60.0
"""libvirt itself gives an agent up after some seconds."""

AT_ONCE = 2


class Addresses:
    """The addresses that guests told last, by guest name. changed: called with a guest that has others now."""

    def __init__(self, domains: Domains, definitions: DefinitionStore, changed: Callable[[str], None]) -> None:
        self._domains, self._definitions, self._changed = domains, definitions, changed
        self._known: dict[str, tuple[str, ...]] = {}
        self._due_s: dict[str, float] = {}

    def of(self, name: str) -> tuple[str, ...]:
        """Return what is known of a running guest."""
        return self._known.get(name, ())

    def forget(self, name: str) -> None:
        """A guest begins or ends a run."""
        self._known.pop(name, None)
        self._due_s.pop(name, None)

    async def run(self) -> None:
        """Ask for ever, until cancelled."""
        limit = asyncio.Semaphore(AT_ONCE)
        while True:
            await asyncio.sleep(FIRST_PERIOD_S)
            now_s = asyncio.get_running_loop().time()
            due = [name for name in self._with_agent() if self._due_s.get(name, 0) <= now_s]
            await asyncio.gather(*(self._ask(name, limit) for name in due))

    def _with_agent(self) -> list[str]:
        names = sorted(self._definitions.names())
        return [name for name in names if self._definitions.get(name).spec.virtual_machine.guest_agent]

    async def _ask(self, name: str, limit: asyncio.Semaphore) -> None:
        async with limit:
            found: tuple[str, ...] = ()
            with contextlib.suppress(GugusError):
                found = await self._domains.require(name, _told, aside=True, timeout_s=ASK_TIMEOUT_S)
        period_s = PERIOD_S if found else FIRST_PERIOD_S
        self._due_s[name] = asyncio.get_running_loop().time() + period_s
        if found and found != self._known.get(name):
            self._known[name] = found
            self._changed(name)


def _told(domain: Any) -> tuple[str, ...]:
    """Ask one guest's agent, in a thread of libvirt's pool; () when none listens."""
    if not listens(domain.XMLDesc(0)):
        return ()
    return usable(domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT))


def listens(xml: str) -> bool:
    """Whether a domain's guest agent has its end of the channel open, by the domain's live XML."""
    path = f"devices/channel/target[@name='{GUEST_AGENT_CHANNEL}']"
    target = ET.fromstring(xml).find(path)  # noqa: S314  (libvirt's own output)
    return target is not None and target.get("state") == "connected"


def usable(interfaces: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the addresses by which a guest can be reached, in order: neither its loopback's nor link-local ones."""
    return tuple(sorted(_usable(interfaces), key=lambda address: (":" in address, address)))


def _usable(interfaces: Mapping[str, Any]) -> Iterable[str]:
    for interface in interfaces.values():
        for each in (interface or {}).get("addrs") or ():
            address = ipaddress.ip_address(each["addr"].partition("%")[0])
            if not (address.is_loopback or address.is_link_local):
                yield str(address)
