"""Operations: imperative work on a guest that takes a while, such as a snapshot or a migration.

An operation is a task whose kind has a handler here. One works on a guest at a time, in the order in which they were asked for; while
it does, `guest.status.lock` names it, and the guest controller neither starts nor stops the guest. A call never fails because another
one is under way: it queues.
"""

from manager.operations.controller import OperationController
from manager.operations.handler import Handler, moved
from manager.operations.operation import Cancelled, Operation
from manager.operations.registry import CANCELLABLE, HANDLERS, KINDS

__all__ = ["CANCELLABLE", "HANDLERS", "KINDS", "Cancelled", "Handler", "Operation", "OperationController", "moved"]
