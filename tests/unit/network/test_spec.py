"""What a network's spec must look like, and what is said when it does not."""

from typing import Any

import pytest
from gugus.agent.v1 import network_pb2

from agent.network.spec import DEFAULT_MTU, desired
from common.errors import GugusError


def spec(name: str = "lan", **bridge: Any) -> network_pb2.NetworkSpec:
    return network_pb2.NetworkSpec(name=name, bridge=network_pb2.BridgeNetwork(**{"bridge": "gugus0", **bridge}))


def dhcp(first: str, last: str) -> network_pb2.DhcpRange:
    return network_pb2.DhcpRange(first=first, last=last)


def test_a_full_spec_is_read() -> None:
    want = desired(spec(address="10.20.0.1/24", nat=True, dhcp=dhcp("10.20.0.10", "10.20.0.99")))
    assert str(want.address) == "10.20.0.1/24"
    assert want.nat
    assert want.dhcp is not None
    assert (str(want.dhcp.first), str(want.dhcp.last)) == ("10.20.0.10", "10.20.0.99")
    assert want.mtu == DEFAULT_MTU


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("name", {"name": "Lan"}),
        ("bridge.bridge", {"bridge": "far-too-long-a-name"}),
        ("bridge.bridge", {"bridge": "../etc"}),
        ("bridge.uplink", {"uplink": "gugus0"}),
        ("bridge.mtu", {"mtu": 100}),
        ("bridge.address", {"address": "10.20.0.1"}),
        ("bridge.address", {"address": "10.20.0.0/24"}),
        ("bridge.address", {"address": "10.20.0.255/24"}),
        ("bridge.address", {"address": "nonsense/24"}),
        ("bridge.nat", {"nat": True}),
        ("bridge.dhcp", {"dhcp": dhcp("10.20.0.10", "10.20.0.20")}),
        ("bridge.dhcp.first", {"address": "10.20.0.1/24", "dhcp": dhcp("10.21.0.10", "10.20.0.20")}),
        ("bridge.dhcp.last", {"address": "10.20.0.1/24", "dhcp": dhcp("10.20.0.10", "x")}),
        ("bridge.dhcp.last", {"address": "10.20.0.1/24", "dhcp": dhcp("10.20.0.20", "10.20.0.10")}),
        ("bridge.dhcp", {"address": "10.20.0.15/24", "dhcp": dhcp("10.20.0.10", "10.20.0.20")}),
        ("bridge.dhcp", {"address": "10.20.0.1/24", "uplink": "eth9", "dhcp": dhcp("10.20.0.10", "10.20.0.20")}),
    ],
)
def test_a_wrong_field_is_named(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(GugusError) as caught:
        desired(spec(**fields))
    assert caught.value.field == field


def test_a_network_of_each_host_alone_has_the_same_mac_address_on_all() -> None:
    """Guests that come while they run know their gateway by it."""
    own = network_pb2.NetworkSpec(name="lan", bridge=network_pb2.BridgeNetwork(bridge="br0", address="10.20.0.1/24"))
    other = network_pb2.NetworkSpec(name="dmz", bridge=network_pb2.BridgeNetwork(bridge="br1", address="10.30.0.1/24"))
    assert desired(own).mac == desired(own).mac != desired(other).mac
    assert int(desired(own).mac[:2], 16) & 0b11 == 0b10, "of local administration, and of one station"


def test_bridges_that_meet_on_a_wire_have_mac_addresses_of_their_own() -> None:
    wire = network_pb2.BridgeNetwork(bridge="br0", uplink="eth1", address="10.20.0.1/24")
    assert desired(network_pb2.NetworkSpec(name="lan", bridge=wire)).mac == ""
    bare = network_pb2.BridgeNetwork(bridge="br0")
    assert desired(network_pb2.NetworkSpec(name="lan", bridge=bare)).mac == ""
