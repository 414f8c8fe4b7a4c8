"""The host's ends of a container's network interfaces: plugged, unplugged, limited, with or without carrier.

What a guest receives is shaped on its way into the veth (tc-tbf(8)). What it sends is limited where it leaves it, by a
rule of nftables at the interface's ingress hook, in a table of its own: what exceeds the rate is dropped, as by a policer,
and the guest, which may change all on its own end, cannot lift it.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gugus.agent.v1 import resources_pb2

from agent.compute.hypervisor import AttachedNic
from common.errors import GugusError
from common.process import CommandFailed, run

TIMEOUT_S = 10.0
"""Each command takes milliseconds; the rest is for a host under load."""

BURST_PART = 10
"""A burst that is not named is what flows in one part in so many of a second (NicSettings.burst_bytes)."""

LEAST_BURST_BYTES = 64 * 1024
"""The largest segment that the kernel hands over at once (GSO); a smaller bucket would never let it pass."""

QUEUE_LATENCY = "50ms"
"""How long a packet may wait in the shaper before it is dropped."""

_NET = Path("/sys/class/net")


async def plug(nic: AttachedNic, host_name: str, init_pid: int) -> None:
    """Make an interface in a running container. Raises GugusError; then nothing is left of it."""
    inside = f"/proc/{init_pid}/ns/net"
    try:
        peer = ["peer", "name", nic.spec.name, "address", nic.spec.mac, "netns", str(init_pid)]
        await _run("ip", "link", "add", "name", host_name, "type", "veth", *peer)
        await _run("ip", "link", "set", "dev", host_name, "master", nic.bridge, "up")
        await set_mtu(nic, host_name, init_pid)
        await _run("nsenter", f"--net={inside}", "ip", "link", "set", "dev", nic.spec.name, "up")
        await configure(host_name, nic.spec.settings)
    except BaseException:
        with suppress(GugusError):
            await unplug(host_name)
        raise


async def unplug(host_name: str) -> None:
    """Remove an interface, both ends, and its limits. Nothing happens when it is gone. Raises GugusError."""
    if exists(host_name):
        await _run("ip", "link", "delete", "dev", host_name)
    await _limit_sending(host_name, 0, 0)


async def configure(host_name: str, settings: resources_pb2.NicSettings) -> None:
    """Set carrier and rate of an interface. Raises GugusError."""
    await _run("ip", "link", "set", "dev", host_name, "down" if settings.link_down else "up")
    rate = settings.rate_bytes_per_s
    burst = max(settings.burst_bytes or rate // BURST_PART, LEAST_BURST_BYTES)
    await _limit_receiving(host_name, rate, burst)
    await _limit_sending(host_name, rate, burst)


async def set_bridge(host_name: str, bridge: str) -> None:
    """Plug an interface into another bridge. Raises GugusError."""
    await _run("ip", "link", "set", "dev", host_name, "master", bridge)


async def set_mtu(nic: AttachedNic, host_name: str, init_pid: int) -> None:
    """Set the largest packet of both ends; the bridge's when none is named. Raises GugusError."""
    mtu = str(nic.spec.settings.mtu or (_NET / nic.bridge / "mtu").read_text().strip())
    await _run("ip", "link", "set", "dev", host_name, "mtu", mtu)
    inside = f"/proc/{init_pid}/ns/net"
    await _run("nsenter", f"--net={inside}", "ip", "link", "set", "dev", nic.spec.name, "mtu", mtu)


async def forget(host_names: Iterable[str]) -> None:
    """Remove the rules of interfaces that went with their container. Never raises."""
    for name in host_names:
        with suppress(GugusError):
            await _limit_sending(name, 0, 0)


def exists(host_name: str) -> bool:
    """Whether the host has such an interface."""
    return (_NET / host_name).exists()


async def _limit_receiving(host_name: str, rate: int, burst: int) -> None:
    if rate:
        bucket = ["rate", f"{rate}bps", "burst", f"{burst}b", "latency", QUEUE_LATENCY]  # tc(8): bps are bytes a second
        await _run("tc", "qdisc", "replace", "dev", host_name, "root", "tbf", *bucket)
    else:
        with suppress(CommandFailed):  # there is none
            await _run("tc", "qdisc", "delete", "dev", host_name, "root")


async def _limit_sending(host_name: str, rate: int, burst: int) -> None:
    """Replace, or remove, the table of an interface in one transaction."""
    table: dict[str, Any] = {"family": "netdev", "name": f"gugus_rate_{host_name.replace('-', '_')}"}
    steps: list[dict[str, Any]] = [{"add": {"table": table}}, {"delete": {"table": table}}]
    if rate:
        at = {"family": "netdev", "table": table["name"]}
        hook = {"type": "filter", "hook": "ingress", "dev": host_name, "prio": 0, "policy": "accept"}
        limit = {
            "rate": rate,
            "rate_unit": "bytes",
            "per": "second",
            "burst": burst,
            "burst_unit": "bytes",
            "inv": True,
        }
        rule = {**at, "chain": "sends", "expr": [{"limit": limit}, {"drop": None}]}
        steps += [
            {"add": {"table": table}},
            {"add": {"chain": {**at, "name": "sends", **hook}}},
            {"add": {"rule": rule}},
        ]
    await run(["nft", "-j", "-f", "-"], timeout_s=TIMEOUT_S, input=json.dumps({"nftables": steps}).encode())


async def _run(*argv: str) -> None:
    await run(argv, timeout_s=TIMEOUT_S)
