"""How a container's interfaces are set up, in the files that its own network system reads.

systemd-networkd (systemd.network(5)), ifupdown of Debian, Alpine and busybox (interfaces(5)), NetworkManager
(nm-settings-keyfile(5)). An image with none of them gets its static addresses from outside, see `outside`.
"""

from collections.abc import Sequence
from enum import Enum

from gugus.agent.v1 import boot_pb2

from agent.compute.lxc.rootfs import Tree

_HEAD = "# Written by gugus at the first boot of this guest.\n"
_NETWORKD = (
    "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
    "etc/systemd/system/dbus-org.freedesktop.network1.service",
    "etc/netplan",
)
_IFUP = ("sbin/ifup", "usr/sbin/ifup")
_IFUP_SERVICES = (
    "etc/init.d/networking",
    "lib/systemd/system/networking.service",
    "usr/lib/systemd/system/networking.service",
)
_CONNECTIONS = "etc/NetworkManager/system-connections"
_DHCP, _AUTO, _NONE = "dhcp", "auto", "none"


class System(Enum):
    """What sets up the interfaces in a container."""

    NETWORKD = "systemd-networkd"
    IFUPDOWN = "ifupdown"
    NETWORK_MANAGER = "NetworkManager"
    OUTSIDE = "none of its own"


def system_of(tree: Tree) -> System:
    """Tell which network system an image uses."""
    if any(tree.has(path) for path in _NETWORKD):
        return System.NETWORKD
    if any(tree.has(path) for path in _IFUP) and any(tree.has(path) for path in _IFUP_SERVICES):
        return System.IFUPDOWN
    return System.NETWORK_MANAGER if tree.has(_CONNECTIONS) else System.OUTSIDE


def apply(tree: Tree, boot: boot_pb2.FirstBoot, nics: Sequence[str]) -> None:
    """Write how all interfaces are set up, those without a word of their own by DHCP; and the DNS servers. Raises OSError."""
    system = system_of(tree)
    given = {address.nic: address for address in boot.addresses}
    wanted = [given.get(nic) or boot_pb2.NicAddress(nic=nic) for nic in nics]
    if system is System.NETWORKD:
        for address in wanted:
            tree.write(f"etc/systemd/network/05-gugus-{address.nic}.network", _networkd(address, boot))
    elif system is System.IFUPDOWN and wanted:
        tree.write("etc/network/interfaces", _ifupdown(wanted, boot))
    elif system is System.NETWORK_MANAGER:
        for address in wanted:
            tree.write(f"{_CONNECTIONS}/gugus-{address.nic}.nmconnection", _network_manager(address, boot), 0o600)
    resolved = system is System.NETWORKD and tree.is_link("etc/resolv.conf")
    if (boot.dns_servers or boot.dns_search) and not resolved:
        tree.write("etc/resolv.conf", _resolv_conf(boot))


def outside(tree: Tree, boot: boot_pb2.FirstBoot) -> dict[str, boot_pb2.NicAddress]:
    """Return what has to be set from outside at each start, by interface: nothing for images that do it themselves."""
    return {address.nic: address for address in boot.addresses} if system_of(tree) is System.OUTSIDE else {}


def static(address: boot_pb2.NicAddress) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the static addresses of an interface, and its gateways."""
    found = [value for value in (address.ipv4, address.ipv6) if value not in ("", _DHCP, _AUTO, _NONE)]
    return tuple(found), tuple(value for value in (address.ipv4_gateway, address.ipv6_gateway) if value)


def _networkd(address: boot_pb2.NicAddress, boot: boot_pb2.FirstBoot) -> str:
    static_addresses, gateways = static(address)
    dhcp4, dhcp6 = (address.ipv4 or _DHCP) == _DHCP, address.ipv6 == _DHCP
    lines = ["[Match]", f"Name={address.nic}", "", "[Network]"]
    lines.append(f"DHCP={'yes' if dhcp4 and dhcp6 else 'ipv4' if dhcp4 else 'ipv6' if dhcp6 else 'no'}")
    lines.append(f"IPv6AcceptRA={'yes' if (address.ipv6 or _AUTO) in (_AUTO, _DHCP) else 'no'}")
    if address.ipv6 == _NONE:
        lines.append("LinkLocalAddressing=no")
    lines += [f"Address={value}" for value in static_addresses] + [f"Gateway={value}" for value in gateways]
    lines += [f"DNS={server}" for server in boot.dns_servers]
    if boot.dns_search:
        lines.append(f"Domains={' '.join(boot.dns_search)}")
    return _HEAD + "\n".join([*lines, ""])


def _ifupdown(addresses: Sequence[boot_pb2.NicAddress], boot: boot_pb2.FirstBoot) -> str:
    lines = ["auto lo", "iface lo inet loopback"]
    for address in addresses:
        lines += ["", f"auto {address.nic}"]
        lines += _stanza(address.nic, "inet", address.ipv4 or _DHCP, address.ipv4_gateway)
        if address.ipv6 not in (
            "",
            _AUTO,
        ):  # the kernel heeds router advertisements by itself; busybox has no word for it
            lines += _stanza(address.nic, "inet6", address.ipv6, address.ipv6_gateway)
        if boot.dns_servers:
            lines.append(f"\tdns-nameservers {' '.join(boot.dns_servers)}")
        if boot.dns_search:
            lines.append(f"\tdns-search {' '.join(boot.dns_search)}")
    return _HEAD + "\n".join([*lines, ""])


def _stanza(nic: str, family: str, value: str, gateway: str) -> list[str]:
    if value == _NONE:
        return [f"iface {nic} {family} manual"]
    if value == _DHCP:
        return [f"iface {nic} {family} {_DHCP}"]
    lines = [f"iface {nic} {family} static", f"\taddress {value}"]
    return [*lines, f"\tgateway {gateway}"] if gateway else lines


def _network_manager(address: boot_pb2.NicAddress, boot: boot_pb2.FirstBoot) -> str:
    lines = ["[connection]", f"id=gugus-{address.nic}", "type=ethernet", f"interface-name={address.nic}"]
    for family, value, gateway, automatic in (
        ("ipv4", address.ipv4 or _DHCP, address.ipv4_gateway, _DHCP),
        ("ipv6", address.ipv6 or _AUTO, address.ipv6_gateway, _AUTO),
    ):
        lines += ["", f"[{family}]"]
        if value in (_DHCP, _AUTO):
            lines.append(f"method={'auto' if value == automatic else _DHCP}")
        elif value == _NONE:
            lines.append("method=disabled")
        else:
            lines += ["method=manual", f"address1={value}{f',{gateway}' if gateway else ''}"]
        servers = [server for server in boot.dns_servers if (":" in server) == (family == "ipv6")]
        if servers:
            lines.append(f"dns={';'.join(servers)};")
        if boot.dns_search and family == "ipv4":
            lines.append(f"dns-search={';'.join(boot.dns_search)};")
    return _HEAD + "\n".join([*lines, ""])


def _resolv_conf(boot: boot_pb2.FirstBoot) -> str:
    lines = [f"nameserver {server}" for server in boot.dns_servers]
    lines += [f"search {' '.join(boot.dns_search)}"] if boot.dns_search else []
    return _HEAD + "\n".join([*lines, ""])
