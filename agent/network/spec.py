"""The spec of a bridge network, read and checked. Pure.

Invariant: a `Desired` is possible in itself: whether it is possible on this host now is the plan's question.
"""

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_address, ip_interface

from gugus.agent.v1 import network_pb2

from common import validate
from common.errors import invalid

DEFAULT_MTU = 1500
"""MTU of Ethernet in bytes, when the spec says 0 (network.proto)."""

MTU_RANGE = range(576, 65536)
"""MTUs that a bridge with IPv4 takes: from RFC 791's least datagram to the kernel's largest."""


@dataclass(frozen=True, slots=True)
class DhcpServer:
    """A DHCP server on the bridge: the addresses it hands out, both ends included."""

    first: IPv4Address
    last: IPv4Address


@dataclass(frozen=True, slots=True)
class Desired:
    """A bridge network as it is to be; `uplink` "" and `address` None mean that it has none."""

    name: str
    bridge: str
    uplink: str = ""
    address: IPv4Interface | IPv6Interface | None = None
    nat: bool = False
    dhcp: DhcpServer | None = None
    mtu: int = DEFAULT_MTU

    @property
    def mark(self) -> str:
        """Alias of the bridge: whose it is, kept in the kernel with the bridge itself."""
        return f"gugus:{self.name}"

    @property
    def mac(self) -> str:
        """MAC address of the bridge: "" lets each host choose its own.

        A network that is each host's own (an address and no uplink) has the same on all: guests that come from another host
        while they run know their gateway by it, and would send to the old one's for up to a minute.
        """
        if self.address is None or self.uplink:
            return ""
        digest = hashlib.sha256(f"{self.name} {self.address}".encode()).digest()
        return ":".join(["02", *(f"{byte:02x}" for byte in digest[:5])])

    @property
    def uplink_mark(self) -> str:
        """Alias of the uplink while it is this network's."""
        return f"gugus-uplink:{self.name}"


def desired(spec: network_pb2.NetworkSpec) -> Desired:
    """Read a spec. Raises INVALID_ARGUMENT naming the field that can never be right."""
    bridge = spec.bridge
    validate.require("name", validate.name(spec.name))
    validate.require("bridge.bridge", validate.bridge_name(bridge.bridge))
    if bridge.uplink:
        validate.require("bridge.uplink", validate.bridge_name(bridge.uplink))
        if bridge.uplink == bridge.bridge:
            raise invalid("bridge.uplink", f'"{bridge.uplink}" is the bridge itself.')
    mtu = bridge.mtu or DEFAULT_MTU
    if mtu not in MTU_RANGE:
        raise invalid("bridge.mtu", f"{mtu} is not from {MTU_RANGE.start} to {MTU_RANGE.stop - 1}.")
    address = _address(bridge.address) if bridge.address else None
    if bridge.nat and address is None:
        raise invalid("bridge.nat", "needs an address of the host in the network.", remedy="Set bridge.address.")
    dhcp = _dhcp(bridge, address) if bridge.HasField("dhcp") else None
    return Desired(spec.name, bridge.bridge, bridge.uplink, address, bridge.nat, dhcp, mtu)


def _address(text: str) -> IPv4Interface | IPv6Interface:
    try:
        address = ip_interface(text)
    except ValueError as error:
        raise invalid("bridge.address", f'"{text}": {error}.', remedy="For example 10.20.0.1/24.") from None
    network = address.network
    if "/" not in text or (network.num_addresses > 2 and address.ip in (network[0], network[-1])):
        raise invalid(
            "bridge.address", f'"{text}" is no address of a host with its prefix.', remedy="Like 10.20.0.1/24."
        )
    return address


def _dhcp(bridge: network_pb2.BridgeNetwork, address: IPv4Interface | IPv6Interface | None) -> DhcpServer:
    if not isinstance(address, IPv4Interface):
        raise invalid("bridge.dhcp", "needs an IPv4 address of the host in the network.", remedy="Set bridge.address.")
    if bridge.uplink:
        raise invalid(
            "bridge.dhcp",
            f'would answer machines beyond the uplink "{bridge.uplink}" too.',
            remedy="Leave out either; the network behind the uplink has its own DHCP server.",
        )
    ends = []
    for field, text in (("bridge.dhcp.first", bridge.dhcp.first), ("bridge.dhcp.last", bridge.dhcp.last)):
        try:
            end = ip_address(text)
        except ValueError:
            raise invalid(field, f'"{text}" is no IP address.') from None
        if not isinstance(end, IPv4Address) or end not in address.network:
            raise invalid(field, f"{text} is not in {address.network}.")
        ends.append(end)
    if ends[0] > ends[1]:
        raise invalid("bridge.dhcp.last", f"{ends[1]} comes before the first address, {ends[0]}.")
    if ends[0] <= address.ip <= ends[1]:
        raise invalid("bridge.dhcp", f"{ends[0]} to {ends[1]} holds the host's own address {address.ip}.")
    return DhcpServer(ends[0], ends[1])
