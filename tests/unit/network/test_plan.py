"""Applying a plan reaches what is wanted, the plan after it is empty, and what is not ours is never touched."""

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.network import plan as steps
from agent.network.plan import Link, Observed, guest_ports, plan, plan_removal
from agent.network.spec import Desired, DhcpServer
from common.errors import GugusError

ADDRESSES = ["10.20.0.1/24", "10.21.0.1/16", "192.168.7.1/24"]
MARKS = ["", "gugus:lan", "gugus-uplink:lan", "gugus:other", "the operator's"]


def apply(seen: Observed, actions: Sequence[steps.Action]) -> Observed:
    """The kernel, as far as these steps go."""
    for action in actions:
        links = dict(seen.links)
        match action:
            case steps.CreateBridge(bridge, mark):
                assert bridge not in links
                links[bridge] = Link(bridge, "bridge", mark, forward_delay=1500)
            case steps.ConfigureBridge(bridge, mtu):
                links[bridge] = replace(links[bridge], mtu=mtu, up=True, stp=False, forward_delay=0)
            case steps.AddAddress(bridge, address):
                links[bridge] = replace(links[bridge], addresses=links[bridge].addresses | {address})
            case steps.DropAddress(bridge, address):
                links[bridge] = replace(links[bridge], addresses=links[bridge].addresses - {address})
            case steps.TakeUplink(uplink, bridge, mark, mtu):
                link = links[uplink]
                links[uplink] = replace(link, alias=mark, master=bridge, up=True, mtu=max(link.mtu, mtu))
            case steps.ReleaseUplink(uplink):
                links[uplink] = replace(links[uplink], alias="", master="")
            case steps.DeleteBridge(bridge):
                del links[bridge]
                links = {name: replace(x, master="") if x.master == bridge else x for name, x in links.items()}
            case steps.EnableForwarding(_):
                seen = replace(seen, forwarding=True)
            case steps.LoadNat() | steps.DropNat():
                seen = replace(seen, nat=True if isinstance(action, steps.LoadNat) else None)
            case steps.StartDhcp() | steps.StopDhcp():
                seen = replace(seen, dhcp=True if isinstance(action, steps.StartDhcp) else None)
        seen = replace(seen, links=links)
    return seen


@st.composite
def wants(draw: st.DrawFn) -> Desired:
    address = draw(st.sampled_from([None, *map(IPv4Interface, ADDRESSES)]))
    dhcp = DhcpServer(IPv4Address("10.20.0.10"), IPv4Address("10.20.0.20")) if address and draw(st.booleans()) else None
    return Desired(
        name="lan",
        bridge=draw(st.sampled_from(["br0", "br1"])),
        uplink=draw(st.sampled_from(["", "eth0", "eth1"])),
        address=address,
        nat=bool(address) and draw(st.booleans()),
        dhcp=dhcp,
        mtu=draw(st.sampled_from([1400, 1500, 9000])),
    )


def links_named(name: str, kind: str, masters: list[str]) -> st.SearchStrategy[Link]:
    return st.builds(
        Link,
        name=st.just(name),
        kind=st.just(kind),
        alias=st.sampled_from(MARKS),
        mtu=st.sampled_from([1400, 1500, 9000]),
        up=st.booleans(),
        master=st.sampled_from(masters),
        addresses=st.frozensets(st.sampled_from(ADDRESSES), max_size=2),
        forward_delay=st.sampled_from([0, 1500]),
        stp=st.booleans(),
    )


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    candidates = [links_named("br0", "bridge", [""]), links_named("br1", "bridge", [""])]
    bridges = [draw(link) for link in candidates if draw(st.booleans())]
    masters = ["", *(link.name for link in bridges)]
    others = [links_named("eth0", "", masters), links_named("eth1", "", masters), links_named("v0", "veth", masters)]
    rest = [draw(link) for link in others if draw(st.booleans())]
    maybe = st.sampled_from([None, False, True])
    links = {link.name: link for link in [*bridges, *rest]}
    return Observed(links, nat=draw(maybe), dhcp=draw(maybe), forwarding=draw(st.booleans()))


@given(wants(), observations())
def test_a_plan_reaches_what_is_wanted_and_the_next_is_empty(want: Desired, seen: Observed) -> None:
    try:
        first = plan(want, seen)
    except GugusError:
        return
    after = apply(seen, first)
    assert plan(want, after) == []
    bridge = after.links[want.bridge]
    assert (bridge.alias, bridge.mtu, bridge.up, bridge.stp, bridge.forward_delay) == (
        want.mark,
        want.mtu,
        True,
        False,
        0,
    )
    assert bridge.addresses == ({str(want.address)} if want.address else frozenset())
    assert not want.uplink or after.links[want.uplink].master == want.bridge
    assert (after.nat, after.dhcp) == (want.nat or None, want.dhcp is not None or None)
    assert not want.nat or after.forwarding


@given(wants(), observations(), st.data())
def test_a_plan_cut_short_anywhere_is_completed_by_the_next(want: Desired, seen: Observed, data: st.DataObject) -> None:
    try:
        first = plan(want, seen)
    except GugusError:
        return
    after = apply(seen, first[: data.draw(st.integers(0, len(first)))])
    assert plan(want, apply(after, plan(want, after))) == []


@given(wants(), observations())
def test_what_is_not_ours_is_never_touched(want: Desired, seen: Observed) -> None:
    try:
        after = apply(seen, plan(want, seen))
    except GugusError:
        return
    for name, link in seen.links.items():
        ours = link.alias in (want.mark, want.uplink_mark) or name == want.uplink
        assert ours or after.links[name] == link


@given(wants(), observations())
def test_removal_leaves_nothing_of_ours_and_takes_nothing_else(want: Desired, seen: Observed) -> None:
    try:
        after = apply(seen, plan_removal(want, seen))
    except GugusError:
        assert any(link.master for link in seen.links.values())
        return
    assert plan_removal(want, after) == []
    assert (after.nat, after.dhcp) == (None, None)
    gone = {name for name in seen.links if name not in after.links}
    assert all(seen.links[name].alias == want.mark for name in gone)


def reason(want: Desired, *links: Link) -> str:
    with pytest.raises(GugusError) as caught:
        plan(want, Observed({link.name: link for link in links}))
    return caught.value.reason


def test_a_foreign_bridge_of_the_name_is_refused() -> None:
    want = Desired("lan", "br0")
    assert reason(want, Link("br0", "bridge")) == "BRIDGE_NOT_OURS"
    assert reason(want, Link("br0", "bridge", "gugus:other")) == "BRIDGE_NOT_OURS"
    assert reason(want, Link("br0", "", want.mark)) == "BRIDGE_NOT_OURS"


def test_an_unfit_uplink_is_refused() -> None:
    want = Desired("lan", "br0", uplink="eth0")
    assert reason(want) == "UPLINK_MISSING"
    assert reason(want, Link("eth0", master="bond0")) == "UPLINK_IN_USE"
    assert reason(want, Link("eth0", addresses=frozenset({"10.0.0.5/24"}))) == "UPLINK_HAS_ADDRESSES"


def test_removal_with_guests_is_refused_and_names_them() -> None:
    want = Desired("lan", "br0", uplink="eth0")
    bridge = Link("br0", "bridge", want.mark)
    seen = Observed({x.name: x for x in (bridge, Link("eth0", master="br0"), Link("v1", "veth", master="br0"))})
    assert guest_ports(want, seen) == ["v1"]
    with pytest.raises(GugusError, match="v1") as caught:
        plan_removal(want, seen)
    assert caught.value.reason == "NETWORK_IN_USE"
