"""What would happen: told from the state, with reasons, and nothing changed."""

import pytest
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.plan_pb2 import AddNodes, EmptyNodes, EvenOut, LoseNodes, MakeGuests, WhatIf, WhatIfRequest

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError
from tests.unit.manager.cluster import Cluster, guest_spec


@pytest.fixture
async def two(cluster: Cluster, gugus: Gugus) -> Cluster:
    """Two nodes; web under HA and db outside of it on n1."""
    for name, ha in (("web", True), ("db", False)):
        spec = guest_spec()
        spec.ha.enabled = ha
        check(await gugus.tasks.wait(await gugus.guests.create(name, spec)))
    await cluster.add_node("n2")
    await cluster.eventually(lambda: "shared" in (cluster.peek(Node, "n2") or Node()).status.facts.pools)
    return cluster


async def ask(gugus: Gugus, cluster: Cluster, request: WhatIfRequest) -> WhatIf:
    """Ask, and see that nothing was changed."""
    before = [(g.meta.name, g.meta.generation, g.status.node) for g in cluster.store.peek_all(Guest)]
    answer = await gugus.plans.what_if(request)
    assert before == [(g.meta.name, g.meta.generation, g.status.node) for g in cluster.store.peek_all(Guest)]
    return answer


def moves(answer: WhatIf) -> list[tuple[str, str, str]]:
    return [(move.guest, getattr(move, "from"), move.to) for move in answer.moves]


async def test_a_lost_node_s_guests_go_elsewhere_if_they_are_under_ha(two: Cluster, gugus: Gugus) -> None:
    answer = await ask(gugus, two, WhatIfRequest(lose=LoseNodes(nodes=["n1"])))
    assert moves(answer) == [("web", "n1", "n2")]
    assert [(one.guest, "not under HA" in one.reason) for one in answer.left] == [("db", True)]
    assert 12_000 < answer.takes_ms < 15_000
    assert "lease" in answer.takes_why


async def test_with_all_nodes_lost_nobody_has_a_place_and_each_node_says_why(two: Cluster, gugus: Gugus) -> None:
    answer = await ask(gugus, two, WhatIfRequest(lose=LoseNodes(nodes=["n1", "n2"])))
    assert not answer.moves
    assert [one.guest for one in answer.unplaced] == ["web"]
    assert {v.node for v in answer.unplaced[0].verdicts} == {"n1", "n2"}
    assert all(v.refusals for v in answer.unplaced[0].verdicts)


async def test_everything_leaves_a_node_that_is_emptied(two: Cluster, gugus: Gugus) -> None:
    answer = await ask(gugus, two, WhatIfRequest(empty=EmptyNodes(nodes=["n1"])))
    assert sorted(moves(answer)) == [("db", "n1", "n2"), ("web", "n1", "n2")]
    assert answer.takes_ms


async def test_guests_that_fit_and_those_that_do_not(two: Cluster, gugus: Gugus) -> None:
    answer = await ask(gugus, two, WhatIfRequest(make=MakeGuests(spec=guest_spec(), count=3)))
    assert [move.guest for move in answer.moves] == ["new-1", "new-2", "new-3"]
    big = guest_spec()
    big.memory_bytes = 1 << 44
    answer = await ask(gugus, two, WhatIfRequest(make=MakeGuests(spec=big)))
    assert [one.guest for one in answer.unplaced] == ["new-1"]
    assert any("memory-size" in refusal for v in answer.unplaced[0].verdicts for refusal in v.refusals)


async def test_a_new_node_takes_guests_over(two: Cluster, gugus: Gugus) -> None:
    answer = await ask(gugus, two, WhatIfRequest(add=AddNodes(like="n2", count=2)))
    assert {move.to for move in answer.moves} <= {"n2", "new-1", "new-2"}
    assert answer.score_after <= answer.score_before


async def test_balance_never_makes_it_worse(two: Cluster, gugus: Gugus) -> None:
    answer = await ask(gugus, two, WhatIfRequest(even=EvenOut(max_moves=1)))
    assert len(answer.moves) <= 1
    assert answer.score_after <= answer.score_before


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (WhatIfRequest(), "question"),
        (WhatIfRequest(lose=LoseNodes()), "nodes"),
        (WhatIfRequest(lose=LoseNodes(nodes=["n9"])), "n9"),
        (WhatIfRequest(add=AddNodes(count=101)), "101"),
        (WhatIfRequest(make=MakeGuests(count=1001)), "1001"),
        (WhatIfRequest(even=EvenOut(max_moves=1001)), "1001"),
    ],
)
async def test_nonsense_is_refused(gugus: Gugus, request_: WhatIfRequest, says: str) -> None:
    with pytest.raises(GugusError, match=says):
        await gugus.plans.what_if(request_)
