"""Events: what happened, put into the same transaction as the change that made it happen."""

import secrets
import time

from gugus.cluster.v1 import event_pb2
from gugus.cluster.v1.event_pb2 import Event

from manager.store import Txn
from manager.store.kinds import new

INFO = event_pb2.SEVERITY_INFO
WARNING = event_pb2.SEVERITY_WARNING
ERROR = event_pb2.SEVERITY_ERROR

KEPT = 1_000
"""Events that stay in the state; older ones are trimmed by the acting manager."""


def event(
    about: str, reason: str, message: str, severity: event_pb2.Severity.ValueType = event_pb2.SEVERITY_INFO
) -> Event:
    """Return a new event about an object ("kind/name"). Its name sorts by time, so that the oldest are found first."""
    made = new(Event, f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(4)}")
    made.at.CopyFrom(made.meta.created_at)
    made.severity, made.about, made.reason, made.message = severity, about, reason, message
    return made


def record(
    txn: Txn,
    about: str,
    reason: str,
    message: str,
    severity: event_pb2.Severity.ValueType = event_pb2.SEVERITY_INFO,
) -> Txn:
    """Add an event to a transaction and return it."""
    return txn.put(event(about, reason, message, severity), expect_absent=True)
