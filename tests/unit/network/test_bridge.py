"""The bridge driver against the real kernel, nft and dnsmasq, in network namespaces made for each test."""

import asyncio
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1 import network_pb2
from pyroute2 import netns

from agent.compute.processes import record_of
from agent.network.bridge import BridgeDriver
from common.errors import GugusError
from common.process import run
from tests import runs

MISSING = [tool for tool in ("ip", "nft", "dnsmasq", "busybox") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd starts dnsmasq outside the namespace"),
]

NAMESPACE = f"gt{runs.current().id}-{secrets.token_hex(2)}"
GUEST = f"{NAMESPACE}-g"


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """A network namespace of the test's own, in which its thread and the programs it starts run."""
    try:
        netns.create(NAMESPACE)
    except OSError as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    netns.pushns(NAMESPACE)
    try:
        yield
    finally:
        netns.popns()
        netns.remove(NAMESPACE)
        if GUEST in netns.listnetns():
            netns.remove(GUEST)


def spec(**bridge: Any) -> network_pb2.NetworkSpec:
    fields = {"bridge": "gugus0", "address": "10.20.0.1/24", **bridge}
    return network_pb2.NetworkSpec(name="lan-1", bridge=network_pb2.BridgeNetwork(**fields))


def full() -> network_pb2.NetworkSpec:
    return spec(nat=True, dhcp=network_pb2.DhcpRange(first="10.20.0.10", last="10.20.0.19"), mtu=1400)


async def ip(*words: str) -> str:
    return (await run(["ip", *words], timeout_s=10)).text


async def attach_guest(name: str = "v0") -> str:
    """Plug a network namespace into the bridge as a guest would be; returns its MAC address."""
    mac = "02:aa:00:00:00:01"
    await ip("netns", "add", GUEST)
    await ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", GUEST)
    await ip("link", "set", name, "master", "gugus0", "up")
    await ip("-n", GUEST, "link", "set", "eth0", "up")
    return mac


async def ask_dhcp() -> None:
    ask = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "10", "-T", "1", "-s", "/bin/true"]
    await run(["ip", "netns", "exec", GUEST, *ask], timeout_s=20)


async def test_a_network_is_made_reported_ready_and_removed(tmp_path: Path) -> None:
    driver = BridgeDriver(tmp_path)
    assert not (await driver.status(full())).ready
    made = await driver.ensure(full())
    try:
        assert (made.ready, made.reason, list(made.ports)) == (True, "", [])
        shown = await ip("-d", "addr", "show", "gugus0")
        assert "10.20.0.1/24" in shown
        assert "mtu 1400" in shown
        assert "alias gugus:lan-1" in shown
        assert "forward_delay 0 " in shown
        assert (await run(["cat", "/proc/sys/net/ipv4/ip_forward"], timeout_s=5)).text.strip() == "1"
        assert "masquerade" in (await run(["nft", "list", "table", "inet", "gugus_lan_1"], timeout_s=5)).text
    finally:
        await driver.remove(full())
    await driver.remove(full())
    assert "gugus0" not in await ip("link")
    assert "gugus" not in (await run(["nft", "list", "tables"], timeout_s=5)).text
    assert not os.listdir(tmp_path)


async def test_a_guest_gets_an_address_by_dhcp_also_after_the_bridge_was_deleted(tmp_path: Path) -> None:
    driver = BridgeDriver(tmp_path)
    await driver.ensure(full())
    try:
        mac = await attach_guest()
        await ask_dhcp()
        (address,) = driver.addresses_by_mac()[mac]
        assert address.startswith("10.20.0.1")
        assert list((await driver.status(full())).ports) == ["v0"]

        await ip("link", "del", "gugus0")
        assert not (await driver.status(full())).ready
        assert (await driver.ensure(full())).ready
        await ip("link", "set", "v0", "master", "gugus0", "up")
        await ask_dhcp()
        assert driver.addresses_by_mac()[mac] == (address,)

        with pytest.raises(GugusError, match="v0") as caught:
            await driver.remove(full())
        assert caught.value.reason == "NETWORK_IN_USE"
    finally:
        await ip("link", "del", "v0")
        await driver.remove(full())


async def test_drift_is_repaired(tmp_path: Path) -> None:
    driver = BridgeDriver(tmp_path)
    await driver.ensure(full())
    try:
        await ip("addr", "flush", "dev", "gugus0")
        await ip("addr", "add", "10.99.0.1/24", "dev", "gugus0")
        await ip("link", "set", "gugus0", "down", "mtu", "1300")
        await run(["nft", "flush", "table", "inet", "gugus_lan_1"], timeout_s=5)
        await run(["kill", "-9", (tmp_path / "lan-1/dnsmasq.pid").read_text().strip()], timeout_s=5)
        status = await driver.status(full())
        assert not status.ready
        assert "LoadNat" in status.reason
        assert (await driver.ensure(full())).ready
    finally:
        await driver.remove(full())


async def test_another_driver_finds_the_dhcp_server_and_restarts_it_for_other_settings(tmp_path: Path) -> None:
    await BridgeDriver(tmp_path).ensure(full())
    later = BridgeDriver(tmp_path)
    changed = full()
    try:
        pid = (tmp_path / "lan-1/dnsmasq.pid").read_text()
        await later.ensure(full())
        assert (tmp_path / "lan-1/dnsmasq.pid").read_text() == pid
        changed.bridge.dhcp.last = "10.20.0.29"
        assert not (await later.status(changed)).ready
        assert (await later.ensure(changed)).ready
        assert (tmp_path / "lan-1/dnsmasq.pid").read_text() != pid
        changed.bridge.ClearField("dhcp")
        changed.bridge.nat = False
        assert (await later.ensure(changed)).ready
        assert record_of(int(pid)) is None
    finally:
        await later.remove(changed)


async def test_a_bridge_that_is_not_ours_is_refused_and_left_alone(tmp_path: Path) -> None:
    await ip("link", "add", "gugus0", "type", "bridge")
    driver = BridgeDriver(tmp_path)
    before = await ip("-d", "addr", "show", "gugus0")
    with pytest.raises(GugusError) as caught:
        await driver.ensure(full())
    assert caught.value.reason == "BRIDGE_NOT_OURS"
    await driver.remove(full())
    assert await ip("-d", "addr", "show", "gugus0") == before


async def test_an_uplink_is_taken_exchanged_and_released(tmp_path: Path) -> None:
    driver = BridgeDriver(tmp_path)
    for name in ("up0", "up1"):
        await ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    with pytest.raises(GugusError) as caught:
        await driver.ensure(spec(uplink="up9"))
    assert caught.value.reason == "UPLINK_MISSING"
    assert (await driver.ensure(spec(uplink="up0"))).ready
    assert "master gugus0" in await ip("link", "show", "up0")
    assert (await driver.ensure(spec(uplink="up1"))).ready
    assert "master gugus0" not in await ip("link", "show", "up0")
    assert list((await driver.status(spec(uplink="up1"))).ports) == []
    await driver.remove(spec(uplink="up1"))
    assert "gugus" not in await ip("link", "show", "up1")
    await ip("addr", "add", "10.5.0.1/24", "dev", "up0")
    with pytest.raises(GugusError) as caught:
        await driver.ensure(spec(uplink="up0"))
    assert caught.value.reason == "UPLINK_HAS_ADDRESSES"


async def test_calls_at_the_same_time_and_ipv6(tmp_path: Path) -> None:
    driver = BridgeDriver(tmp_path)
    six = spec(address="fd00:20::1/64", nat=True)
    made = await asyncio.gather(*(driver.ensure(six) for _ in range(4)))
    assert all(network.ready for network in made)
    await driver.remove(six)
