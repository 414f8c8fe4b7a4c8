"""Reconciling a bridge network: from what is wanted and what is there to the steps between. Pure.

Invariant: applying a plan reaches what is wanted, and the plan after that is empty. A step is planned only for things
that carry this project's mark; whatever is in the way and does not is an error, raised before the first step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from agent.network.spec import DEFAULT_MTU, Desired
from common.errors import precondition


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel tells it; `addresses` are the permanent ones that are not link-local, with prefix."""

    name: str
    kind: str = ""
    alias: str = ""
    mtu: int = DEFAULT_MTU
    up: bool = False
    master: str = ""
    addresses: frozenset[str] = frozenset()
    forward_delay: int = 0
    stp: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """What is there: links by name, whether this network's NAT rules and DHCP server are as wanted, forwarding."""

    links: Mapping[str, Link]
    nat: bool | None = None
    """None: no table of ours; False: one with other content than wanted; True: as wanted."""
    dhcp: bool | None = None
    """None: no server of ours; False: one with other settings than wanted; True: as wanted."""
    forwarding: bool = False


@dataclass(frozen=True, slots=True)
class CreateBridge:
    """Make the bridge, marked from its first moment under this name; mac: its MAC address, "" for a random one."""

    bridge: str
    mark: str
    mac: str = ""


@dataclass(frozen=True, slots=True)
class ConfigureBridge:
    """Set the MTU, switch spanning tree off and its delay to 0, and bring the bridge up."""

    bridge: str
    mtu: int


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Give the bridge an address with its prefix."""

    bridge: str
    address: str


@dataclass(frozen=True, slots=True)
class DropAddress:
    """Take an address from the bridge."""

    bridge: str
    address: str


@dataclass(frozen=True, slots=True)
class TakeUplink:
    """Mark the uplink, put it into the bridge and bring it up; raise its MTU if it is smaller."""

    uplink: str
    bridge: str
    mark: str
    mtu: int


@dataclass(frozen=True, slots=True)
class ReleaseUplink:
    """Take a former uplink out of the bridge and remove its mark."""

    uplink: str


@dataclass(frozen=True, slots=True)
class DeleteBridge:
    """Remove the bridge."""

    bridge: str


@dataclass(frozen=True, slots=True)
class EnableForwarding:
    """Let the host forward packets of the address family (4 or 6)."""

    family: int


@dataclass(frozen=True, slots=True)
class LoadNat:
    """Replace the network's own nftables table."""


@dataclass(frozen=True, slots=True)
class DropNat:
    """Remove the network's own nftables table."""


@dataclass(frozen=True, slots=True)
class StartDhcp:
    """Run the DHCP server with the wanted settings, in place of one with others."""


@dataclass(frozen=True, slots=True)
class StopDhcp:
    """Stop the DHCP server."""


Action = (
    CreateBridge
    | ConfigureBridge
    | AddAddress
    | DropAddress
    | TakeUplink
    | ReleaseUplink
    | DeleteBridge
    | EnableForwarding
    | LoadNat
    | DropNat
    | StartDhcp
    | StopDhcp
)


def plan(want: Desired, seen: Observed) -> list[Action]:
    """Return the steps from what is there to what is wanted.

    Raises FAILED_PRECONDITION: BRIDGE_NOT_OURS, UPLINK_MISSING, UPLINK_IN_USE, UPLINK_HAS_ADDRESSES.
    """
    bridge = seen.links.get(want.bridge)
    if bridge is not None:
        _check_ours(want, bridge)
    if want.uplink:
        _check_uplink(want, seen)
    for former in _former(want, seen):
        _check_unused(want, former, _ports(want, seen, former))
    first: list[Action] = []
    if bridge is None and seen.dhcp is not None:
        # A server that has lost its bridge stays bound to it: dnsmasq holds its socket to the interface that was.
        first, seen = [StopDhcp()], replace(seen, dhcp=None)
    return [
        *first,
        *_links(want, seen, bridge),
        *_addresses(want, bridge),
        *_services(want, seen),
    ]


def plan_removal(want: Desired, seen: Observed) -> list[Action]:
    """Return the steps that remove everything of ours; a bridge of that name that is not ours stays.

    Raises FAILED_PRECONDITION (NETWORK_IN_USE).
    """
    bridge = seen.links.get(want.bridge)
    ours = [want.bridge] if bridge is not None and bridge.kind == "bridge" and bridge.alias == want.mark else []
    ours += _former(want, seen)
    for name in ours:
        _check_unused(want, name, _ports(want, seen, name))
    steps: list[Action] = []
    if seen.dhcp is not None:
        steps.append(StopDhcp())
    if seen.nat is not None:
        steps.append(DropNat())
    steps += [ReleaseUplink(link.name) for link in seen.links.values() if link.alias == want.uplink_mark]
    return steps + [DeleteBridge(name) for name in ours]


def guest_ports(want: Desired, seen: Observed) -> list[str]:
    """Return the ports of the bridge that are not its uplink, sorted."""
    return _ports(want, seen, want.bridge)


def _ports(want: Desired, seen: Observed, bridge: str) -> list[str]:
    return sorted(
        link.name
        for link in seen.links.values()
        if link.master == bridge and link.name != want.uplink and link.alias != want.uplink_mark
    )


def _former(want: Desired, seen: Observed) -> list[str]:
    """Bridges that this network had under other names."""
    return sorted(
        link.name
        for link in seen.links.values()
        if link.kind == "bridge" and link.alias == want.mark and link.name != want.bridge
    )


def _check_unused(want: Desired, bridge: str, ports: list[str]) -> None:
    if ports:
        raise precondition(
            "NETWORK_IN_USE",
            f'bridge "{bridge}" of network "{want.name}" has ports in use: {", ".join(ports)}.',
            remedy="Stop the guests that use it first.",
            metadata={"network": want.name, "ports": ",".join(ports)},
        )


def _links(want: Desired, seen: Observed, bridge: Link | None) -> Iterator[Action]:
    yield from (DeleteBridge(name) for name in _former(want, seen))
    if bridge is None:
        yield CreateBridge(want.bridge, want.mark, want.mac)
    for link in seen.links.values():
        if link.alias == want.uplink_mark and link.name != want.uplink:
            yield ReleaseUplink(link.name)
    if want.uplink:
        uplink = seen.links[want.uplink]
        taken = (uplink.master, uplink.alias, uplink.up) == (want.bridge, want.uplink_mark, True)
        if not taken or uplink.mtu < want.mtu:
            yield TakeUplink(want.uplink, want.bridge, want.uplink_mark, want.mtu)
    if bridge is None or (bridge.mtu, bridge.up, bridge.stp, bridge.forward_delay) != (want.mtu, True, False, 0):
        yield ConfigureBridge(want.bridge, want.mtu)


def _addresses(want: Desired, bridge: Link | None) -> Iterator[Action]:
    wanted = {str(want.address)} if want.address else set()
    there = bridge.addresses if bridge else frozenset()
    yield from (DropAddress(want.bridge, address) for address in sorted(there - wanted))
    yield from (AddAddress(want.bridge, address) for address in sorted(wanted - there))


def _services(want: Desired, seen: Observed) -> Iterator[Action]:
    if want.nat and want.address is not None:
        if not seen.forwarding:
            yield EnableForwarding(want.address.version)
        if seen.nat is not True:
            yield LoadNat()
    elif seen.nat is not None:
        yield DropNat()
    if want.dhcp:
        if seen.dhcp is not True:
            yield StartDhcp()
    elif seen.dhcp is not None:
        yield StopDhcp()


def _check_ours(want: Desired, bridge: Link) -> None:
    if bridge.kind == "bridge" and bridge.alias == want.mark:
        return
    whose = f'belongs to network "{bridge.alias.removeprefix("gugus:")}"' if bridge.alias.startswith("gugus:") else ""
    what = whose or f"exists and was not made by gugus (a {bridge.kind or 'physical'} interface)"
    raise precondition(
        "BRIDGE_NOT_OURS",
        f'interface "{want.bridge}" {what}; nothing of it was touched.',
        remedy=f'Choose another bridge name for network "{want.name}", or remove the interface on this host.',
        subject=want.bridge,
    )


def _check_uplink(want: Desired, seen: Observed) -> None:
    uplink = seen.links.get(want.uplink)
    if uplink is None:
        there = ", ".join(sorted(name for name, link in seen.links.items() if not link.kind and name != "lo"))
        raise precondition(
            "UPLINK_MISSING",
            f'this host has no interface "{want.uplink}".',
            remedy=f"It has: {there or 'none that could be an uplink'}.",
            subject=want.uplink,
        )
    if uplink.master and uplink.master != want.bridge:
        raise precondition(
            "UPLINK_IN_USE",
            f'uplink "{want.uplink}" is already a port of "{uplink.master}".',
            remedy="An interface can be in one bridge only: take it out there, or choose another.",
            subject=want.uplink,
        )
    if uplink.addresses and uplink.master != want.bridge:
        held = ", ".join(sorted(uplink.addresses))
        raise precondition(
            "UPLINK_HAS_ADDRESSES",
            f'uplink "{want.uplink}" has addresses ({held}), which would stop working in a bridge.',
            remedy="Use an interface without addresses; or move them to bridge.address in the host's own set-up first.",
            subject=want.uplink,
        )
