"""The DHCP server's settings and its lease file."""

from pathlib import Path

from gugus.agent.v1 import network_pb2

from agent.network.dhcp import DhcpServers, parse_leases, settings
from agent.network.network import create_all, driver_of
from agent.network.spec import Desired, desired
from common.config import AgentConfig


def want(*, nat: bool) -> Desired:
    dhcp = network_pb2.DhcpRange(first="10.20.0.10", last="10.20.0.99")
    bridge = network_pb2.BridgeNetwork(bridge="gugus0", address="10.20.0.1/24", nat=nat, dhcp=dhcp)
    return desired(network_pb2.NetworkSpec(name="lan", bridge=bridge))


def test_the_server_serves_its_bridge_only() -> None:
    lines = settings(want(nat=True), Path("/state")).splitlines()
    assert "interface=gugus0" in lines
    assert "bind-dynamic" in lines
    assert "dhcp-range=10.20.0.10,10.20.0.99,255.255.255.0,12h" in lines


def test_a_network_without_nat_offers_no_gateway_and_no_names() -> None:
    lines = settings(want(nat=False), Path("/state")).splitlines()
    assert "dhcp-option=option:router" in lines
    assert "port=0" in lines


def test_leases_that_have_run_out_are_left_out(tmp_path: Path) -> None:
    text = "100 02:AA:00:00:00:01 10.20.0.10 web *\n0 02:aa:00:00:00:02 10.20.0.11 * *\nduid 00:01\n\nbroken\n"
    assert parse_leases(text, 99) == [("02:aa:00:00:00:01", "10.20.0.10"), ("02:aa:00:00:00:02", "10.20.0.11")]
    assert parse_leases(text, 100) == [("02:aa:00:00:00:02", "10.20.0.11")]
    (tmp_path / "lan").mkdir()
    (tmp_path / "lan/leases").write_text(text)
    assert DhcpServers(tmp_path).leases() == {"02:aa:00:00:00:02": ("10.20.0.11",)}


async def test_the_simulated_driver_records_and_forgets(tmp_path: Path) -> None:
    config = AgentConfig(name="n1", cluster_id="0123456789abcdef", address="127.0.0.2", state_dir=tmp_path)
    spec = network_pb2.NetworkSpec(name="lan", bridge=network_pb2.BridgeNetwork(bridge="gugus0"))
    driver = driver_of(create_all(config, simulated=True), spec)
    assert not (await driver.status(spec)).ready
    assert (await driver.ensure(spec)).ready
    await driver.remove(spec)
    await driver.remove(spec)
    assert not (await driver.status(spec)).ready
