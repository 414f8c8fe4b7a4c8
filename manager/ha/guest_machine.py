"""What HA does with one guest: a table of states, events, guards, next states and actions, and the function that reads it.

Invariant: TABLE is the only place where a transition is decided; docs/ha.md prints it, and a test compares the two. Of the rows of one
state and event the first whose guard holds is taken, and the last has no guard; so every event that can happen in a state has an answer.

    STARTED    it is to run on its node; restarts there are HA's
    STOPPED    it is not to run; it is given to another node all the same when its own is lost
    DISABLED   out of use: not run, not given to another node
    FENCE      its node is lost, and it may still run there
    RECOVERY   it surely runs nowhere, and no node has it
    RELOCATE   it failed on its node and is being given to another, as a migration that has a task of its own
    ERROR      it failed wherever it was tried; a person starts it again, or changes it
    FREEZE     its host went down in order, it surely runs nowhere, and it waits for that host, not for ever

Whether a guest under HA may run anywhere is not decided here but by its generation and by its node's state (`node_machine`, `recovery`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from gugus.cluster.v1.guest_pb2 import (
    HA_STATE_DISABLED,
    HA_STATE_ERROR,
    HA_STATE_FENCE,
    HA_STATE_FREEZE,
    HA_STATE_RECOVERY,
    HA_STATE_RELOCATE,
    HA_STATE_STARTED,
    HA_STATE_STOPPED,
    HA_STATE_UNSPECIFIED,
    HaState,
)

DEFAULT_MAX_RESTART = 3
"""HaSpec.max_restart when it is unset: with pauses of 1, 2 and 4 s most of what passes by itself has passed."""

DEFAULT_MAX_RELOCATE = 1
"""HaSpec.max_relocate when it is unset: what fails on two nodes is hardly the nodes' fault."""

State: TypeAlias = HaState.ValueType


class Event(Enum):
    """What can happen to a guest, as seen by HA."""

    IGNORE = "HA is off"
    DISABLE = "asked to be out of use"
    STOP = "asked not to run"
    START = "asked to run"
    FAIL = "failed"
    STEADY = "ran for 60 s"
    LOSE = "node lost"
    PROVE = "node proven dead"
    FREEZE = "node down in order, and awaited"
    THAW = "node back"
    PLACE = "a node fits"
    MOVE = "moved"
    STAY = "could not be moved"
    CHANGE = "spec changed"


class Action(Enum):
    """What is to be done with the transition."""

    NOTHING = "-"
    CLEAR = "clear the counters"
    RESTART = "count; start again after a pause"
    RELOCATE = "count; begin a migration to another node"
    GIVE = "give to the node, generation + 1"
    GIVE_UP = "tell what to do"


class Guard(Enum):
    """What must hold for a row. The names of the functions below."""

    ALWAYS = ""
    RESTARTS_LEFT = "restarts < max_restart"
    RELOCATIONS_LEFT = "relocations < max_relocate and another node fits"
    WANTED = "is to run"


@dataclass(frozen=True, slots=True)
class Facts:
    """What guards look at. elsewhere: a node fits that it has not failed on. wanted: it is to run by its power."""

    restarts: int = 0
    relocations: int = 0
    max_restart: int = DEFAULT_MAX_RESTART
    max_relocate: int = DEFAULT_MAX_RELOCATE
    elsewhere: bool = False
    wanted: bool = True


_HOLDS: dict[Guard, Callable[[Facts], bool]] = {
    Guard.ALWAYS: lambda _: True,
    Guard.RESTARTS_LEFT: lambda facts: facts.restarts < facts.max_restart,
    Guard.RELOCATIONS_LEFT: lambda facts: facts.relocations < facts.max_relocate and facts.elsewhere,
    Guard.WANTED: lambda facts: facts.wanted,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    state: State
    event: Event
    guard: Guard
    next: State
    action: Action


_IGNORED, _STARTED, _STOPPED, _DISABLED = HA_STATE_UNSPECIFIED, HA_STATE_STARTED, HA_STATE_STOPPED, HA_STATE_DISABLED
_FENCE, _RECOVERY, _RELOCATE, _ERROR = HA_STATE_FENCE, HA_STATE_RECOVERY, HA_STATE_RELOCATE, HA_STATE_ERROR
_FREEZE = HA_STATE_FREEZE

TABLE: tuple[Row, ...] = (
    Row(_IGNORED, Event.START, Guard.ALWAYS, _STARTED, Action.CLEAR),
    Row(_IGNORED, Event.STOP, Guard.ALWAYS, _STOPPED, Action.CLEAR),
    Row(_IGNORED, Event.DISABLE, Guard.ALWAYS, _DISABLED, Action.CLEAR),
    Row(_STARTED, Event.IGNORE, Guard.ALWAYS, _IGNORED, Action.NOTHING),
    Row(_STARTED, Event.DISABLE, Guard.ALWAYS, _DISABLED, Action.CLEAR),
    Row(_STARTED, Event.STOP, Guard.ALWAYS, _STOPPED, Action.CLEAR),
    Row(_STARTED, Event.FAIL, Guard.RESTARTS_LEFT, _STARTED, Action.RESTART),
    Row(_STARTED, Event.FAIL, Guard.RELOCATIONS_LEFT, _RELOCATE, Action.RELOCATE),
    Row(_STARTED, Event.FAIL, Guard.ALWAYS, _ERROR, Action.GIVE_UP),
    Row(_STARTED, Event.STEADY, Guard.ALWAYS, _STARTED, Action.CLEAR),
    Row(_STARTED, Event.LOSE, Guard.ALWAYS, _FENCE, Action.NOTHING),
    Row(_STARTED, Event.PROVE, Guard.ALWAYS, _RECOVERY, Action.NOTHING),
    Row(_STARTED, Event.FREEZE, Guard.ALWAYS, _FREEZE, Action.NOTHING),
    Row(_STOPPED, Event.IGNORE, Guard.ALWAYS, _IGNORED, Action.NOTHING),
    Row(_STOPPED, Event.DISABLE, Guard.ALWAYS, _DISABLED, Action.NOTHING),
    Row(_STOPPED, Event.START, Guard.ALWAYS, _STARTED, Action.CLEAR),
    Row(_STOPPED, Event.LOSE, Guard.ALWAYS, _FENCE, Action.NOTHING),
    Row(_STOPPED, Event.PROVE, Guard.ALWAYS, _RECOVERY, Action.NOTHING),
    Row(_STOPPED, Event.FREEZE, Guard.ALWAYS, _FREEZE, Action.NOTHING),
    Row(_DISABLED, Event.IGNORE, Guard.ALWAYS, _IGNORED, Action.NOTHING),
    Row(_DISABLED, Event.STOP, Guard.ALWAYS, _STOPPED, Action.NOTHING),
    Row(_DISABLED, Event.START, Guard.ALWAYS, _STARTED, Action.CLEAR),
    Row(_FENCE, Event.IGNORE, Guard.ALWAYS, _IGNORED, Action.NOTHING),
    Row(_FENCE, Event.DISABLE, Guard.ALWAYS, _DISABLED, Action.NOTHING),
    Row(_FENCE, Event.PROVE, Guard.ALWAYS, _RECOVERY, Action.NOTHING),
    Row(_FENCE, Event.FREEZE, Guard.ALWAYS, _FREEZE, Action.NOTHING),
    Row(_RECOVERY, Event.IGNORE, Guard.ALWAYS, _IGNORED, Action.NOTHING),
    Row(_RECOVERY, Event.DISABLE, Guard.ALWAYS, _DISABLED, Action.NOTHING),
    Row(_RECOVERY, Event.PLACE, Guard.WANTED, _STARTED, Action.GIVE),
    Row(_RECOVERY, Event.PLACE, Guard.ALWAYS, _STOPPED, Action.GIVE),
    Row(_RELOCATE, Event.IGNORE, Guard.ALWAYS, _IGNORED, Action.NOTHING),
    Row(_RELOCATE, Event.DISABLE, Guard.ALWAYS, _DISABLED, Action.CLEAR),
    Row(_RELOCATE, Event.STOP, Guard.ALWAYS, _STOPPED, Action.CLEAR),
    Row(_RELOCATE, Event.MOVE, Guard.ALWAYS, _STARTED, Action.NOTHING),
    Row(_RELOCATE, Event.STAY, Guard.RELOCATIONS_LEFT, _RELOCATE, Action.RELOCATE),
    Row(_RELOCATE, Event.STAY, Guard.ALWAYS, _ERROR, Action.GIVE_UP),
    Row(_RELOCATE, Event.LOSE, Guard.ALWAYS, _FENCE, Action.NOTHING),
    Row(_RELOCATE, Event.PROVE, Guard.ALWAYS, _RECOVERY, Action.NOTHING),
    Row(_RELOCATE, Event.FREEZE, Guard.ALWAYS, _FREEZE, Action.NOTHING),
    Row(_ERROR, Event.IGNORE, Guard.ALWAYS, _IGNORED, Action.NOTHING),
    Row(_ERROR, Event.DISABLE, Guard.ALWAYS, _DISABLED, Action.CLEAR),
    Row(_ERROR, Event.STOP, Guard.ALWAYS, _STOPPED, Action.CLEAR),
    Row(_ERROR, Event.START, Guard.ALWAYS, _STARTED, Action.CLEAR),
    Row(_ERROR, Event.CHANGE, Guard.ALWAYS, _STARTED, Action.CLEAR),
    Row(_ERROR, Event.STEADY, Guard.ALWAYS, _STARTED, Action.CLEAR),
    Row(_ERROR, Event.PROVE, Guard.ALWAYS, _RECOVERY, Action.CLEAR),
    Row(_ERROR, Event.FREEZE, Guard.ALWAYS, _FREEZE, Action.CLEAR),
    Row(_FREEZE, Event.IGNORE, Guard.ALWAYS, _IGNORED, Action.NOTHING),
    Row(_FREEZE, Event.DISABLE, Guard.ALWAYS, _DISABLED, Action.NOTHING),
    Row(_FREEZE, Event.PROVE, Guard.ALWAYS, _RECOVERY, Action.NOTHING),
    Row(_FREEZE, Event.THAW, Guard.WANTED, _STARTED, Action.GIVE),
    Row(_FREEZE, Event.THAW, Guard.ALWAYS, _STOPPED, Action.GIVE),
)
"""Every transition."""

UNMOVED: dict[tuple[State, Event], str] = {
    **{
        (state, Event.THAW): "it does not wait for its node"
        for state in HaState.values()
        if state not in (_IGNORED, _DISABLED, _FREEZE)
    },
    **{(_IGNORED, event): "not under HA" for event in Event if event not in (Event.START, Event.STOP, Event.DISABLE)},
    (_STARTED, Event.START): "it is so already",
    (_STARTED, Event.PLACE): "it has a node",
    (_STARTED, Event.MOVE): "a person moved it",
    (_STARTED, Event.STAY): "a person tried to move it",
    (_STARTED, Event.CHANGE): "its controller brings it up to date",
    (_STOPPED, Event.STOP): "it is so already",
    (_STOPPED, Event.FAIL): "it is not to run",
    (_STOPPED, Event.STEADY): "it is not to run",
    (_STOPPED, Event.PLACE): "it has a node",
    (_STOPPED, Event.MOVE): "a person moved it",
    (_STOPPED, Event.STAY): "a person tried to move it",
    (_STOPPED, Event.CHANGE): "its controller brings it up to date",
    (_DISABLED, Event.DISABLE): "it is so already",
    **{
        (_DISABLED, event): "out of use"
        for event in Event
        if event not in (Event.IGNORE, Event.DISABLE, Event.STOP, Event.START)
    },
    (_FENCE, Event.START): "the power it is given back with is looked at then",
    (_FENCE, Event.STOP): "the power it is given back with is looked at then",
    (_FENCE, Event.LOSE): "it is so already",
    **{
        (_FENCE, event): "nobody can do anything about it now"
        for event in (Event.FAIL, Event.STEADY, Event.PLACE, Event.MOVE, Event.STAY, Event.CHANGE)
    },
    (_RECOVERY, Event.START): "the power it is given back with is looked at then",
    (_RECOVERY, Event.STOP): "the power it is given back with is looked at then",
    (_RECOVERY, Event.LOSE): "it runs nowhere",
    (_RECOVERY, Event.PROVE): "it is so already",
    **{
        (_RECOVERY, event): "it runs nowhere"
        for event in (Event.FAIL, Event.STEADY, Event.MOVE, Event.STAY, Event.CHANGE)
    },
    (_RECOVERY, Event.FREEZE): "it waits for any node by now",
    (_RELOCATE, Event.START): "it is to be started at its new place",
    (_RELOCATE, Event.FAIL): "it is not started meanwhile",
    (_RELOCATE, Event.STEADY): "it is not started meanwhile",
    (_RELOCATE, Event.PLACE): "its migration places it",
    (_RELOCATE, Event.CHANGE): "it is started with it at its new place",
    (_ERROR, Event.FAIL): "it is not started",
    (_ERROR, Event.LOSE): "it is not started; what follows waits for the proof",
    (_ERROR, Event.PLACE): "it has a node",
    (_ERROR, Event.MOVE): "a person moved it",
    (_ERROR, Event.STAY): "a person tried to move it",
    (_FREEZE, Event.START): "the power it is given back with is looked at then",
    (_FREEZE, Event.STOP): "the power it is given back with is looked at then",
    (_FREEZE, Event.FREEZE): "it is so already",
    **{
        (_FREEZE, event): "it runs nowhere"
        for event in (Event.FAIL, Event.STEADY, Event.LOSE, Event.PLACE, Event.MOVE, Event.STAY, Event.CHANGE)
    },
}
"""What does not change the state, and why. Together with TABLE this is every state and event, once."""


def advance(state: State, event: Event, facts: Facts) -> Row | None:
    """Return the row that an event leads to, None when it changes nothing."""
    return next((row for row in TABLE if (row.state, row.event) == (state, event) and _HOLDS[row.guard](facts)), None)
