"""What names, addresses and endpoints must look like; each check returns "" or a message that says what is right.

The messages leave out the field's name, which `require` puts before them.
"""

import ipaddress
import re

from common.config import split_endpoint
from common.errors import invalid
from common.identity.names import LABEL

BRIDGE_NAME_MAX = 15
"""IFNAMSIZ - 1 of the kernel (linux/if.h)."""

_BRIDGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_SHOWN_CHARS = 80


def require(field: str, message: str) -> None:
    """Raise the error for `field` unless the message is empty: `require("name", validate.name(request.name))`."""
    if message:
        raise invalid(field, message)


def name(value: str) -> str:
    """Check the name of a guest, node, pool or network: a lower-case host label (RFC 1123), at most 63 characters."""
    if not value:
        return "is empty; give a name like web-1"
    if len(value) > 63:
        return f"has {len(value)} characters; at most 63 are allowed"
    if LABEL.fullmatch(value):
        return ""
    return f'{_shown(value)} is not a name: use lower-case letters, digits and inner "-", like web-1'


def cidr(value: str) -> str:
    """Check a network in CIDR form, without host bits."""
    try:
        ipaddress.ip_network(value)
    except ValueError:
        try:
            inner = ipaddress.ip_interface(value) if "/" in value else None
        except ValueError:
            inner = None
        if inner is not None:
            return f'"{value}" has host bits set; the network is {inner.network}'
        return f"{_shown(value)} is not a network in CIDR form, like 10.20.0.0/24"
    return "" if "/" in value else f'"{value}" has no prefix length; write it like 10.20.0.0/24'


def ip(value: str) -> str:
    """Check an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return f"{_shown(value)} is not an IP address, like 10.20.0.5"
    return ""


def mac(value: str) -> str:
    """Check the MAC address of one network card: six pairs with colons, not a group address, not all zero."""
    if not _MAC.fullmatch(value):
        return f"{_shown(value)} is not a MAC address, like 52:54:00:12:34:56"
    first = int(value[:2], 16)
    if first & 1:
        return f'"{value}" is a group address: the first byte must be even, like 52:54:00:12:34:56'
    return f'"{value}" is the null address' if not value.replace(":", "").strip("0") else ""


def bridge_name(value: str) -> str:
    """Check the name of a network interface that is to be made: what the kernel and its tools take, 15 characters."""
    if not value:
        return "is empty; give a name like gugus0"
    if len(value.encode()) > BRIDGE_NAME_MAX:
        return f"{_shown(value)} has more than {BRIDGE_NAME_MAX} characters, the kernel's limit for interfaces"
    if not _BRIDGE.fullmatch(value):
        return f'{_shown(value)} is not an interface name: use letters, digits, "_", inner "." and "-", like gugus0'
    return f'"{value}" is reserved by the kernel' if value in ("all", "default", "lo") else ""


def endpoint(value: str) -> str:
    """Check "host:port"."""
    try:
        split_endpoint(value)
    except ValueError as error:
        return str(error)
    return ""


def _shown(value: str) -> str:
    cut = value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "…"
    return ascii(cut) if not cut.isprintable() else f'"{cut}"'
