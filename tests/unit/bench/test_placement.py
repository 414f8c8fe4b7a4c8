"""The placement benchmark's own parts: Ganeti's text and metric, the gaps, and that a section prints what it promises."""

import json
import subprocess
import sys
from dataclasses import replace
from shutil import which

import pytest

from bench.placement import ganeti, packing, scale
from bench.placement.cases import skewed, small
from planner.balance import plan_balance
from planner.placement import plan_placement
from planner.plans import Cluster
from planner.settings import Balance, Policy, Settings

TINY = Cluster(skewed(4, 20, 1).nodes, skewed(4, 20, 1).guests)


def test_cases_are_the_same_for_a_seed() -> None:
    assert skewed(5, 30, 2) == skewed(5, 30, 2)
    assert small(3, Settings(), 1.2) == small(3, Settings(), 1.2)
    assert skewed(5, 30, 2) != skewed(5, 30, 3)


def test_the_metric_is_zero_where_all_is_even() -> None:
    guests = [replace(TINY.guests[0], name=f"g{i}", node=node.name) for i, node in enumerate(TINY.nodes)]
    even = replace(TINY, guests=guests)
    assert ganeti.metric(even, {guest.name: guest.node for guest in guests}) == pytest.approx(0.0, abs=1e-12)


def test_our_score_with_ganetis_weights_is_ganetis_metric() -> None:
    weights = ganeti.ganetis_weights(TINY)
    plan = plan_balance(replace(TINY, settings=Settings(balance=Balance(max_moves=3, weights=weights))))
    before = {guest.name: guest.node for guest in TINY.guests}
    assert plan.before.total == pytest.approx(ganeti.metric(TINY, before), rel=1e-5)
    assert plan.after.total == pytest.approx(ganeti.metric(TINY, plan.assignments), rel=1e-5)


@pytest.mark.skipif(which("hbal") is None, reason="needs ganeti-htools")
def test_hbal_reads_our_text_and_agrees_with_our_metric() -> None:
    told = ganeti.hbal(TINY, 60)
    state = {guest.name: guest.node for guest in TINY.guests}
    assert told.whole
    assert told.moves
    assert told.initial == pytest.approx(ganeti.metric(TINY, state), rel=1e-5)
    for guest, target, score in told.moves:
        state[guest] = target
        assert score == pytest.approx(ganeti.metric(TINY, state), rel=1e-5)


def test_gaps_count_what_the_optimum_has_more() -> None:
    clusters = [small(seed, Settings(policy=Policy.PACK), 0.5) for seed in range(2)]
    plans = [plan_placement(cluster) for cluster in clusters]
    ours = [packing.placed(plan) for plan in plans]
    best = [{"best": ours[0], "bound": 0, "proven": True}, {"best": ours[1], "bound": ours[1] * 2, "proven": False}]
    assert packing.gaps("count", plans, best)["mean_gap"] == 0.25
    assert packing.gaps("hosts", plans, [{"best": None, "bound": 0, "proven": True}] * 2)["without_solution"] == 2


def test_a_large_cluster_in_small() -> None:
    told = scale.large(host_count=40, guest_count=200)
    assert told["placed"] == 200
    assert told["unplaced"] == 0
    assert told["recovery"]["hosts_lost"] == 20
    assert told["balance"]["score_after"] <= told["balance"]["score_before"]


def test_what_cannot_be_measured_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ganeti, "which", lambda name: None)
    with pytest.raises(ganeti.NoHbal, match="apt-get install ganeti-htools"):
        ganeti.measure(1)


def test_one_json_object_is_printed() -> None:
    words = [sys.executable, "-m", "bench.placement", "--only", "large", "--hosts", "40", "--guests", "100"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(done.stdout)["large"]["placed"] == 100
