"""The checker with the model of the store: right histories pass, and each kind of wrong one is rejected."""

import random
from dataclasses import replace

import pytest

from tests.simulation.consensus.linearizability import NEVER
from tests.simulation.consensus.store_model import (
    Answer,
    Given,
    Read,
    Seen,
    StoreOperation,
    Write,
    Written,
    check_store,
    relevant,
)


def op(invoked: float, returned: float, given: Given, output: Answer | None) -> StoreOperation:
    return StoreOperation("c", invoked, returned, given, output)


def put(invoked: float, value: bytes, revision: int, *, expected: int | None = None, key: str = "a") -> StoreOperation:
    wanted = () if expected is None else ((key, expected),)
    return op(invoked, invoked + 1, Write(wanted, ((key, value),)), Written(True, revision))


def lost(invoked: float, value: bytes, *, expected: int | None = None) -> StoreOperation:
    return op(invoked, NEVER, Write(() if expected is None else (("a", expected),), (("a", value),)), None)


def refused(invoked: float, value: bytes, *, expected: int, actual: int, revision: int) -> StoreOperation:
    output = Written(False, revision, (("a", actual),))
    return op(invoked, invoked + 1, Write((("a", expected),), (("a", value),)), output)


def get(invoked: float, value: bytes | None, at: int, revision: int | None = None, key: str = "a") -> StoreOperation:
    entries = () if value is None else ((key, value, at),)
    return op(invoked, invoked + 1, Read((key,)), Seen(entries, at if revision is None else revision))


def delete(invoked: float, revision: int, key: str = "a") -> StoreOperation:
    return op(invoked, invoked + 1, Write(deletes=(key,)), Written(True, revision))


RIGHT = {
    "create, read, change, delete": [
        put(0, b"1", 1, expected=0), get(2, b"1", 1), put(4, b"2", 2, expected=1), get(6, b"2", 2), delete(8, 3), get(10, None, 3),
    ],
    "a delete of nothing changes nothing": [delete(0, 0), put(2, b"1", 1, expected=0)],
    "a compare that fails tells the revision": [put(0, b"1", 1), refused(2, b"2", expected=0, actual=1, revision=1)],
    "an unknown write came late": [put(0, b"1", 1), lost(2, b"2"), get(4, b"1", 1), get(6, b"2", 2)],
    "an unknown write never came": [put(0, b"1", 1), lost(2, b"2"), get(4, b"1", 1), put(6, b"3", 2), get(8, b"3", 2)],
    "an unknown write is learnt by its revision": [
        put(0, b"1", 1), lost(2, b"2"), refused(4, b"3", expected=1, actual=2, revision=2), put(6, b"4", 3, expected=2),
    ],
    "other keys raise the revision": [put(0, b"1", 1), put(2, b"2", 2, key="b"), get(4, b"1", 1, 2)],
}  # fmt: skip

WRONG = {
    "stale read": [put(0, b"1", 1), put(2, b"2", 2), get(4, b"1", 1)],
    "stale read of what was deleted": [put(0, b"1", 1), delete(2, 2), get(4, b"1", 1, 2)],
    "stale revision": [put(0, b"1", 1), put(2, b"2", 2, key="b"), get(4, b"1", 1, 1)],
    "lost update": [put(0, b"1", 1), put(2, b"2", 2, expected=1), put(4, b"3", 3, expected=1)],
    "lost write": [put(0, b"1", 1, expected=0), put(2, b"2", 1, expected=0)],
    "acknowledged and gone": [put(0, b"1", 1), get(2, None, 1)],
    "double apply": [
        op(0, 20, Write((), (("a", b"1"),)), Written(True, 1)),
        get(1, b"1", 1), put(3, b"2", 2), get(5, b"2", 2), get(7, b"1", 3),
    ],
    "double apply after an unknown outcome": [
        lost(0, b"1"), get(1, b"1", 1), put(3, b"2", 2), get(5, b"2", 2), get(7, b"1", 3),
    ],
    "a value never written": [put(0, b"1", 1), get(2, b"x", 1)],
    "a value before it was written": [get(0, b"1", 1), put(2, b"1", 1)],
    "reordering": [put(0, b"1", 2), put(2, b"2", 1)],
    "two reads in the wrong order": [
        op(0, 20, Write((), (("a", b"1"),)), Written(True, 1)), get(2, b"1", 1), get(4, None, 0, 1),
    ],
    "two changes at one revision": [put(0, b"1", 1), put(0, b"2", 1)],
    "a compare failed for no reason": [put(0, b"1", 1), refused(2, b"2", expected=1, actual=1, revision=1)],
    "a compare failed on a revision that never was": [put(0, b"1", 1), refused(2, b"2", expected=7, actual=5, revision=5)],
    "a compare held although it does not": [put(0, b"1", 1, expected=4)],
    "a refused write had an effect": [
        put(0, b"1", 1), refused(2, b"2", expected=0, actual=1, revision=1), get(4, b"2", 2),
    ],
    "half a transaction": [
        op(0, 1, Write((), (("a", b"1"), ("b", b"2"))), Written(True, 1)),
        op(2, 3, Read(("a", "b")), Seen((("a", b"1", 1),), 1)),
    ],
    "a read torn between two transactions": [
        op(0, 1, Write((), (("a", b"1"), ("b", b"2"))), Written(True, 1)),
        op(2, 9, Write((), (("a", b"3"), ("b", b"4"))), Written(True, 2)),
        op(3, 4, Read(("a", "b")), Seen((("a", b"3", 2), ("b", b"2", 1)), 2)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_is_accepted(name: str) -> None:
    assert check_store(RIGHT[name]) == ""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_is_rejected(name: str) -> None:
    assert check_store(WRONG[name]) != ""


class Oracle:
    """A store that works, used one operation at a time."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[bytes, int]] = {}
        self.revision = 0

    def do(self, given: Given) -> Answer:
        if isinstance(given, Read):
            return Seen(tuple((key, *self.held[key]) for key in given.keys if key in self.held), self.revision)
        at = {key: self.held[key][1] if key in self.held else 0 for key in given.keys}
        failed = tuple((key, at[key]) for key, expected in given.expected if at[key] != expected)
        if failed:
            return Written(False, self.revision, failed)
        if given.puts or any(key in self.held for key in given.deletes):
            self.revision += 1
        self.held.update({key: (value, self.revision) for key, value in given.puts})
        for key in given.deletes:
            self.held.pop(key, None)
        return Written(True, self.revision)


def given_at_random(rng: random.Random, known: dict[str, int], number: int) -> Given:
    """Return what a client may ask; it expects what some client was told before, or a little less."""
    pair = rng.choice([("a", "b"), ("c", "d")])
    keys = pair if rng.random() < 0.3 else (rng.choice(pair),)
    if rng.random() < 0.4:
        return Read(keys)
    expected = tuple((key, known[key]) for key in keys if key in known) if rng.random() < 0.6 else ()
    if rng.random() < 0.2:
        return Write(expected, (), keys)
    return Write(expected, tuple((key, b"%d %s" % (number, key.encode())) for key in keys))


def told(operation: StoreOperation) -> dict[str, int]:
    """Return the revisions of keys that an answer tells."""
    given, output = operation.input, operation.output
    if isinstance(given, Read) and isinstance(output, Seen):
        return dict.fromkeys(given.keys, 0) | {key: revision for key, _, revision in output.entries}
    if isinstance(given, Write) and isinstance(output, Written):
        return dict(output.failed) if output.failed else {key: output.revision for key, _ in given.puts}
    return {}


def run_of_a_working_store(rng: random.Random, length: int, lost: float = 0.08) -> list[StoreOperation]:
    oracle, history, heard = Oracle(), list[StoreOperation](), list[StoreOperation]()
    known: dict[str, int] = {}
    for moment in range(length):
        invoked, returned = moment - rng.uniform(0, 4), moment + rng.uniform(0, 4)
        for earlier in [o for o in heard if o.returned < invoked]:
            known.update(told(earlier))
            heard.remove(earlier)
        given = given_at_random(rng, known, moment)
        unknown = rng.random() < lost
        output = None if unknown and rng.random() < 0.5 else oracle.do(given)
        history.append(op(invoked, NEVER if unknown else returned, given, None if unknown else output))
        heard.append(history[-1])
    return history


@pytest.mark.parametrize("seed", range(100))
def test_runs_of_a_working_store_are_accepted(seed: int) -> None:
    assert check_store(run_of_a_working_store(random.Random(seed), 200)) == ""


@pytest.mark.parametrize("seed", range(50))
def test_any_wrong_answer_to_a_read_in_a_long_run_is_rejected(seed: int) -> None:
    rng = random.Random(seed)
    history = run_of_a_working_store(rng, 200, lost=0.02)
    reads = [o for o in history if isinstance(o.output, Seen) and o.output.entries]
    victim = rng.choice(reads)
    assert isinstance(victim.output, Seen)
    key, value, at = victim.output.entries[0]
    for wrong in ((key, value, at + 1), (key, b"never", at), ("z", value, at)):
        torn = replace(victim, output=replace(victim.output, entries=(wrong, *victim.output.entries[1:])))
        assert check_store([torn if o is victim else o for o in history]) != ""


@pytest.mark.parametrize("seed", range(50))
def test_a_read_of_what_was_overwritten_long_ago_is_rejected(seed: int) -> None:
    history = run_of_a_working_store(random.Random(seed), 100, lost=0)
    newest = max(o.output.revision for o in history if o.output is not None) + 20
    history += [put(1_000, b"new", newest), get(1_002, b"new", newest)]
    assert check_store(history) == ""
    assert check_store([*history, get(1_004, None, 0, newest)]) != ""
    assert check_store([*history, get(1_004, b"other", newest - 1, newest)]) != ""


def test_unknown_writes_that_nobody_noticed_are_left_out() -> None:
    history = [put(0, b"1", 1), lost(1, b"2"), lost(1, b"3"), get(5, b"3", 2)]
    assert relevant(history) == [history[0], history[2], history[3]]


def test_unknown_writes_stay_when_a_revision_cannot_be_named_or_they_delete() -> None:
    unnamed = [put(0, b"1", 1), lost(1, b"2"), refused(5, b"3", expected=1, actual=2, revision=2)]
    assert relevant(unnamed) == unnamed
    deleted = [put(0, b"1", 1), op(1, NEVER, Write(deletes=("a",)), None), get(5, None, 0, 2)]
    assert relevant(deleted) == deleted
    assert check_store(deleted) == ""


def test_a_revision_of_a_change_of_nothing_names_no_value() -> None:
    nothing = op(3, 4, Write(deletes=("z",)), Written(True, 2))
    history = [put(0, b"1", 1), lost(1, b"2"), nothing, refused(5, b"3", expected=1, actual=2, revision=2)]
    assert relevant(history) == history
    assert check_store(history) == ""


def test_many_unknown_writes_stay_cheap() -> None:
    history = [put(0, b"0", 1)]
    for number in range(1, 300):
        history += [lost(number * 3, b"lost %d" % number), put(number * 3, b"%d" % number, number + 1)]
    assert check_store([*history, get(2_000, b"299", 300)]) == ""
    assert check_store([*history, get(2_000, b"298", 299)]) != ""
