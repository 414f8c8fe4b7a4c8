"""Golden cases of fence devices: when a node's devices are used, and why not, as YAML that reads aloud."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from gugus.cluster.v1.node_pb2 import NodeState

from manager.ha.fence_plan import FenceView, Fire, HoldBack, Limits, Opinion, decide_fire
from tests.simulation.cases.test_cases import ns

CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "fence_devices.yaml").read_text())
NOW_NS = ns(10_000)


OPINIONS = ("reached_by", "missed_by", "seen_writing_by", "seen_still_by")


def node(name: str, told: list[Any], case: dict[str, Any] | None = None) -> FenceView:
    case = case or {}
    opinion = case.get("opinion")
    state = NodeState.Value(f"NODE_STATE_{told[0]}")
    return FenceView(
        node=name,
        state=state,
        quiet_ns=ns(told[1]),
        levels=tuple(tuple(level) for level in case.get("levels", [["ipmi"]])),
        opinion=None
        if opinion is None
        else Opinion(NOW_NS - ns(opinion["asked"]), **{who: tuple(opinion.get(who, ())) for who in OPINIONS}),
        off_seen_ns=NOW_NS - ns(told[1]),
        fired_ns=tuple(NOW_NS - ns(ago) for ago in case.get("fired", ())),
        returned_ns=tuple(NOW_NS - ns(ago) for ago in case.get("returned", ())),
        asked_by=case.get("asked_by", ""),
        guests=case.get("guests", 1),
    )


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case(case: dict[str, Any]) -> None:
    view = node("n1", case["node"], case)
    others = {f"n{number}": ["ONLINE", 0.3] for number in range(2, case.get("nodes", 6) + 1)} | case.get("others", {})
    found = decide_fire(view, [view, *(node(name, told) for name, told in others.items())], NOW_NS, Limits())
    if "fires" in case:
        assert isinstance(found, Fire)
        assert case["fires"] in found.reason
    elif "holds" in case:
        assert isinstance(found, HoldBack)
        assert case["holds"] in found.reason
    else:
        assert found is None
