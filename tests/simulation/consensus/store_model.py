"""The store as its clients may rely on it: a small model of its own, for the linearizability checker.

It knows transactions of compares, puts and deletes on keys with revisions, and reads of some keys at once. It was
written from the comments of `gugus/store/v1/store.proto`, not from `manager/store`, of which it is independent.

Revisions are the store's, not a key's, so a part of a history that touches some keys only knows them from the answers:
`revision_errors` checks them over the whole history, and the model checks that they fit the values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .linearizability import NEVER, Operation, Verdict, check, parts

ABSENT = 0
"""Revision in an answer of a key that is not there; as an expectation: it must not be there."""


@dataclass(frozen=True, slots=True)
class Read:
    """Some keys, seen at one moment."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a read saw: (key, value, revision of its last change) of those that are there; the store's revision."""

    entries: tuple[tuple[str, bytes, int], ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Write:
    """A transaction. `expected`: (key, revision); no two writes of a history put the same value."""

    expected: tuple[tuple[str, int], ...] = ()
    puts: tuple[tuple[str, bytes], ...] = ()
    deletes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that it looks at or changes."""
        return tuple(dict.fromkeys([k for k, _ in self.expected] + [k for k, _ in self.puts] + list(self.deletes)))


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a transaction; `failed`: (key, its revision) where the expectation did not hold."""

    succeeded: bool
    revision: int
    failed: tuple[tuple[str, int], ...] = ()


Given: TypeAlias = Read | Write
Answer: TypeAlias = Seen | Written
StoreOperation: TypeAlias = Operation[Given, Answer]

Held: TypeAlias = tuple[bytes, int | None]
"""Value and revision; None when the write that put it there never told."""
State: TypeAlias = frozenset[tuple[str, Held]]


class StoreModel:
    """Some keys of the store, one transaction at a time."""

    def initial(self) -> State:
        """Return the empty store."""
        return frozenset()

    def step(self, state: State, given: Given, output: Answer | None) -> State | None:
        """Return what is there after an operation, None when it could not have answered so."""
        held = dict(state)
        if isinstance(given, Read):
            fits = output is None or (isinstance(output, Seen) and _read(held, given, output))
        elif output is None:
            fits = True
            if all(_revision(held, key) == expected for key, expected in given.expected):
                _change(held, given, None)
        else:
            fits = isinstance(output, Written) and _written(held, given, output)
        return frozenset(held.items()) if fits else None


def _read(held: dict[str, Held], given: Read, output: Seen) -> bool:
    seen = {key: (value, revision) for key, value, revision in output.entries}
    for key in given.keys:
        if key not in seen:
            if key in held:
                return False
            continue
        value, revision = seen.pop(key)
        if key not in held or held[key][0] != value or not _learn(held, key, revision) or revision > output.revision:
            return False
    return not seen


def _written(held: dict[str, Held], given: Write, output: Written) -> bool:
    failed = dict(output.failed)
    for key, expected in given.expected:
        if key in failed:
            if failed[key] == expected or not _learn(held, key, failed[key]):
                return False
        elif output.succeeded and not _learn(held, key, expected):
            return False
    if not output.succeeded:
        return bool(failed) and all(
            key in failed or _revision(held, key) in (expected, None) for key, expected in given.expected
        )
    newer = all(revision is None or revision <= output.revision for _, revision in held.values())
    changed = _change(held, given, output.revision)
    return newer and not failed and (not changed or _only_newest(held, given, output.revision))


def _only_newest(held: dict[str, Held], given: Write, revision: int) -> bool:
    """Return whether nothing but this transaction's own puts is at its revision."""
    own = {key for key, _ in given.puts}
    return all(key in own or at != revision for key, (_, at) in held.items())


def _learn(held: dict[str, Held], key: str, revision: int) -> bool:
    """Return whether a key may be at a revision, and keep that when it was not known."""
    if key not in held or revision == ABSENT:
        return key not in held and revision == ABSENT
    value, known = held[key]
    held[key] = (value, revision)
    return known in (None, revision)


def _revision(held: dict[str, Held], key: str) -> int | None:
    return held[key][1] if key in held else ABSENT


def _change(held: dict[str, Held], given: Write, revision: int | None) -> bool:
    changed = bool(given.puts) or any(key in held for key in given.deletes)
    held.update({key: (value, revision) for key, value in given.puts})
    for key in given.deletes:
        held.pop(key, None)
    return changed


def check_store(history: Sequence[StoreOperation]) -> str:
    """Return what is wrong with a history of the whole store, "" when nothing is. Raises Undecided."""
    if wrong := revision_errors(history):
        return wrong
    for part in parts(history, lambda given: given.keys):
        verdict: Verdict[Given, Answer] = check(relevant(part), StoreModel())
        if not verdict.linearizable:
            return f"not linearizable; after {verdict.placed} operations none of these fits: {verdict.stuck}"
    return ""


def relevant(part: Sequence[StoreOperation]) -> list[StoreOperation]:
    """Leave out writes of unknown outcome that nobody can have noticed; each would double the work.

    Noticed is a put by its value, which is unique, or by a revision that no known value has. A write that deletes is
    always kept: absence has no name. Leaving out is right, for an unknown write may well have had no effect.
    """
    values = {value for op in part if isinstance(op.output, Seen) for _, value, _ in op.output.entries}
    named = {ABSENT} | {
        revision for op in part if isinstance(op.output, Seen) for _, _, revision in op.output.entries
    } | {_told(op) for op in part if _surely_changed(op)}  # fmt: skip
    told = {revision for op in part if isinstance(op.output, Written) for _, revision in op.output.failed}
    if told - named:
        return list(part)
    return [op for op in part if op.output is not None or _noticed(op.input, values)]


def _noticed(given: Given, values: set[bytes]) -> bool:
    return isinstance(given, Write) and (bool(given.deletes) or any(value in values for _, value in given.puts))


def revision_errors(history: Iterable[StoreOperation]) -> str:
    """Return how revisions contradict time: they never fall, and every change has one of its own."""
    known = [op for op in history if op.output is not None]
    changed_at: dict[int, StoreOperation] = {}
    for op in known:
        if _surely_changed(op):
            other = changed_at.setdefault(_told(op), op)
            if other is not op:
                return f"two changes at one revision: {other} and {op}"
    returns = sorted((op for op in known if op.returned < NEVER), key=lambda op: op.returned)
    newest, position = -1, 0
    for op in sorted(known, key=lambda op: op.invoked):
        while position < len(returns) and returns[position].returned < op.invoked:
            newest = max(newest, _told(returns[position]))
            position += 1
        if _told(op) < newest or (_surely_changed(op) and _told(op) == newest):
            return f"revision {newest} was told before this was invoked: {op}"
    return ""


def _surely_changed(op: StoreOperation) -> bool:
    return (
        isinstance(op.output, Written) and op.output.succeeded and isinstance(op.input, Write) and bool(op.input.puts)
    )


def _told(op: StoreOperation) -> int:
    return op.output.revision if op.output is not None else -1
