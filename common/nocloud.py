"""What cloud-init is told at a guest's first boot: the files of its NoCloud data source, made from the guest's settings. Pure.

See https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html. The agent writes them onto the seed's disk; the command
line shows them.
"""

from typing import Any

import yaml
from gugus.agent.v1 import boot_pb2, guest_pb2


def files(spec: guest_pb2.GuestSpec) -> dict[str, str]:
    """Return the seed's files by name. The instance id is the guest's uid: another guest is another instance."""
    boot = spec.first_boot
    hostname = boot.hostname or spec.name
    instance = f"{spec.uid or spec.name}-{boot.again}" if boot.again else spec.uid or spec.name
    made = {
        "meta-data": _yaml({"instance-id": instance, "local-hostname": hostname}),
        "user-data": boot.user_data or "#cloud-config\n" + _yaml(user_data(spec)),
        "network-config": boot.network_config or _yaml(network_config(spec)),
    }
    return made | ({"vendor-data": boot.vendor_data} if boot.vendor_data else {})


def user_data(spec: guest_pb2.GuestSpec) -> dict[str, Any]:
    """Return cloud-init's user-data that is made from the fields of first_boot."""
    boot, keys = spec.first_boot, list(spec.first_boot.ssh_authorized_keys)
    data: dict[str, Any] = {"hostname": boot.hostname or spec.name}
    if boot.user:
        data["users"] = [_user(boot, keys)]
    else:
        data["ssh_authorized_keys"] = keys
        if boot.password_hash:  # merged into the image's default user
            data["user"] = {"lock_passwd": False, "passwd": boot.password_hash}
    if boot.password_hash:
        data["chpasswd"] = {"expire": False}
    if boot.packages:
        data |= {"package_update": True, "packages": list(boot.packages)}
    if boot.upgrade_packages:
        data |= {"package_update": True, "package_upgrade": True}
    if boot.timezone:
        data["timezone"] = boot.timezone
    return data


def network_config(spec: guest_pb2.GuestSpec) -> dict[str, Any]:
    """Return cloud-init's network-config, version 2: interfaces are found by MAC and named as in the spec."""
    told = {address.nic: address for address in spec.first_boot.addresses}
    servers: dict[str, Any] = {}
    if spec.first_boot.dns_servers:
        servers["addresses"] = list(spec.first_boot.dns_servers)
    if spec.first_boot.dns_search:
        servers["search"] = list(spec.first_boot.dns_search)
    interfaces = {}
    for nic in spec.nics:
        interface = {"match": {"macaddress": nic.mac}, "set-name": nic.name, **_addresses(told.get(nic.name))}
        interfaces[nic.name] = interface | ({"nameservers": servers} if servers else {})
    return {"version": 2, "ethernets": interfaces}


def _user(boot: boot_pb2.FirstBoot, keys: list[str]) -> dict[str, Any]:
    user: dict[str, Any] = {"name": boot.user, "sudo": "ALL=(ALL) NOPASSWD:ALL", "shell": "/bin/bash"}
    user |= {"lock_passwd": not boot.password_hash, "ssh_authorized_keys": keys}
    return user | ({"passwd": boot.password_hash} if boot.password_hash else {})


def _addresses(told: boot_pb2.NicAddress | None) -> dict[str, Any]:
    """Return the addresses of one interface. Routes are written out: old cloud-inits do not know "default"."""
    if told is None:
        return {"dhcp4": True}
    fixed = [a for a in (told.ipv4, told.ipv6) if "/" in a]
    settings: dict[str, Any] = {"dhcp4": told.ipv4 in ("", "dhcp")}
    if told.ipv6 == "dhcp":
        settings["dhcp6"] = True
    elif told.ipv6 == "none":
        settings |= {"accept-ra": False, "link-local": []}
    if fixed:
        settings["addresses"] = fixed
    routes = [("0.0.0.0/0", told.ipv4_gateway), ("::/0", told.ipv6_gateway)]
    if any(gateway for _, gateway in routes):
        settings["routes"] = [{"to": to, "via": gateway} for to, gateway in routes if gateway]
    return settings


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=False)
