"""The host's ends of a container's network interfaces: plugged, unplugged, limited, with or without carrier."""

from contextlib import suppress
from pathlib import Path

from gugus.agent.v1 import resources_pb2

from agent.compute.hypervisor import AttachedNic
from agent.network import shaping
from common.errors import GugusError
from common.process import run

TIMEOUT_S = 10.0
"""Each command takes milliseconds; the rest is for a host under load."""

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
    await shaping.forget([host_name])


async def configure(host_name: str, settings: resources_pb2.NicSettings) -> None:
    """Set carrier and rate of an interface. Raises GugusError."""
    await _run("ip", "link", "set", "dev", host_name, "down" if settings.link_down else "up")
    await shaping.limit(host_name, settings)


async def set_bridge(host_name: str, bridge: str) -> None:
    """Plug an interface into another bridge. Raises GugusError."""
    await _run("ip", "link", "set", "dev", host_name, "master", bridge)


async def set_mtu(nic: AttachedNic, host_name: str, init_pid: int) -> None:
    """Set the largest packet of both ends; the bridge's when none is named. Raises GugusError."""
    mtu = str(nic.spec.settings.mtu or (_NET / nic.bridge / "mtu").read_text().strip())
    await _run("ip", "link", "set", "dev", host_name, "mtu", mtu)
    inside = f"/proc/{init_pid}/ns/net"
    await _run("nsenter", f"--net={inside}", "ip", "link", "set", "dev", nic.spec.name, "mtu", mtu)


def exists(host_name: str) -> bool:
    """Whether the host has such an interface."""
    return (_NET / host_name).exists()


async def _run(*argv: str) -> None:
    await run(argv, timeout_s=TIMEOUT_S)
