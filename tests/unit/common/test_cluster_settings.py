"""The cluster's settings, one by one: the table is the message's, and tells a tired operator everything at once."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from gugus.cluster.v1.cluster_pb2 import BALANCE_MODE_AUTOMATIC, ClusterSettings
from hypothesis import given
from hypothesis import strategies as st

from common.cluster_settings import WEIGHTS, Table, told, value_of
from common.errors import GugusError
from planner.scores import SCORES
from planner.settings import Policy
from planner.weights import NAMES, defaults_of

TABLE = Table(defaults_of(Policy.SPREAD))


def leaves(descriptor: Any, prefix: str = "") -> Iterator[str]:
    for field in descriptor.fields:
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            yield prefix + field.name
        else:
            yield from leaves(field.message_type, f"{prefix}{field.name}.")


def faults_of(texts: list[str]) -> dict[str, str]:
    with pytest.raises(GugusError) as raised:
        TABLE.read(texts)
    return {one.field: one.message for one in raised.value.violations}


def test_every_field_of_the_message_is_a_setting() -> None:
    assert {one.name for one in TABLE.settings if not one.is_weight} == set(leaves(ClusterSettings.DESCRIPTOR)) - {
        WEIGHTS
    }
    assert [one.name for one in TABLE.settings if one.is_weight] == [f"{WEIGHTS}.{name}" for name, _ in SCORES]
    assert tuple(name for name, _ in SCORES) == NAMES


def test_defaults_are_what_they_accept() -> None:
    for one in TABLE.settings:
        assert one.fault(one.default) == "", one.name
        assert one.accepted


@pytest.mark.parametrize("one", [one for one in TABLE.settings if not one.fixed], ids=lambda one: one.name)
def test_what_is_shown_is_read_back(one: Any) -> None:
    values: list[Any] = [one.default, one.least, one.most]
    if one.field.enum_type is not None:
        values = [value.number for value in one.field.enum_type.values if value.number]
    elif one.field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        values = ["rack"]
    for value in values:
        assert one.read(one.shown(value).replace(",", "")) == value


def test_names_are_found_without_their_units_and_a_value_is_taken_back() -> None:
    wished, names = TABLE.read(["balance.hold=5m", "cpu_overcommit=200%", "balance.mode=Automatic", "spare.nodes="])
    assert names == ["balance.hold_ms", "cpu_overcommit_percent", "balance.mode", "spare.nodes"]
    assert wished.balance.hold_ms == 300_000
    assert wished.balance.mode == BALANCE_MODE_AUTOMATIC
    before = ClusterSettings(cpu_overcommit_percent=300)
    before.spare.nodes = 2
    before.spare.domain = "rack"
    after = TABLE.changed(before, wished, names)
    assert (after.spare.nodes, after.spare.domain, after.cpu_overcommit_percent) == (0, "rack", 200)
    assert TABLE.differences(before, after) == [
        "cpu_overcommit_percent: 300% -> 200%",
        "spare.nodes: 2 -> 0 (default)",
        "balance.mode: off (default) -> automatic",
        "balance.hold_ms: 5m (default) -> 5m",
    ]


def test_a_weight_of_0_is_a_weight_and_default_takes_it_away() -> None:
    wished, names = TABLE.read(["placement_weights.spread=0", "placement_weights.calm=2.5"])
    after = TABLE.changed(ClusterSettings(), wished, names)
    assert dict(after.placement_weights) == {"spread": 0.0, "calm": 2.5}
    assert [told(after, TABLE.find(name)) for name in names] == ["0", "2.5"]
    wished, names = TABLE.read(["placement_weights.spread=default"])
    assert dict(TABLE.changed(after, wished, names).placement_weights) == {"calm": 2.5}


def test_all_faults_are_told_at_once_with_what_would_be_right() -> None:
    found = faults_of(
        [
            "spare.nodes=3", "balanc.mod=off", "balance.mode=auto", "node_lease_ms=30s", "balance.max_moves=0",
            "placement_weights.room=2", "placement_weights.calm=nan", "spare.domain=a b", "shutdown", "fencing.cap_percent=-1",
            "preemption=lower", "balance.hold=soon", "fencing.max_cuts=5.5",
        ]
    )  # fmt: skip
    assert len(found) == 13
    assert found["spare.nodes"] == "3 is out of range: 0 to 2."
    assert "balance.mode" in found["balanc.mod"]
    assert found["balance.mode"] == '"auto" is none of its words: off, advise or automatic.'
    assert "leases" in found["node_lease_ms"]
    assert "1 to 100" in found["balance.max_moves"]
    assert "placement_weights.rules" in found["placement_weights.room"]
    assert "0 to 100" in found["placement_weights.calm"]
    assert "rack" in found["spare.domain"]
    assert "NAME=VALUE" in found["shutdown"]
    assert "10s to 1d" in found["balance.hold_ms"]
    assert "whole number" in found["fencing.max_cuts"]


def test_one_setting_twice_is_a_slip() -> None:
    assert "given twice" in faults_of(["balance.hold=1m", "balance.hold_ms=2m"])["balance.hold_ms"]


def test_the_managers_refuse_by_the_same_table() -> None:
    wished = ClusterSettings(node_lease_ms=5_000, cpu_overcommit_percent=50, placement_weights={"calm": 101.0})
    wished.balance.mode = 77  # type: ignore[assignment]
    paths = [
        "node_lease_ms",
        "cpu_overcommit_percent",
        "placement_weights.calm",
        "balance.mode",
        "spare",
        "spare.node",
        "",
    ]
    with pytest.raises(GugusError) as raised:
        TABLE.changed(ClusterSettings(), wished, paths)
    assert len(raised.value.violations) == len(paths)
    with pytest.raises(GugusError) as raised:
        TABLE.changed(ClusterSettings(), wished, ["node_lease_ms"])
    assert raised.value.reason == "SETTING_FIXED"


@given(
    st.lists(
        st.text(max_size=40)
        | st.builds(lambda one, text: f"{one.name}={text}", st.sampled_from(TABLE.settings), st.text(max_size=20)),
        max_size=4,
    )
)
def test_no_words_do_harm(texts: list[str]) -> None:
    try:
        wished, names = TABLE.read(texts)
    except GugusError:
        return
    after = TABLE.changed(ClusterSettings(), wished, names)
    for one in TABLE.settings:
        assert (value := value_of(after, one)) is None or not one.fault(value)
