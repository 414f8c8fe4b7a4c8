"""Is there one order of all operations that explains what every client saw? The checker of Wing and Gong, cached by Lowe.

A history is linearizable when its operations can be put in an order that keeps "returned before the other was invoked"
and in which a sequential object, the model, gives every answer that was given. The search tries operations one by one
and remembers each pair of (operations placed, state reached), since what follows depends on nothing else. An operation
that never returned may stand anywhere after its invocation, or nowhere.

Sources: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for linearizability" (2016);
Athalye's Porcupine, whose cutting of a history into parts that share nothing (`parts`) is used here, too.

Invariant: nothing here knows Raft, the store or the simulator; the answer is a function of the history alone.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

NEVER = math.inf
"""When an operation returned whose outcome nobody learnt."""

MAX_STEPS = 500_000
"""Operations tried in one part before the search gives up; a history without contradiction needs some hundred."""

In = TypeVar("In")
Out = TypeVar("Out")
State = TypeVar("State", bound=Hashable)
Asked = TypeVar("Asked", contravariant=True)
Told = TypeVar("Told", contravariant=True)


class Undecided(Exception):
    """The search was given up: too many operations overlap, or too many outcomes are unknown."""


@dataclass(frozen=True)  # with slots, Python 3.11 cannot call an alias like Operation[int, int]
class Operation(Generic[In, Out]):
    """What a client asked and got; `output` is None, and `returned` NEVER, when it does not know the outcome."""

    client: str
    invoked: float
    returned: float
    input: In
    output: Out | None

    def __post_init__(self) -> None:
        if (self.output is None) != (self.returned == NEVER) or self.returned < self.invoked:
            raise ValueError(f"{self}: only what never returned has no output, and nothing returns before its call")


class Model(Protocol[Asked, Told, State]):
    """A sequential object. States are immutable and compare by value."""

    def initial(self) -> State:
        """Return the state before the first operation."""
        ...

    def step(self, state: State, given: Asked, output: Told | None) -> State | None:
        """Return the state after an operation, None when it could not have answered so. Without an output: any."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict(Generic[In, Out]):
    """`stuck` is, for a history that is not linearizable, what fitted nowhere after the longest order found."""

    linearizable: bool
    placed: int = 0
    stuck: tuple[Operation[In, Out], ...] = ()


@dataclass(slots=True)
class _Node(Generic[State]):
    """A partial order under way: what it reached, and which operations may come next."""

    state: State
    placed: int
    """Bit i is set when operation i was placed."""
    candidates: Iterator[int]
    last: int = -1
    """The operation placed last from here."""


def check(
    history: Iterable[Operation[In, Out]], model: Model[In, Out, State], max_steps: int = MAX_STEPS
) -> Verdict[In, Out]:
    """Return whether a history is linearizable. Raises Undecided after `max_steps` steps of the model."""
    return _Search(sorted(history, key=lambda op: (op.invoked, op.returned)), model, max_steps).run()


class _Search(Generic[In, Out, State]):
    """One depth-first search, without recursion."""

    def __init__(self, ops: Sequence[Operation[In, Out]], model: Model[In, Out, State], max_steps: int) -> None:
        self.ops, self.model, self.max_steps = ops, model, max_steps
        self.completed = [i for i, op in enumerate(ops) if op.returned < NEVER]
        self.unknown = [i for i, op in enumerate(ops) if op.returned == NEVER]
        self.all_completed = sum(1 << i for i in self.completed)
        self.seen: set[tuple[int, State]] = set()
        self.steps = 0

    def run(self) -> Verdict[In, Out]:
        initial = self.model.initial()
        path = [_Node(initial, 0, iter(self.candidates(0)))]
        longest = 0
        while path:
            node = path[-1]
            if node.placed & self.all_completed == self.all_completed:
                return Verdict(True, len(path) - 1)
            following = self.advance(node)
            if following is None:
                path.pop()
                continue
            path.append(following)
            if following.placed.bit_count() > longest.bit_count():
                longest = following.placed
        stuck = tuple(self.ops[i] for i in self.candidates(longest) if self.ops[i].returned < NEVER)
        return Verdict(False, longest.bit_count(), stuck)

    def advance(self, node: _Node[State]) -> _Node[State] | None:
        """Place the next candidate that the model accepts and that leads to something new."""
        for i in node.candidates:
            self.steps += 1
            if self.steps > self.max_steps:
                raise Undecided(f"no order found, nor excluded, in {self.max_steps} steps")
            op = self.ops[i]
            state = self.model.step(node.state, op.input, op.output)
            if state is None or (op.output is None and state == node.state):
                continue  # an unknown operation without effect need not be placed at all
            placed = node.placed | 1 << i
            if (placed, state) not in self.seen:
                self.seen.add((placed, state))
                return _Node(state, placed, iter(self.candidates(placed)))
        return None

    def candidates(self, placed: int) -> list[int]:
        """Return what may come next: invoked before anything not yet placed returned. Unknown outcomes come last."""
        first_return = NEVER
        found = []
        for i in self.completed:
            if placed >> i & 1:
                continue
            op = self.ops[i]
            if op.invoked > first_return:
                break
            found.append(i)
            first_return = min(first_return, op.returned)
        found = [i for i in found if self.ops[i].invoked <= first_return]
        return found + [i for i in self.unknown if not placed >> i & 1 and self.ops[i].invoked <= first_return]


def parts(
    history: Iterable[Operation[In, Out]], touched: Callable[[In], Iterable[Hashable]]
) -> list[list[Operation[In, Out]]]:
    """Cut a history into parts that touch nothing in common: it is linearizable when each of them is."""
    home: dict[Hashable, Hashable] = {}

    def find(key: Hashable) -> Hashable:
        while home.setdefault(key, key) != key:
            home[key] = home[home[key]]
            key = home[key]
        return key

    ops = [(op, tuple(touched(op.input))) for op in history]
    for _, keys in ops:
        for key in keys[1:]:
            home[find(key)] = find(keys[0])
    found: dict[Hashable, list[Operation[In, Out]]] = {}
    for op, keys in ops:
        if keys:
            found.setdefault(find(keys[0]), []).append(op)
    return list(found.values())
