from gugus.cluster.v1.node_pb2 import NodeState
from hypothesis import given
from hypothesis import strategies as st

from manager.ha.fence_plan import (
    MOST_PAUSE_NS,
    PAUSE_NS,
    Action,
    Answer,
    FenceView,
    Limits,
    Outcome,
    Round,
    S,
    Shot,
    cap,
    opinion_due,
    succeeded,
)

LEVELS = (("ipmi",), ("pdu-a", "pdu-b"))


def begun() -> Round:
    return Round("n1", "boot-1", 4, LEVELS)


def answered(round_: Round, *outcomes: Outcome, at_ns: int = 0) -> Round:
    answers = [Answer(shot, outcome, "no route") for shot, outcome in zip(round_.shots(), outcomes, strict=True)]
    return round_.fired().took(answers, at_ns, at_ns + S)


def test_power_is_off_only_when_it_was_read_back() -> None:
    told = answered(begun(), Outcome.DONE)
    assert told.off is None
    assert told.shots() == (Shot("ipmi", Action.STATUS),)
    proven = answered(told, Outcome.IS_OFF, at_ns=7 * S)
    assert proven.off is not None
    assert (proven.off.boot_id, proven.off.lapse_number, proven.off.seen_ns) == ("boot-1", 4, 7 * S)
    assert "ipmi" in proven.off.reason
    assert proven.shots() == ()


def test_the_next_level_is_tried_when_one_fails_and_all_of_its_devices_count() -> None:
    second = answered(begun(), Outcome.FAILED)
    assert {shot.device for shot in second.shots()} == {"pdu-a", "pdu-b"}
    assert "ipmi: off failed: no route" in second.failures
    half = answered(answered(second, Outcome.DONE, Outcome.DONE), Outcome.IS_OFF, Outcome.IS_ON)
    assert half.off is None
    assert "pdu-b: status says that the power is on" in half.failures
    whole = answered(answered(second, Outcome.DONE, Outcome.DONE), Outcome.IS_OFF, Outcome.IS_OFF)
    assert whole.off is not None


def test_passes_are_repeated_after_pauses_that_grow() -> None:
    round_, pauses = begun(), []
    for _ in range(8):
        round_ = answered(answered(round_, Outcome.FAILED), Outcome.DONE, Outcome.FAILED)
        pauses.append(round_.not_before_ns - S)
        assert round_.shots() == (Shot("ipmi", Action.OFF),)
    assert pauses[:3] == [PAUSE_NS, 2 * PAUSE_NS, 4 * PAUSE_NS]
    assert max(pauses) == MOST_PAUSE_NS
    assert round_.used == ("ipmi", "pdu-a", "pdu-b"), "whatever was told to cut the power must give it back"


def test_a_device_that_does_not_answer_is_no_success() -> None:
    second = answered(begun(), Outcome.FAILED)
    one_of_two = second.took([Answer(second.shots()[0], Outcome.DONE)], 0, 0)
    assert one_of_two.level == 0
    assert one_of_two.passes == 1


@given(st.lists(st.sampled_from(Outcome), min_size=1, max_size=40))
def test_no_row_of_answers_proves_anything_but_off_of_a_whole_level(outcomes: list[Outcome]) -> None:
    round_ = begun()
    for number, outcome in enumerate(outcomes):
        shots = round_.shots()
        if not shots:
            break
        before = round_
        answers = [Answer(shot, outcome) for shot in shots]
        round_ = round_.fired().took(answers, number, number)
        if round_.off is not None:
            assert before.action is Action.STATUS
            assert outcome is Outcome.IS_OFF
            assert all(succeeded(answer) for answer in answers)


def test_the_cap_is_a_quarter_and_at_least_one() -> None:
    assert [cap(nodes, Limits()) for nodes in (1, 3, 4, 8, 100)] == [1, 1, 1, 2, 25]
    assert cap(100, Limits(cap_percent=10)) == 10


def test_others_are_asked_before_a_host_is_suspected_so_that_no_time_is_lost() -> None:
    quiet = FenceView("n1", NodeState.NODE_STATE_ONLINE, 1_500_000_000, levels=LEVELS)
    assert opinion_due(quiet, 0)
    assert not opinion_due(FenceView("n1", NodeState.NODE_STATE_ONLINE, 1_400_000_000, levels=LEVELS), 0)
    assert not opinion_due(FenceView("n1", NodeState.NODE_STATE_ONLINE, 1_500_000_000), 0), "it has no devices"
