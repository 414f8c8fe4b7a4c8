"""The judge of the lab's store test finds what is wrong, and accuses nobody who is right."""

import pytest

from tests.lab.history import (
    OFF,
    ON,
    Answer,
    Asked,
    Create,
    Delete,
    Done,
    Get,
    Given,
    Missing,
    Put,
    Seen,
    Sight,
    Stretch,
    Taken,
    Value,
    wrong_history,
    wrong_watch,
)
from tests.simulation.consensus.linearizability import NEVER

A, N = "network/a", "node/g"


def op(invoked: float, returned: float, given: Given, output: Answer) -> Asked:
    return Asked("c", invoked, returned, given, output)


def unknown(invoked: float, given: Given) -> Asked:
    return Asked("c", invoked, NEVER, given, None)


GOOD: tuple[tuple[Asked, ...], ...] = (
    (
        op(1, 2, Create(A, "v"), Done(5)),
        op(3, 4, Create(A, "w"), Taken()),
        op(5, 6, Get(A), Seen("v", False, 5)),
        op(7, 8, Delete(A), Done()),
        op(9, 10, Get(A), Seen("v", True, 7)),
        op(11, 12, Get(A), Missing()),
        op(13, 14, Create(A, "x"), Done(9)),
    ),
    (unknown(1, Create(A, "v")), op(2, 3, Get(A), Missing()), op(4, 5, Get(A), Seen("v", False, 8))),
    (unknown(1, Create(A, "v")), op(2, 3, Create(A, "w"), Done(4))),
    (op(1, 2, Create(A, "v"), Done()), op(3, 4, Delete(A), Done()), op(5, 6, Create(A, "w"), Taken())),
    (
        op(1, 2, Put(N, ON), Done(5)),
        op(1, 2, Put(N, ON), Done(5)),
        unknown(1, Put(N, OFF)),
        op(3, 4, Put(N, ON), Done(9)),
        op(5, 6, Get(N), Seen(ON, False, 9)),
    ),
)

BAD: dict[str, tuple[Asked, ...]] = {
    "an acknowledged write is lost": (op(1, 2, Create(A, "v"), Done(5)), op(3, 4, Get(A), Missing())),
    "a read is stale": (
        op(1, 2, Put(N, ON), Done(5)),
        op(3, 4, Put(N, OFF), Done(6)),
        op(5, 6, Get(N), Seen(ON, False, 5)),
    ),
    "an update came between that nobody asked for": (op(1, 2, Put(N, ON), Done(5)), op(3, 4, Put(N, ON), Done(6))),
    "two created it": (op(1, 2, Create(A, "v"), Done(5)), op(3, 4, Create(A, "w"), Done(6))),
    "what was deleted is as before": (
        op(1, 2, Create(A, "v"), Done(5)),
        op(3, 4, Delete(A), Done()),
        op(5, 6, Get(A), Seen("v", False, 5)),
    ),
    "a read goes back": (
        unknown(1, Create(A, "v")),
        op(2, 3, Get(A), Seen("v", False, 4)),
        op(4, 5, Get(A), Missing()),
    ),
    "revisions of two objects contradict time": (
        op(1, 2, Put(N, ON), Done(9)),
        op(3, 4, Create(A, "v"), Done(8)),
    ),
    "two objects have one revision": (
        op(1, 4, Create(A, "v"), Done(8)),
        op(1, 4, Create("network/b", "w"), Done(8)),
    ),
}


@pytest.mark.parametrize("history", GOOD)
def test_history_that_has_an_order_is_accepted(history: tuple[Asked, ...]) -> None:
    assert wrong_history(history, {N: OFF}) == ""


@pytest.mark.parametrize("what", BAD)
def test_history_that_has_none_is_refused(what: str) -> None:
    assert wrong_history(BAD[what], {N: OFF})


V, GOING, GONE = ("v", False), ("v", True), None
LIFE = (Sight(5, A, V), Sight(7, A, GOING), Sight(8, A, GONE), Sight(9, A, ("w", False)))
TOLD = (op(1, 2, Create(A, "v"), Done(5)), op(8, 9, Get(A), Seen("w", False, 9)))


def seen(*sights: Sight, start: int = 1, listing: dict[str, tuple[int, Value]] | None = None) -> Stretch:
    return Stretch(start, listing or {}, list(sights))


def test_watchers_that_saw_all_are_believed_also_when_one_had_to_begin_anew() -> None:
    anew = [seen(*LIFE[:1]), seen(*LIFE[2:], start=7, listing={A: (7, GOING)})]
    assert wrong_watch({"one": [seen(*LIFE)], "other": anew}, TOLD, 9) == ""
    assert wrong_watch({"alone": anew}, TOLD, 9) == ""


@pytest.mark.parametrize(
    ("stretches", "word"),
    [
        ([seen(LIFE[0], *LIFE[2:])], "missed"),
        ([seen(LIFE[0], *LIFE)], "twice"),
        ([seen(LIFE[1], LIFE[0], *LIFE[2:])], "twice"),
        ([seen(Sight(5, A, ("other", False)), *LIFE[1:])], "to another watcher"),
        ([seen(*LIFE[:3])], "only came to"),
        ([seen(*LIFE[:2]), seen(LIFE[3], start=8, listing={A: (5, V)})], "the listing of 8"),
        ([seen(*LIFE[:3]), seen(*LIFE[1:], start=6, listing={A: (5, V)})], "a fresh listing"),
    ],
)
def test_watcher_that_missed_or_mistook_something_is_found(stretches: list[Stretch], word: str) -> None:
    assert word in wrong_watch({"right": [seen(*LIFE)], "wrong": stretches}, TOLD, 9)


def test_change_that_only_a_client_was_told_of_is_missed_by_all() -> None:
    told = (*TOLD, op(3, 4, Put(N, ON), Done(6)))
    assert "a client was told" in wrong_watch({"one": [seen(*LIFE)], "other": [seen(*LIFE)]}, told, 9)


def test_object_that_is_created_twice_or_written_over_is_found() -> None:
    twice = (*LIFE[:3], Sight(9, A, V))
    assert "again" in wrong_watch({"one": [seen(*twice)]}, (), 9)
    over = (LIFE[0], Sight(9, A, ("w", False)))
    assert "replaced" in wrong_watch({"one": [seen(*over)]}, (), 9)
