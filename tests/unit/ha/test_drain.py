"""Which guests of a node move next: never too many at once, none tried in vain, none forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from manager.ha.drain import MAX_TRIES, UNWANTED, Try, plan

FAILED = Try(False, "RPC_UNAVAILABLE", "n2 did not answer")
STUCK = Try(False, "MIGRATION_IMPOSSIBLE", "it has a USB device")
OPEN = Try(True)

TRIES = st.lists(st.sampled_from([FAILED, STUCK]), max_size=MAX_TRIES).flatmap(
    lambda done: st.sampled_from([done, [*done[: MAX_TRIES - 1], OPEN]])
)


def test_so_many_at_a_time_and_those_not_tried_yet_come_first() -> None:
    first = plan(["a", "b", "c"], {"a": [FAILED]}, parallel=2)
    assert first.begin == (("b", 0), ("c", 0))
    then = plan(["a", "b", "c"], {"a": [FAILED], "b": [OPEN]}, parallel=2)
    assert (then.begin, then.under_way) == ((("c", 0),), 1)
    assert plan(["a"], {"a": [FAILED]}, parallel=2).begin == (("a", 1),)


def test_what_cannot_help_is_not_tried_again() -> None:
    told = plan(["a", "b"], {"a": [STUCK], "b": [FAILED] * MAX_TRIES}, parallel=2)
    assert told.over
    assert told.stuck == {"a": STUCK.message, "b": FAILED.message}


def test_on_the_way_back_a_node_that_is_not_ready_yet_is_tried_again() -> None:
    assert plan(["a"], {"a": [STUCK]}, 2, UNWANTED).begin == (("a", 1),)
    assert plan(["a"], {"a": [Try(False, "TASK_CANCELLED", "cancelled")]}, 2, UNWANTED).over


@given(st.dictionaries(st.sampled_from("abcdefgh"), TRIES), st.integers(1, 4))
def test_the_plan_is_sound(tries: dict[str, list[Try]], parallel: int) -> None:
    guests = sorted({*tries, "x"})
    made = plan(guests, tries, parallel)
    assert made == plan(guests[::-1], tries, parallel)
    begun = [guest for guest, _ in made.begin]
    assert len(begun) + made.under_way <= max(parallel, made.under_way)
    assert not set(begun) & set(made.stuck)
    assert all(number == len(tries.get(guest, ())) < MAX_TRIES for guest, number in made.begin)
    waiting = len(guests) - len(begun) - made.under_way - len(made.stuck)
    assert not (made.over and waiting)  # nobody is forgotten
