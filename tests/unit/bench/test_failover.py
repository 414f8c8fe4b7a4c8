"""The failover benchmark's own parts: what it counts, whose turn it is, and what it reads of the other side."""

import sys

import pytest

from bench.failover.__main__ import arguments
from bench.failover.drain import Drain
from bench.failover.drain import summary as drained
from bench.failover.figures import Limits, Round, Turns, summary
from bench.failover.pacemaker import GUEST, State, corosync_conf, read_state

LIMITS = Limits(14.0, 18.0)


def round_of(seconds: float, copies: int = 1) -> Round:
    return Round("n1", 3.0, 12.5, seconds, copies, "read back from switch")


def test_figures_are_of_all_rounds_that_came_to_an_end() -> None:
    told = summary([round_of(13.0), round_of(12.0), round_of(17.0)], [], LIMITS)
    assert (told["p50_s"], told["max_s"], told["by_device"], told["kept"]) == (13.0, 17.0, 3, True)
    assert not summary([round_of(13.0), round_of(18.5)], [], LIMITS)["kept"]
    assert not summary([round_of(14.5)], [], LIMITS)["kept"]
    assert summary([round_of(13.0), round_of(13.0, copies=2)], [], LIMITS)["max_copies"] == 2


def test_a_round_that_came_to_no_end_keeps_no_limit_and_costs_no_figure() -> None:
    told = summary([round_of(13.0)], ["round 2: waited 90 s in vain"], LIMITS)
    assert (told["rounds"], told["p50_s"], told["failed"]) == (1, 13.0, ["round 2: waited 90 s in vain"])
    assert not told["kept"]
    assert not summary([], ["round 1: no"], Limits())["kept"]


def test_turns_go_round() -> None:
    turns = Turns()
    assert [turns.next(["n2", "n3"]) for _ in range(3)] == ["n2", "n3", "n2"]
    assert turns.next(["n1", "n2", "n3"]) == "n1"
    assert turns.next(["n1", "n2"]) == "n2"


def test_a_drain_that_loses_a_guest_is_no_drain() -> None:
    fine = Drain("n1", 9.0, {"vm1": 0.4}, 1, [])
    assert drained([fine], [])["kept"]
    assert not drained([fine, Drain("n2", 9.0, {}, 1, ["vm1 was started anew"])], [])["kept"]
    assert not drained([], [])["kept"]


def test_usual_run_has_the_other_side_and_a_part_of_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*words: str) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["bench.failover", *words])
        options = arguments()
        return options.only, options.beside

    assert told() == (["lease", "device", "drain"], ["pacemaker"])
    assert told("--beside") == (["lease", "device", "drain"], [])
    assert told("--only", "drain", "lease") == (["lease", "drain"], [])
    assert told("--acting", "--beside", "pacemaker")[0] == ["lease", "device", "acting-lease", "acting-device", "drain"]


def test_what_the_other_cluster_says_is_read() -> None:
    text = f"""<pacemaker-result><summary><current_dc present="true" name="n1"/></summary>
    <nodes><node name="n1" online="true" unclean="false" pending="false"/>
      <node name="n2" online="true" unclean="true" pending="false"/>
      <node name="n3" online="false" unclean="false" pending="false"/></nodes>
    <resources><resource id="{GUEST}" role="Started"><node name="n1" id="1"/></resource></resources></pacemaker-result>"""
    assert read_state(text) == State("n1", frozenset({"n1"}), "n1")
    assert read_state("") == State("", frozenset(), "")


def test_every_node_of_the_other_cluster_has_a_number() -> None:
    text = corosync_conf({"n1": "10.77.1.11", "n2": "10.77.1.12"})
    assert text.count("ring0_addr") == 2
    assert "nodeid: 2\n        ring0_addr: 10.77.1.12" in text
    assert text.count("{") == text.count("}")
