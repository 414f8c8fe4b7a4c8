"""Golden cases of fencing: one node's story and the manager's decision at each moment, as YAML that reads aloud."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from gugus.cluster.v1.node_pb2 import NODE_STATE_JOINING, NODE_STATE_ONLINE, NodeState

from common.leases import LeaseTimes
from manager.ha.node_machine import Beat, NodeView, Off, decide

CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "node_fencing.yaml").read_text())


def ns(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def state(name: str) -> NodeState.ValueType:
    return NodeState.Value(f"NODE_STATE_{name}")


def beat(told: list[Any] | None) -> Beat | None:
    return None if told is None else Beat(ns(told[0]), told[1], told[2], tuple(told[3:]))


def node(told: dict[str, Any]) -> NodeView:
    boot, lapse = told["stored"]
    return NodeView(
        name="n1",
        state=state(told["state"]),
        boot_id=boot,
        lapse_number=lapse,
        takeover_ns=ns(told.get("takeover", 0)),
        answered_ns=ns(told["answered"]) if "answered" in told else None,
        off_seen_ns=ns(told["off_seen"]) if "off_seen" in told else None,
        beat=beat(told.get("beat")),
        off=off(told.get("read_off")),
        under_fire=told.get("under_fire", False),
    )


def off(told: list[Any] | None) -> Off | None:
    return None if told is None else Off(told[1], told[2], ns(told[0]), "the power is off: read back from a")


def news(view: NodeView, moment: dict[str, Any]) -> NodeView:
    """Return the node with what a moment brings."""
    if "beat" in moment:
        view = replace(view, beat=beat(moment["beat"]))
    if "read_off" in moment:
        view = replace(view, off=off(moment["read_off"]))
    view = replace(view, under_fire=moment.get("under_fire", view.under_fire))
    return replace(view, fire=moment.get("fire", ""), asked=moment.get("asked", ""))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case(case: dict[str, Any]) -> None:
    view = node(case["node"])
    for moment in case["then"]:
        view = news(view, moment)
        decision = decide(view, ns(moment["at"]), LeaseTimes())
        assert (decision is not None) == ("becomes" in moment), f"at {moment['at']}: {decision}"
        if decision is None:
            continue
        assert decision.state == state(moment["becomes"]), moment
        assert moment.get("says", "") in decision.reason
        assert decision.raise_epoch == (moment.get("epoch") == "raised")
        away = decision.state not in (NODE_STATE_JOINING, NODE_STATE_ONLINE)
        view = replace(
            view,
            state=decision.state,
            boot_id=decision.boot_id,
            lapse_number=decision.lapse_number,
            off_seen_ns=(view.off_seen_ns if view.off_seen_ns is not None else ns(moment["at"])) if away else None,
        )
