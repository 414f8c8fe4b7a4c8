"""The library, pysyncobj, with its unsafe outer parts taken away: pickle, sockets, pipes, files and its own clock.

Invariant: after this module is imported nothing in pysyncobj can unpickle, open a socket or read a clock but ours.
This is the only module that rebinds names of the library; `PRIVATE_NAMES` lists all that we rely on, and a test
compares them with what is installed (pinned: 0.3.17).
"""

import _socket
import logging
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NoReturn

import pysyncobj.journal
import pysyncobj.pickle
import pysyncobj.syncobj as library
from pysyncobj.node import Node as LibraryNode
from pysyncobj.syncobj import SyncObj, SyncObjConf
from pysyncobj.transport import Transport

VERSION = "0.3.17"

socket.inet_ntop = _socket.inet_ntop
"""The library replaces it, for the whole process, by a function for Windows that fails here (pysyncobj/win_inet_pton.py)."""

COMMAND = 0
"""First byte of an entry that carries a command (the library's `_COMMAND_TYPE.REGULAR`)."""
NO_OP = 1
"""First byte of a new leader's empty entry."""

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
"""The library's `_RAFT_STATE`."""

PRIVATE_METHODS = (
    "applyLogEntries", "deleteEntriesFrom", "doApplyCommand", "generateRaftTimeout", "getCurrentLogIndex",
    "getCurrentLogTerm", "getEntries", "loadDumpFile", "onBecomeLeader", "onMessageReceived", "sendAppendEntries",
    "sendNextNodeIdx", "setCurrentTerm", "setState", "tryLogCompaction", "onNodeConnected", "onNodeDisconnected",
)  # fmt: skip
"""Methods `_SyncObj__...` that we call or override."""

PRIVATE_FIELDS = (
    "commandsQueue", "commandsWaitingCommit", "connectedNodes", "lastResponseTime", "noopIDx", "otherNodes",
    "raftCommitIndex", "raftCurrentTerm", "raftElectionDeadline", "raftLastApplied", "raftLeader", "raftLog",
    "raftMatchIndex", "raftNextIndex", "raftState", "readonlyNodes", "votedForNodeId", "votesCount",
    "newAppendEntriesTime",
)  # fmt: skip
"""Fields `_SyncObj__...` that we read or write."""

REBOUND_NAMES = ("createJournal", "createPoller", "monotonicTime", "pickle", "PIPE_NOTIFIER_ENABLED", "logger")
"""Names of pysyncobj.syncobj that are rebound here."""

PICKLE_NAMES = ("load", "loads", "dump", "dumps")


class Node(LibraryNode):  # type: ignore[misc]
    """A member by name, with a hash that is the same in every process, so that a simulated run can be repeated."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        object.__setattr__(self, "_hash", zlib.crc32(name.encode()))

    def __hash__(self) -> int:
        return int(self._hash)


node_of = lru_cache(maxsize=256)(Node)
"""The node of a name; the same object each time, which makes looking it up in tables cheap."""


class PickleForbidden(Exception):
    """Something tried to pickle or unpickle inside consensus."""


def _forbidden(*_: object, **__: object) -> NoReturn:
    raise PickleForbidden("consensus never pickles; this is a defect or an attack")


class _NoPoller:
    """Our own loop waits for sockets; the library only ticks."""

    def subscribe(self, *_: object) -> None:
        """Nothing to watch."""

    def unsubscribe(self, *_: object) -> None:
        """Nothing is watched."""

    def poll(self, _timeout: float) -> None:
        """Return at once."""


_clock: Callable[[], float] = time.monotonic


def now() -> float:
    """Seconds on the clock that consensus uses: CLOCK_MONOTONIC, or the simulator's."""
    return _clock()


@contextmanager
def virtual_clock(clock: Callable[[], float]) -> Iterator[None]:
    """Let every member in this process use another clock meanwhile."""
    global _clock
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before


def _make_safe() -> None:
    for name in PICKLE_NAMES:
        setattr(pysyncobj.pickle, name, _forbidden)
        if hasattr(pysyncobj.journal, name):
            setattr(pysyncobj.journal, name, _forbidden)
    library.createJournal = lambda journal: journal  # conf.journalFile carries our journal
    library.createPoller = lambda _type: _NoPoller()
    library.monotonicTime = now
    library.PIPE_NOTIFIER_ENABLED = False  # its notify() may raise after queueing
    # Its one message per overlapping append ("truncating already-applied log entries") is untrue under rule H1.
    library.logger = logging.Logger("pysyncobj", logging.CRITICAL + 1)


_make_safe()

__all__ = [
    "CANDIDATE",
    "COMMAND",
    "FOLLOWER",
    "LEADER",
    "NO_OP",
    "PICKLE_NAMES",
    "PRIVATE_FIELDS",
    "PRIVATE_METHODS",
    "REBOUND_NAMES",
    "VERSION",
    "Node",
    "PickleForbidden",
    "SyncObj",
    "SyncObjConf",
    "Transport",
    "library",
    "node_of",
    "now",
    "virtual_clock",
]

Message = dict[str, Any]
"""A message as the library has it; `codec` turns it into bytes and back."""
