"""First-boot settings."""

import ipaddress
import re
from collections.abc import Iterator

from gugus.agent.v1.boot_pb2 import FirstBoot, NicAddress
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1.guest_pb2 import GuestSpec

from common import validate
from common.errors import GugusError, invalid
from manager.guests.known import Known
from manager.guests.rules import check

MAX_TEXT_BYTES = 16 * 1024
"""Of user-data, vendor-data and network-config together, so that a guest fits into one object of the store; EC2 has the same limit."""

MAX_KEYS = 64
MAX_KEY_BYTES = 8 * 1024
MAX_NAMES = 16
MAX_PACKAGES = 256
MAX_HOSTNAME = 253

_VM_ONLY = ("user_data", "vendor_data", "network_config", "packages", "upgrade_packages")
_MADE = ("user", "password_hash", "packages", "upgrade_packages", "timezone")
"""What goes into the user-data that is made; verbatim user-data take its place."""

_KEY = re.compile(
    r"((no-touch-required|verify-required|restrict|[a-z-]+=\"[^\"\n]*\"|no-[a-z-]+)(,[^ \n]+)* )?"
    r"(ssh-(rsa|dss|ed25519)|ecdsa-sha2-nistp(256|384|521)|sk-[a-z0-9-]+@openssh\.com) [A-Za-z0-9+/]+={0,3}( [^\n]*)?"
)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HASH = re.compile(r"\$(y|gy|7|6|5|2[abxy])\$[./A-Za-z0-9=,$]{8,200}")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._:=~/-]{0,127}")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9+_-]{0,31}(/[A-Za-z0-9+_-]{1,31}){0,2}")
_DOMAIN = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)

AT = "spec.first_boot"


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Everything in `first_boot`."""
    own = spec.first_boot
    yield from _texts(own)
    if spec.kind == GUEST_KIND_CONTAINER:
        for name in _VM_ONLY:
            if getattr(own, name):
                yield invalid(f"{AT}.{name}", "only virtual machines have it: there is no cloud-init in containers.")
    yield from _people(own, container=spec.kind == GUEST_KIND_CONTAINER)
    yield from _names(own)
    yield from _addresses(spec)


def _texts(own: FirstBoot) -> Iterator[GugusError]:
    texts = {name: getattr(own, name) for name in ("user_data", "vendor_data", "network_config")}
    if (size := sum(len(text.encode()) for text in texts.values())) > MAX_TEXT_BYTES:
        longest = max(texts, key=lambda name: len(texts[name].encode()))
        yield invalid(f"{AT}.{longest}", f"the texts have {size:,} bytes together; at most {MAX_TEXT_BYTES:,}.")
    for name, text in texts.items():
        if "\0" in text:
            yield invalid(f"{AT}.{name}", "has a zero byte in it.")
    if own.user_data:
        for name in _MADE:
            if getattr(own, name):
                yield invalid(
                    f"{AT}.{name}", "would not be used: user_data stands for all that is made from such fields."
                )
    if own.network_config and own.addresses:
        yield invalid(f"{AT}.addresses", "would not be used: network_config stands for them.")


def _people(own: FirstBoot, *, container: bool) -> Iterator[GugusError]:
    if own.hostname and not (_DOMAIN.fullmatch(own.hostname) and len(own.hostname) <= MAX_HOSTNAME):
        yield invalid(
            f"{AT}.hostname", f"{check.shown(own.hostname)} is no host name, like web-1 or web-1.example.org."
        )
    elif own.hostname and container and (message := validate.name(own.hostname)):
        yield invalid(f"{AT}.hostname", f"{message}; a container's has no domain.")
    yield from check.at_most(f"{AT}.ssh_authorized_keys", len(own.ssh_authorized_keys), MAX_KEYS, "keys")
    for index, key in enumerate(own.ssh_authorized_keys):
        at = f"{AT}.ssh_authorized_keys[{index}]"
        yield from check.matching(at, key.strip(), _KEY, 'a public key like "ssh-ed25519 AAAA... me@home"')
        yield from check.size_of_text(at, key, MAX_KEY_BYTES)
    if own.user:
        yield from check.matching(f"{AT}.user", own.user, _USER, "a user name like debian")
    if own.password_hash and not _HASH.fullmatch(own.password_hash):  # its value is not repeated: it may be a password
        yield invalid(
            f"{AT}.password_hash", 'is no hash of crypt(5), like "$y$..."; `mkpasswd` makes one. Never send a password.'
        )


def _names(own: FirstBoot) -> Iterator[GugusError]:
    yield from check.at_most(f"{AT}.dns_servers", len(own.dns_servers), MAX_NAMES, "servers")
    for index, server in enumerate(own.dns_servers):
        if message := validate.ip(server):
            yield invalid(f"{AT}.dns_servers[{index}]", f"{message}.")
    yield from check.at_most(f"{AT}.dns_search", len(own.dns_search), MAX_NAMES, "domains")
    for index, domain in enumerate(own.dns_search):
        yield from check.matching(f"{AT}.dns_search[{index}]", domain, _DOMAIN, "a domain like example.org")
    yield from check.at_most(f"{AT}.packages", len(own.packages), MAX_PACKAGES, "packages")
    for index, package in enumerate(own.packages):
        yield from check.matching(f"{AT}.packages[{index}]", package, _PACKAGE, "a package like nginx")
    if own.timezone:
        yield from check.matching(f"{AT}.timezone", own.timezone, _ZONE, "a time zone like Europe/Vienna")


def _addresses(spec: GuestSpec) -> Iterator[GugusError]:
    names = {nic.name for nic in spec.nics}
    seen: set[str] = set()
    for index, address in enumerate(spec.first_boot.addresses):
        at = f"{AT}.addresses[{index}]"
        if address.nic not in names:
            have = ", ".join(sorted(names)) or "none"
            yield invalid(f"{at}.nic", f"{check.shown(address.nic)} is no interface of this guest: {have}.")
        if address.nic in seen:
            yield invalid(f"{at}.nic", f"{check.shown(address.nic)} is set up twice.")
        seen.add(address.nic)
        yield from _family(at, address, 4, ("", "dhcp", "none"))
        yield from _family(at, address, 6, ("", "auto", "dhcp", "none"))


def _family(at: str, address: NicAddress, version: int, words: tuple[str, ...]) -> Iterator[GugusError]:
    value, gateway = getattr(address, f"ipv{version}"), getattr(address, f"ipv{version}_gateway")
    example = "10.0.0.5/24" if version == 4 else "fd00::5/64"
    if value not in words and not _is_interface(value, version):
        options = ", ".join(f'"{word}"' for word in words if word)
        yield invalid(f"{at}.ipv{version}", f"{check.shown(value)} is neither {options} nor an address like {example}.")
    if gateway and not _is_address(gateway, version):
        yield invalid(f"{at}.ipv{version}_gateway", f"{check.shown(gateway)} is no IPv{version} address.")
    if gateway and value in words:
        yield invalid(f"{at}.ipv{version}_gateway", f"needs an address of its own in ipv{version}, like {example}.")


def _is_interface(value: str, version: int) -> bool:
    try:
        prefix = value.partition("/")[2]  # a netmask after the slash is taken by ipaddress, and by nobody on a node
        return prefix.isdecimal() and ipaddress.ip_interface(value).version == version
    except ValueError:
        return False


def _is_address(value: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(value).version == version
    except ValueError:
        return False
