"""Networks on a stock kernel, where bridges and NAT are modules, and among the host's own interfaces."""

import shlex
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from gugus.agent.v1 import network_pb2
from pyroute2 import netns

from agent.network.bridge import BridgeDriver
from common.process import run

pytestmark = pytest.mark.kernel

T = TypeVar("T")
GUEST, WORLD = "guest", "world"
GUEST_MAC = "02:aa:00:00:00:01"
HOST, SERVER = "192.0.2.1", "192.0.2.2"
CONNECT_TIMEOUT_S = 5.0
UNANSWERED_S = 2.0
UDHCPC_SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
"""


def spec(*, nat: bool = True) -> network_pb2.NetworkSpec:
    lent = network_pb2.DhcpRange(first="10.20.0.10", last="10.20.0.19")
    bridge = network_pb2.BridgeNetwork(bridge="gugus0", address="10.20.0.1/24", nat=nat, dhcp=lent, mtu=1400)
    return network_pb2.NetworkSpec(name="lan", bridge=bridge)


async def shell(line: str) -> str:
    return (await run(shlex.split(line), timeout_s=20)).text


async def traces() -> tuple[str, str, str]:
    """Everything that a network may leave."""
    links = "\n".join(line.split("@")[0] for line in (await shell("ip -o link")).splitlines())
    servers = (await run(["pgrep", "-a", "dnsmasq"], timeout_s=20, check=False)).text
    return links, await shell("nft list ruleset"), servers


def inside(namespace: str, make: Callable[[], T]) -> T:
    """Do something in a network namespace: a socket made there stays there."""
    netns.pushns(namespace)
    try:
        return make()
    finally:
        netns.popns()


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[BridgeDriver]:
    made = BridgeDriver(tmp_path / "networks")
    yield made
    await made.remove(spec())


@pytest.fixture
async def server() -> AsyncIterator[socket.socket]:
    """A server in a world that knows this host, and no way to the networks behind it."""
    await shell(f"ip netns add {WORLD}")
    await shell(f"ip link add w0 type veth peer name eth0 netns {WORLD}")
    await shell(f"ip addr add {HOST}/24 dev w0")
    await shell("ip link set w0 up")
    await shell(f"ip -n {WORLD} addr add {SERVER}/24 dev eth0")
    await shell(f"ip -n {WORLD} link set eth0 up")
    with inside(WORLD, lambda: socket.create_server((SERVER, 80))) as listening:
        yield listening
    await shell("ip link del w0")
    await shell(f"ip netns del {WORLD}")


@pytest.fixture
async def guest(driver: BridgeDriver, tmp_path: Path) -> AsyncIterator[str]:
    """A guest on the network; returns the address that it was lent and has taken."""
    await driver.ensure(spec())
    await shell(f"ip netns add {GUEST}")
    await shell(f"ip link add v0 type veth peer name eth0 address {GUEST_MAC} netns {GUEST}")
    await shell("ip link set v0 master gugus0 up")
    await shell(f"ip -n {GUEST} link set eth0 up")
    script = tmp_path / "udhcpc.sh"
    script.write_text(UDHCPC_SCRIPT)
    script.chmod(0o755)
    await shell(f"ip netns exec {GUEST} busybox udhcpc -i eth0 -n -q -f -t 10 -T 1 -s {script}")
    (address,) = driver.addresses_by_mac()[GUEST_MAC]
    yield address
    await shell("ip link del v0")
    await shell(f"ip netns del {GUEST}")


async def test_a_network_is_made_once_repaired_and_removed_without_a_trace(tmp_path: Path) -> None:
    driver = BridgeDriver(tmp_path / "networks")
    before = await traces()
    assert (await driver.ensure(spec())).ready
    made = await traces()
    assert made != before
    assert (await driver.ensure(spec())).ready
    assert await traces() == made

    await shell("ip addr del 10.20.0.1/24 dev gugus0")
    await shell("nft delete table inet gugus_lan")
    assert not (await driver.status(spec())).ready
    assert (await driver.ensure(spec())).ready
    assert "10.20.0.1/24" in await shell("ip addr show gugus0")

    await driver.remove(spec())
    assert await traces() == before
    assert not list((tmp_path / "networks").iterdir())


async def test_a_guest_gets_an_address_and_meets_the_world_under_that_of_its_host(
    driver: BridgeDriver, guest: str, server: socket.socket
) -> None:
    assert guest.startswith("10.20.0.1")
    with inside(GUEST, lambda: socket.create_connection((SERVER, 80), CONNECT_TIMEOUT_S)) as connection:
        accepted, peer = server.accept()
        assert peer[0] == HOST
        accepted.sendall(b"hello")
        accepted.close()
        assert connection.recv(100) == b"hello"

    await driver.ensure(spec(nat=False))
    with pytest.raises(TimeoutError):
        inside(GUEST, lambda: socket.create_connection((SERVER, 80), UNANSWERED_S))
