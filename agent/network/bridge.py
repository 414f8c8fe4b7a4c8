"""A network that is a Linux bridge, with NAT and DHCP as options: looks at the kernel, plans, applies.

Invariant: what is ours is told by marks in the kernel itself (the interfaces' aliases, the table's name) and by the
server's command line, so it is known after any crash. Calls of one driver follow one another.
"""

import asyncio
import hashlib
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from ipaddress import IPv6Interface, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gugus.agent.v1 import network_pb2

from agent.network import nat, plan
from agent.network.dhcp import DhcpServers
from agent.network.plan import Action, Link, Observed
from agent.network.spec import Desired, desired
from common.errors import GugusError, unavailable
from common.logs import get_logger

if TYPE_CHECKING:
    from pyroute2 import AsyncIPRoute

NETLINK_TIMEOUT_S = 10.0
"""Longest time for all steps in the kernel; each takes microseconds, so more is a hang."""

_IFF_UP = 0x1  # linux/if.h
_IFA_F_PERMANENT = 0x80  # linux/if_addr.h
_SCOPE_LINK = 253  # linux/rtnetlink.h, RT_SCOPE_LINK
_FORWARDING = {4: Path("/proc/sys/net/ipv4/ip_forward"), 6: Path("/proc/sys/net/ipv6/conf/all/forwarding")}

log = get_logger("network")


class BridgeDriver:
    """Bridges of this host; `folder` holds the DHCP servers' settings and leases."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dhcp = DhcpServers(folder)
        self._lock = asyncio.Lock()

    async def ensure(self, spec: network_pb2.NetworkSpec) -> network_pb2.Network:
        """Make the network what the spec says. See NetworkDriver."""
        want = desired(spec)
        async with self._session(want) as ipr:
            steps = plan.plan(want, await self._observe(ipr, want))
            await self._apply(ipr, want, steps)
            return _report(spec, want, await self._observe(ipr, want))

    async def remove(self, spec: network_pb2.NetworkSpec) -> None:
        """Remove what was made for the network. See NetworkDriver."""
        want = desired(spec)
        async with self._session(want) as ipr:
            await self._apply(ipr, want, plan.plan_removal(want, await self._observe(ipr, want)))
        await asyncio.to_thread(shutil.rmtree, self._folder / want.name, ignore_errors=True)

    async def status(self, spec: network_pb2.NetworkSpec) -> network_pb2.Network:
        """Tell how the network is. See NetworkDriver."""
        want = desired(spec)
        async with self._session(want) as ipr:
            return _report(spec, want, await self._observe(ipr, want))

    def addresses_by_mac(self) -> dict[str, tuple[str, ...]]:
        """Return the addresses lent to guests. See NetworkDriver."""
        return self._dhcp.leases()

    @asynccontextmanager
    async def _session(self, want: Desired) -> AsyncIterator["AsyncIPRoute"]:
        """The one session with the kernel at a time; what it refuses becomes an error that says for which network."""
        async with self._lock:
            # Imported here, and in a thread: it takes a fifth of the agent's start, during which a lease may run out.
            pyroute2 = await asyncio.to_thread(import_module, "pyroute2")
            try:
                async with pyroute2.AsyncIPRoute() as ipr:
                    yield ipr
            except pyroute2.NetlinkError as error:
                raise _failed(want, str(error)) from error
            except TimeoutError:
                raise _failed(want, f"the kernel did not answer within {NETLINK_TIMEOUT_S:g} s") from None
            except OSError as error:
                raise _failed(want, str(error)) from error

    async def _observe(self, ipr: "AsyncIPRoute", want: Desired) -> Observed:
        async with asyncio.timeout(NETLINK_TIMEOUT_S):
            links = await _links(ipr)
        rules = await nat.listed(want.name)
        wanted = nat.ruleset(want, want.address) if want.nat and want.address else None
        version = want.address.version if want.address else 4
        return Observed(
            links={link.name: link for link in links},
            nat=None if rules is None else rules == wanted,
            dhcp=self._dhcp.state(want),
            forwarding=_FORWARDING[version].read_text().strip() != "0",
        )

    async def _apply(self, ipr: "AsyncIPRoute", want: Desired, steps: list[Action]) -> None:
        for step in steps:
            log.info("network step", network=want.name, step=repr(step))
            match step:
                case plan.EnableForwarding(family):
                    _FORWARDING[family].write_text("1\n")
                case plan.LoadNat():
                    await nat.load(want)
                case plan.DropNat():
                    await nat.drop(want.name)
                case plan.StartDhcp():
                    await self._dhcp.start(want)
                case plan.StopDhcp():
                    await self._dhcp.stop(want.name)
                case _:
                    async with asyncio.timeout(NETLINK_TIMEOUT_S):
                        await _apply_link(ipr, step)


def _failed(want: Desired, why: str) -> GugusError:
    return unavailable("NETWORK_FAILED", f'network "{want.name}" (bridge {want.bridge}): {why}.')


def _report(spec: network_pb2.NetworkSpec, want: Desired, seen: Observed) -> network_pb2.Network:
    try:
        missing = plan.plan(want, seen)
        reason = f"differs from its spec: {', '.join(map(repr, missing))}" if missing else ""
    except GugusError as error:
        reason = str(error)
    bridge = seen.links.get(want.bridge)
    ours = bridge is not None and bridge.alias == want.mark
    ports = plan.guest_ports(want, seen) if ours else []
    return network_pb2.Network(spec=spec, ready=not reason, reason=reason, ports=ports)


async def _links(ipr: "AsyncIPRoute") -> list[Link]:
    addresses: dict[int, set[str]] = {}
    async for message in await ipr.addr("dump"):
        flags = message.get("flags", 0)
        if flags & _IFA_F_PERMANENT and message["scope"] != _SCOPE_LINK:
            text = f"{message.get('local') or message.get('address')}/{message['prefixlen']}"
            addresses.setdefault(message["index"], set()).add(str(ip_interface(text)))
    messages = [message async for message in await ipr.link("dump")]
    names = {message["index"]: message.get("ifname") for message in messages}
    return [_link(message, names, addresses) for message in messages]


def _link(message: Any, names: dict[int, str], addresses: dict[int, set[str]]) -> Link:
    info = message.get("linkinfo")
    kind = (info.get("kind") if info else "") or ""
    bridge = (info.get("data") if info and kind == "bridge" else None) or {}
    return Link(
        name=message.get("ifname"),
        kind=kind,
        alias=message.get("ifalias") or "",
        mtu=message.get("mtu"),
        up=bool(message["flags"] & _IFF_UP),
        master=names.get(message.get("master") or 0, ""),
        addresses=frozenset(addresses.get(message["index"], ())),
        forward_delay=bridge.get("br_forward_delay") or 0,
        stp=bool(bridge.get("br_stp_state")),
    )


async def _apply_link(ipr: "AsyncIPRoute", step: Action) -> None:
    match step:
        case plan.CreateBridge(bridge, mark, mac):
            await _create(ipr, bridge, mark, mac or _random_mac())
        case plan.ConfigureBridge(bridge, mtu):
            options = {"kind": "bridge", "br_stp_state": 0, "br_forward_delay": 0}
            await ipr.link("set", index=await _index(ipr, bridge), mtu=mtu, **options)
            await ipr.link("set", index=await _index(ipr, bridge), state="up")
        case plan.AddAddress(bridge, address):
            await ipr.addr("add", index=await _index(ipr, bridge), **_address(address))
        case plan.DropAddress(bridge, address):
            await ipr.addr("del", index=await _index(ipr, bridge), **_address(address))
        case plan.TakeUplink(uplink, bridge, mark, mtu):
            index = await _index(ipr, uplink)
            await ipr.link("set", index=index, ifalias=mark)
            await _raise_mtu(ipr, index, mtu)
            await ipr.link("set", index=index, master=await _index(ipr, bridge), state="up")
        case plan.ReleaseUplink(uplink):
            await ipr.link("set", index=await _index(ipr, uplink), master=0, ifalias="")
        case plan.DeleteBridge(bridge):
            await ipr.link("del", index=await _index(ipr, bridge))


async def _create(ipr: "AsyncIPRoute", bridge: str, mark: str, mac: str) -> None:
    """Make a bridge under a passing name, mark it, and only then give it its own: a crash leaves none unmarked.

    The kernel takes no alias at creation. The MAC address is set because it would follow the ports otherwise.
    """
    passing = "gt" + hashlib.sha256(bridge.encode()).hexdigest()[:12]
    for index in await ipr.link_lookup(ifname=passing):
        await ipr.link("del", index=index)
    await ipr.link("add", ifname=passing, kind="bridge", address=mac, br_stp_state=0, br_forward_delay=0)
    index = await _index(ipr, passing)
    await ipr.link("set", index=index, ifalias=mark)
    await ipr.link("set", index=index, ifname=bridge)


def _random_mac() -> str:
    return ":".join(["02", *(f"{byte:02x}" for byte in secrets.token_bytes(5))])


async def _raise_mtu(ipr: "AsyncIPRoute", index: int, mtu: int) -> None:
    (link,) = await ipr.link("get", index=index)
    if link.get("mtu") < mtu:
        await ipr.link("set", index=index, mtu=mtu)


async def _index(ipr: "AsyncIPRoute", name: str) -> int:
    found = await ipr.link_lookup(ifname=name)
    if not found:
        raise OSError(f'interface "{name}" vanished while it was being set up')
    return int(found[0])


def _address(text: str) -> dict[str, Any]:
    address = ip_interface(text)
    fields: dict[str, Any] = {"address": str(address.ip), "prefixlen": address.network.prefixlen}
    # Without it an IPv6 address is not usable until duplicate detection ends, and that needs a port with a carrier.
    return {**fields, "flags": 2} if isinstance(address, IPv6Interface) else fields  # IFA_F_NODAD
