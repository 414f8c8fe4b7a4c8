"""What clients asked of the API under faults, what watchers saw of it, and whether the two fit one honest cluster.

The objects are networks that no host makes and the "cordoned" of hosts that do not exist, as their proto files describe them: a
network is created if it is absent, and marked by a delete, upon which the cluster removes it when it gets to it; a host is set to on
or off. Every answer names the revision of the object, which is the store's: all changes of all objects have one order.

Invariant: nothing here calls anything; the verdicts are functions of what was noted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.simulation.consensus.linearizability import NEVER, Operation, Undecided, Verdict, check, parts

ON, OFF = "on", "off"


@dataclass(frozen=True, slots=True)
class Create:
    """Make the object if it is absent. No two have the same value."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Mark the object to be removed."""

    key: str


@dataclass(frozen=True, slots=True)
class Put:
    """Have the object at a value; by compare and set in the manager, which writes nothing when it is there already."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read the object."""

    key: str


@dataclass(frozen=True, slots=True)
class Done:
    """It was done. `revision`: of the object then; 0 when the answer does not tell."""

    revision: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """There was one already."""


@dataclass(frozen=True, slots=True)
class Missing:
    """There was none."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The object as it was."""

    value: str
    leaving: bool
    revision: int


Given: TypeAlias = Create | Delete | Put | Get
Answer: TypeAlias = Done | Taken | Missing | Seen
Asked: TypeAlias = Operation[Given, Answer]


@dataclass(frozen=True, slots=True)
class Held:
    """An object of the model. `value` "": absent. `revision`: of its last change if `exact`, else that one is above it."""

    value: str
    leaving: bool = False
    revision: int = 0
    exact: bool = False

    def changed(self, value: str, *, leaving: bool = False, revision: int = 0) -> "Held | None":
        """Return it after a change, whose revision may not be known (0); None when that revision is not a later one."""
        if not revision:
            return Held(value, leaving, self.revision)
        return Held(value, leaving, revision, True) if revision > self.revision else None

    def at(self, revision: int) -> "Held | None":
        """Return it with its revision learnt; None when it cannot be that one."""
        if self.exact:
            return self if revision == self.revision else None
        return Held(self.value, self.leaving, revision, True) if revision > self.revision else None


class Object:
    """One object, one operation at a time, for the linearizability checker."""

    def __init__(self, value: str = "") -> None:
        self._initial = Held(value)

    def initial(self) -> Held:
        """Return the object before the first operation."""
        return self._initial

    def step(self, state: Held, given: Given, output: Answer | None) -> Held | None:
        """Return the object after an operation, None when it could not have answered so.

        One that is leaving may have been removed by now; whoever finds it gone makes that known.
        """
        gone = state.changed("") if state.leaving else state
        assert gone is not None
        if isinstance(output, Missing):
            return gone if not gone.value and isinstance(given, Delete | Get) else None
        if isinstance(given, Create):
            return self._created(state, gone, given, output)
        if isinstance(given, Delete):
            deleted = state.changed(state.value, leaving=True) if state.value else None
            return state if output is None and deleted is None else deleted
        if isinstance(given, Put):
            return self._put(state, given, output)
        fits = isinstance(output, Seen) and (output.value, output.leaving) == (state.value, state.leaving)
        return state.at(output.revision) if fits and isinstance(output, Seen) else (None if output else state)

    def _created(self, state: Held, gone: Held, given: Create, output: Answer | None) -> Held | None:
        if isinstance(output, Taken):
            return state if state.value else None
        if gone.value:
            return state if output is None else None
        return gone.changed(given.value, revision=output.revision if isinstance(output, Done) else 0)

    def _put(self, state: Held, given: Put, output: Answer | None) -> Held | None:
        if state.value == given.value:
            return state.at(output.revision) if isinstance(output, Done) else state
        return state.changed(given.value, revision=output.revision if isinstance(output, Done) else 0)


def wrong_history(operations: Sequence[Asked], initial: Mapping[str, str]) -> str:
    """Return what no honest cluster could have answered, "" when there is nothing. `initial`: values that were there before."""
    if wrong := _wrong_order(operations):
        return wrong
    for part in parts(operations, lambda given: (given.key,)):
        key = part[0].input.key
        try:
            verdict: Verdict[Given, Answer] = check(part, Object(initial.get(key, "")))
        except Undecided as error:
            return f"{key}: {error} ({len(part)} operations)"
        if not verdict.linearizable:
            return f"{key}: not linearizable; after {verdict.placed} operations none of these fits: {verdict.stuck}"
    return ""


def _wrong_order(operations: Sequence[Asked]) -> str:
    """Return how revisions contradict time over all objects: what is created later has a later revision than all that was told."""
    returns = sorted((op for op in operations if op.returned < NEVER), key=lambda op: op.returned)
    created: dict[int, Asked] = {}
    newest, position = 0, 0
    for op in sorted(operations, key=lambda op: op.invoked):
        while position < len(returns) and returns[position].returned < op.invoked:
            newest = max(newest, told_of(returns[position]))
            position += 1
        revision = told_of(op)
        if not isinstance(op.input, Create) or not revision:
            continue
        if revision <= newest:
            return f"revision {newest} was told before this was asked: {op}"
        if created.setdefault(revision, op) is not op:
            return f"two changes at one revision: {created[revision]} and {op}"
    return ""


def told_of(op: Asked) -> int:
    """Return the revision that an answer tells, 0 when it tells none."""
    return op.output.revision if isinstance(op.output, Done | Seen) else 0


Value: TypeAlias = tuple[str, bool] | None
"""Value and whether the object is leaving; None: removed."""


@dataclass(frozen=True, slots=True)
class Sight:
    """One change as a watcher was told of it."""

    revision: int
    key: str
    value: Value


@dataclass(slots=True)
class Stretch:
    """What a watcher saw from a listing on, without a gap as it believes."""

    start: int
    listing: Mapping[str, tuple[int, Value]]
    sights: list[Sight] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The last revision seen."""
        return self.sights[-1].revision if self.sights else self.start


def wrong_watch(watchers: Mapping[str, Sequence[Stretch]], operations: Sequence[Asked], until: int) -> str:
    """Return what watchers missed, saw twice, out of order, or otherwise than clients or one another; "" when nothing.

    until: a revision that all of them have reached; what came later is not looked at.
    """
    known = {(sight.revision, sight.key): sight.value for sight in _all_sights(watchers) if sight.revision <= until}
    for stretch in (s for stretches in watchers.values() for s in stretches):
        known |= {(revision, key): value for key, (revision, value) in stretch.listing.items()}
    for name, stretches in watchers.items():
        if wrong := _wrong_stretches(stretches, known, until):
            return f"watcher {name}: {wrong}"
    covered = [(s.start, s.end) for stretches in watchers.values() for s in stretches]
    return _wrong_told(operations, known, covered, until) or _wrong_lives(known, covered)


def _all_sights(watchers: Mapping[str, Sequence[Stretch]]) -> Iterator[Sight]:
    for stretches in watchers.values():
        for stretch in stretches:
            yield from stretch.sights


def _wrong_stretches(stretches: Sequence[Stretch], known: Mapping[tuple[int, str], Value], until: int) -> str:
    reached = 0
    for stretch in stretches:
        if stretch.start < reached:
            return f"a fresh listing of revision {stretch.start} after {reached} was seen"
        place = (stretch.start, "")
        for sight in stretch.sights:
            if (sight.revision, sight.key) <= place:
                return f"{sight} came after {place}: twice, or out of order"
            place = (sight.revision, sight.key)
            if sight.revision <= until and known[place] != sight.value:
                return f"{sight} was {known[place]} to another watcher"
        seen = {(sight.revision, sight.key) for sight in stretch.sights}
        due = {place for place in known if stretch.start < place[0] <= min(stretch.end, until)}
        if missing := sorted(due - seen):
            return f"missed {missing[:5]}, which others saw, between {stretch.start} and {stretch.end}"
        for key, (revision, _) in stretch.listing.items():
            if newer := [place for place in known if place[1] == key and revision < place[0] <= stretch.start]:
                return f"the listing of {stretch.start} has {key} of {revision}, others saw {newer}"
        reached = stretch.end
    if reached < until:
        return f"only came to {reached} of {until}"
    return ""


def _wrong_told(
    operations: Iterable[Asked], known: Mapping[tuple[int, str], Value], covered: Sequence[tuple[int, int]], until: int
) -> str:
    """Return what a client was told of that no watcher saw, though one was looking."""
    for op in operations:
        place = (told_of(op), op.input.key)
        if not any(start < place[0] <= min(end, until) for start, end in covered):
            continue
        if isinstance(op.output, Seen):
            expected: Value = (op.output.value, op.output.leaving)
        elif isinstance(op.input, Create | Put):
            expected = (op.input.value, False)
        else:
            continue
        if place not in known or known[place] != expected:
            return f"watchers saw {known.get(place, 'nothing')} at {place}, a client was told {op}"
    return ""


def _wrong_lives(known: Mapping[tuple[int, str], Value], covered: Sequence[tuple[int, int]]) -> str:
    """Return which created object began twice (its idempotency key was not heeded), or was written over while it lived."""
    before: dict[str, tuple[int, Value]] = {}
    begun: dict[str, int] = {}
    for (revision, key), value in sorted(known.items()):
        last, old = before.get(key, (0, None))
        before[key] = (revision, value)
        if value is None or value[0] in (ON, OFF):
            continue
        if old is not None and value[0] != old[0] and any(start <= last and revision <= end for start, end in covered):
            return f"{key}: {value} at {revision} replaced {old} of {last}, which was not removed"
        if old is None or value[0] != old[0]:
            first = begun.setdefault(value[0], revision)
            if first != revision:
                return f"{key}: {value} was created at {first}, and at {revision} again"
    return ""
