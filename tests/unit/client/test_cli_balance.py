"""`gugus cluster balance` shows its plan before it runs, and `gugus cluster status` how even the nodes are."""

import json

import pytest
from gugus.cluster.v1.cluster_pb2 import BALANCE_MODE_ADVISE, BALANCE_MODE_OFF
from gugus.cluster.v1.plan_pb2 import PlannedMove, WhatIf

from tests.unit.client.conftest import Gugus
from tests.unit.client.fake import Cluster

MOVE = PlannedMove(guest="web", **{"from": "n1"}, to="n2", wave=1, reason="web moves from n1 to n2.")


@pytest.fixture
def uneven(cluster: Cluster) -> Cluster:
    cluster.state.plan = WhatIf(moves=[MOVE], score_before=0.5, score_after=0.125)
    return cluster


def asked(cluster: Cluster) -> list[str]:
    return [request.DESCRIPTOR.name for request in cluster.state.requests]


def test_the_plan_is_shown_and_then_it_runs(uneven: Cluster, gugus: Gugus) -> None:
    told = gugus("cluster", "balance", "--max-moves", "3", "--no-wait")
    assert told.exit_code == 0, told.output
    assert "web moves from n1 to n2." in told.stdout
    assert "The score falls from 0.5000 to 0.1250; 0 is best." in told.output
    assert asked(uneven) == ["WhatIfRequest", "BalanceRequest"]
    assert [request.max_moves for request in (uneven.state.requests[0].even, uneven.state.requests[1])] == [3, 3]


def test_the_plan_alone(uneven: Cluster, gugus: Gugus) -> None:
    assert "web moves from n1 to n2." in gugus("cluster", "balance", "--plan").stdout
    assert json.loads(gugus("cluster", "balance", "--plan", "-o", "json").stdout)["moves"][0]["to"] == "n2"
    assert set(asked(uneven)) == {"WhatIfRequest"}


def test_nothing_begins_when_nothing_is_worth_it(cluster: Cluster, gugus: Gugus) -> None:
    cluster.state.plan = WhatIf(notes=["2 migrations would win 1.0% of the score, less than the margin of 10.0%."])
    told = gugus("cluster", "balance")
    assert told.exit_code == 0
    assert "less than the margin of 10.0%" in told.output
    assert asked(cluster) == ["WhatIfRequest"]


def test_status_tells_what_is_advised_and_what_came_of_the_last_balance(cluster: Cluster, gugus: Gugus) -> None:
    balance = cluster.state.status.balance
    assert "Balancing" not in gugus("cluster", "status").stdout, "an older manager says nothing of it"
    balance.mode, balance.score, balance.score_after, balance.hold_ms = BALANCE_MODE_ADVISE, 0.5, 0.125, 300_000
    balance.moves.append(MOVE)
    balance.why, balance.last = "a person decides: `gugus cluster balance` does it.", "2 guests moved"
    balance.last_at.FromSeconds(1_700_000_000)
    told = gugus("cluster", "status").stdout
    assert "Balancing is advise: 1 migration would lower the score from 0.5000 to 0.1250; a person decides" in told
    assert "  wave 1: web from n1 to n2\n" in told
    assert "2 guests moved" in told
    del balance.moves[:]
    balance.why = ""
    assert "nothing is worth moving (score 0.5000, 0 is best).\n" in gugus("cluster", "status").stdout
    balance.mode, balance.hold_ms = BALANCE_MODE_OFF, 0
    assert "Balancing is off.\n" in gugus("cluster", "status").stdout
