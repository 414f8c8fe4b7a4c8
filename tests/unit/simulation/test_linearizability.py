"""The checker itself: it agrees with brute force on small histories, and answers long ones in bounded time."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.consensus.linearizability import NEVER, Operation, Undecided, Verdict, check, parts

Given = tuple[str, int]
"""("put", value), or ("get", 0)."""
Op = Operation[Given, int]


class Register:
    """One number. A put answers with what was there before."""

    def initial(self) -> int:
        return 0

    def step(self, state: int, given: Given, output: int | None) -> int | None:
        kind, value = given
        if output is not None and output != state:
            return None
        return value if kind == "put" else state


def verdict(history: list[Op]) -> Verdict[Given, int]:
    return check(history, Register())


def by_brute_force(history: list[Op]) -> bool:
    """Try every order of every choice of the unknown operations."""
    completed = [op for op in history if op.output is not None]
    unknown = [op for op in history if op.output is None]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            if any(explains(order) for order in itertools.permutations(completed + list(chosen))):
                return True
    return False


def explains(order: tuple[Op, ...]) -> bool:
    state = 0
    for position, op in enumerate(order):
        if any(later.returned < op.invoked for later in order[position:]):
            return False
        following = Register().step(state, op.input, op.output)
        if following is None:
            return False
        state = following
    return True


moments = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted)
givens = st.one_of(st.tuples(st.just("put"), st.integers(0, 2)), st.just(("get", 0)))
any_op = st.builds(
    lambda when, what, answer: Op("c", when[0], NEVER if answer is None else when[1], what, answer),
    moments,
    givens,
    st.one_of(st.none(), st.integers(0, 2)),
)


@given(st.lists(any_op, max_size=5))
@settings(max_examples=400, deadline=None)
def test_it_agrees_with_brute_force(history: list[Op]) -> None:
    assert verdict(history).linearizable == by_brute_force(history)


@st.composite
def real_runs(draw: st.DrawFn) -> list[Op]:
    """Draw what clients see of a register that works: each operation has its effect at one moment of its interval."""
    state, history = 0, list[Op]()
    for moment in range(draw(st.integers(1, 40))):
        what = ("put", moment + 1) if draw(st.booleans()) else ("get", 0)
        lost, without_effect = draw(st.integers(0, 9)) == 0, draw(st.booleans())
        before, after = draw(st.integers(0, 6)), draw(st.integers(0, 6))
        answer = None if lost else state
        if what[0] == "put" and not (lost and without_effect):
            state = what[1]
        history.append(Op("c", moment - before, NEVER if lost else moment + after, what, answer))
    return history


@given(real_runs(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_it_accepts_what_a_real_register_did_in_whatever_order_it_is_told(
    history: list[Op], rng: random.Random
) -> None:
    rng.shuffle(history)
    assert verdict(history).linearizable


@given(real_runs())
@settings(max_examples=200, deadline=None)
def test_it_rejects_an_answer_that_was_never_there(history: list[Op]) -> None:
    known = [op for op in history if op.output is not None]
    if known:
        wrong = replace(known[-1], output=1_000)
        assert not verdict([wrong if op is known[-1] else op for op in history]).linearizable


def put(invoked: float, returned: float, value: int, before: int | None) -> Op:
    return Op("c", invoked, returned, ("put", value), before)


def get(invoked: float, returned: float, value: int | None) -> Op:
    return Op("c", invoked, returned, ("get", 0), value)


def test_an_empty_history_is_linearizable() -> None:
    assert verdict([]).linearizable


def test_overlapping_operations_may_stand_in_either_order() -> None:
    assert verdict([put(0, 10, 1, 0), get(1, 2, 0), get(3, 4, 1)]).linearizable
    assert not verdict([put(0, 10, 1, 0), get(1, 2, 1), get(3, 4, 0)]).linearizable


def test_an_unknown_write_may_happen_late_or_never_but_only_once() -> None:
    lost = put(0, NEVER, 1, None)
    assert verdict([lost, get(1, 2, 0)]).linearizable
    assert verdict([lost, get(1, 2, 0), get(50, 60, 1)]).linearizable
    assert verdict([lost, put(1, 2, 2, 0), get(3, 4, 2), get(5, 6, 1)]).linearizable
    assert not verdict([lost, put(1, 2, 2, 0), get(3, 4, 1), get(5, 6, 2)]).linearizable
    assert not verdict([lost, get(1, 2, 1), put(3, 4, 2, 1), get(5, 6, 2), get(7, 8, 1)]).linearizable


def test_an_unknown_write_has_no_effect_before_its_call() -> None:
    assert not verdict([get(0, 1, 1), put(2, NEVER, 1, None)]).linearizable


def test_what_touches_at_one_instant_counts_as_overlapping() -> None:
    assert verdict([put(0, 1, 1, 0), get(1, 2, 0)]).linearizable


def test_a_wrong_history_is_explained_by_what_did_not_fit() -> None:
    stale = get(4, 5, 0)
    found = verdict([put(0, 1, 1, 0), get(2, 3, 1), stale])
    assert (found.linearizable, found.placed, found.stuck) == (False, 2, (stale,))


def test_an_operation_without_output_cannot_have_returned() -> None:
    with pytest.raises(ValueError, match="never returned"):
        get(0, 1, None)
    with pytest.raises(ValueError, match="never returned"):
        get(0, NEVER, 1)
    with pytest.raises(ValueError, match="before its call"):
        get(1, 0, 0)


def long_history(rng: random.Random, length: int) -> list[Op]:
    state, history = 0, list[Op]()
    for moment in range(length):
        what = ("put", moment + 1) if rng.random() < 0.5 else ("get", 0)
        history.append(Op("c", moment - rng.uniform(0, 8), moment + rng.uniform(0, 8), what, state))
        state = what[1] or state
    return history


def test_a_long_history_with_much_overlap_takes_few_steps() -> None:
    history = long_history(random.Random(1), 1_000)
    assert check(history, Register(), max_steps=60_000).linearizable


def test_a_long_wrong_history_is_rejected_in_few_steps() -> None:
    history = long_history(random.Random(2), 1_000)
    wrong = [op if i != 500 else replace(op, output=(op.output or 0) + 10_000) for i, op in enumerate(history)]
    assert not check(wrong, Register(), max_steps=60_000).linearizable


def test_what_takes_too_long_is_given_up() -> None:
    """Twenty writes at once of which a read saw none: every subset is another way to be wrong."""
    writes = [Op("c", 0, 10, ("put", value), None if value == -1 else 0) for value in range(1, 21)]
    unknown = [replace(op, returned=NEVER, output=None) for op in writes]
    with pytest.raises(Undecided):
        check([*unknown, get(11, 12, 99)], Register(), max_steps=10_000)


def test_parts_share_no_key() -> None:
    ops = [Operation("c", i, i, keys, 0) for i, keys in enumerate(["ab", "c", "bd", "e", "ce", "a"])]
    cut = parts(ops, lambda keys: keys)
    assert [[op.input for op in part] for part in cut] == [["ab", "bd", "a"], ["c", "e", "ce"]]
