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
