"""Every state that a migration across clusters can come into, whatever is killed when: never two copies, never none for good.

The parties are small models of `agent.migration` and of the two operations; what they decide by is the product's own (`settle`, `arrival`).
Each step of each party is a move; a kill is a move, too; so each order of all of them is gone through.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import pytest
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_RUNNING,
    MIGRATION_PRESENCE_UNSPECIFIED,
    MigrationPresence,
)

from manager.ha.migration import WORDS, Verdict, Word, arrival, settle

Presence: TypeAlias = "MigrationPresence.ValueType"
Arrival = Callable[..., Verdict]
Settle = Callable[[Word, Word], Verdict]


@dataclass(frozen=True, slots=True)
class State:
    """How all parties are. here: what the sending cluster has settled; there: what the receiving one has."""

    connected: bool = True
    runs_here: bool = True
    given: bool = False
    kept: bool = False
    forgot: bool = False
    """The source's agent was killed: of a guest that does not run it can only say that it may have been given."""
    copy: Word = Word.COMING
    ran_there: bool = False
    noted_given: bool = False
    told_here: Presence = MIGRATION_PRESENCE_UNSPECIFIED
    told_there: Presence = MIGRATION_PRESENCE_UNSPECIFIED
    here: Verdict | None = None
    there: Verdict | None = None

    @property
    def copies(self) -> int:
        """How many of the guest run."""
        return self.runs_here + (self.copy is Word.RUNNING)

    @property
    def over(self) -> bool:
        """Both clusters have settled."""
        return self.here is not None and self.there is not None


def hosts(s: State) -> Iterator[State]:
    """What the two agents do, and what befalls them and the guest."""
    if s.connected and s.copy is Word.COMING and s.runs_here:
        yield replace(s, copy=Word.WAITING)
    if s.connected and s.copy is Word.WAITING and s.runs_here and not s.kept and not s.forgot:
        yield replace(s, given=True, runs_here=False)
    if s.connected and s.given and s.copy is Word.WAITING and not s.forgot:
        yield replace(s, copy=Word.RUNNING, ran_there=True)
    if s.connected:
        yield replace(s, connected=False)
    if not s.forgot:  # kill -9 of the source's agent
        yield replace(s, forgot=True, connected=False)
    if s.runs_here and s.here is None:  # the guest ends by itself, or its host reboots
        yield replace(s, runs_here=False, connected=False)
    if s.copy in (Word.COMING, Word.WAITING):  # libvirt gives it up, or its host reboots
        yield replace(s, copy=Word.ABSENT, connected=False)
    if s.copy is Word.RUNNING and s.there is None:  # it has run there, and ended
        yield replace(s, copy=Word.STOPPED)


def sender(s: State, decide: Settle) -> Iterator[State]:
    """The operation that sends: it has the source keep the guest, and settles by that and by what it was told."""
    if s.here is not None:
        return
    if s.given or (s.forgot and not s.runs_here) or s.noted_given:
        source, s = Word.ABSENT, replace(s, noted_given=True)
    else:
        source, s = (Word.RUNNING if s.runs_here else Word.STOPPED), replace(s, kept=True)
    for known in {source, Word.UNKNOWN}:  # it may not answer
        verdict = decide(known, WORDS.get(s.told_here, Word.UNKNOWN))
        if verdict is Verdict.WAIT:
            yield s
        elif verdict is Verdict.MOVED:
            yield replace(s, here=verdict)
        else:  # it is a guest here as ever, and started if it does not run
            yield replace(s, here=verdict, runs_here=True)


def receiver(s: State, decide: Arrival) -> Iterator[State]:
    """The operation that receives: it looks at the target, and settles by that and by what it was told."""
    if s.there is not None:
        return
    verdict = decide(s.told_there, s.copy, expected=s.connected)
    if verdict is Verdict.MOVED:
        yield replace(s, there=verdict, copy=Word.RUNNING, ran_there=True)  # a guest there; started if it has ended
    elif verdict is Verdict.TAKE_OVER:
        yield replace(s, copy=Word.RUNNING, ran_there=True)
    elif verdict is not Verdict.WAIT:
        yield replace(s, there=verdict, copy=Word.ABSENT, connected=False)


def client(s: State) -> Iterator[State]:
    """Whoever has both configurations tells each cluster what the other one knows for good."""
    if s.there is not None and s.here is None and not s.told_here:
        came = s.there is Verdict.MOVED
        yield replace(s, told_here=MIGRATION_PRESENCE_RUNNING if came else MIGRATION_PRESENCE_ABSENT)
    if s.there is None and not s.told_there:
        if s.here is not None and s.here is not Verdict.MOVED:
            yield replace(s, told_there=MIGRATION_PRESENCE_RUNNING)
        elif s.noted_given:
            yield replace(s, told_there=MIGRATION_PRESENCE_ABSENT)


def explored(decide: Settle = settle, comes: Arrival = arrival) -> dict[State, set[State]]:
    """Return every state that can be reached, with what can follow it."""
    found: dict[State, set[State]] = {}
    waiting = deque([State()])
    while waiting:
        state = waiting.popleft()
        if state in found:
            continue
        found[state] = {*hosts(state), *sender(state, decide), *receiver(state, comes), *client(state)} - {state}
        waiting.extend(found[state])
    return found


def two_copies(found: dict[State, set[State]]) -> list[State]:
    return [state for state in found if state.copies > 1]


def test_no_order_of_anything_runs_two() -> None:
    found = explored()
    assert len(found) > 100
    assert not two_copies(found)


def test_both_clusters_agree_on_where_it_is() -> None:
    for state in explored():
        if state.over:
            assert (state.here is Verdict.MOVED) == (state.there is Verdict.MOVED), state
            assert state.copies == 1, state


def test_from_every_state_there_is_a_way_to_the_end() -> None:
    """Nobody waits for ever for what cannot come, once hosts and client are there again."""
    found = explored()
    before: dict[State, set[State]] = {}
    for state, following in found.items():
        for one in following:
            before.setdefault(one, set()).add(state)
    good = {state for state in found if state.over}
    waiting = deque(good)
    while waiting:
        for one in before.get(waiting.popleft(), set()) - good:
            good.add(one)
            waiting.append(one)
    assert not [state for state in found if state not in good]


def _does_not_wait(source: Word, target: Word) -> Verdict:
    """A sender that starts the guest anew without a word of the other cluster."""
    return settle(source, Word.ABSENT if target is Word.UNKNOWN else target)


def _trusts_a_complete_copy(told: Presence, target: Word, *, expected: bool) -> Verdict:
    """A receiver that lets a complete copy run when the connection is gone."""
    if target is Word.WAITING and not expected and not told:
        return Verdict.TAKE_OVER
    return arrival(told, target, expected=expected)


@pytest.mark.parametrize(
    "rules",
    [{"decide": _does_not_wait}, {"comes": _trusts_a_complete_copy}],
    ids=["a sender that does not wait", "a receiver that trusts a complete copy"],
)
def test_other_rules_would_run_two(rules: dict[str, Callable[..., Verdict]]) -> None:
    assert two_copies(explored(**rules))
